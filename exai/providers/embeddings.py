"""Vectors of texts, from the embedding model of one provider.

A vector is limited in time and size and is never required. Invariant: a returned vector has the length 1.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import httpx
import orjson

from exai.errors import ConfigError
from exai.models import Recorder
from exai.providers.base import TOKENS_PER_PRICE, Pricing
from exai.providers.completion.http_client import HttpClients, headers_for, reason_of
from exai.providers.endpoints import Site, read_sites
from exai.providers.reply.reading import decode
from exai.resilience import Breaker, BreakerOpen
from exai.settings.load import AnswerSettings, ProvidersSettings
from exai.token_estimate import text_tokens

SETTING: Final = "EXAI_ANSWERS__EMBEDDING_MODEL"
LIMIT_S: Final = 3.0
MAX_REPLY_BYTES: Final = 1_048_576
MAX_DIMENSIONS: Final = 4_096
MOST_TOKENS: Final = 100_000
PRICE: Final = "embedding_input_usd"
"""The setting with the price of a million tokens."""


@dataclass(frozen=True, slots=True)
class EmbeddingCost:
    """What one vector cost: its tokens, their price in US dollars if it is known, and whether they are estimated."""

    model: str
    tokens: int
    cost_usd: Decimal | None
    is_estimated: bool


class EmbeddingFailed(Exception):
    """The provider returned no vector; the argument is the reason."""


class Embedder:
    """Asks one embedding model; `name` is its name in the settings."""

    def __init__(
        self,
        name: str,
        model: str,
        site: Site,
        client: httpx.AsyncClient,
        recorder: Recorder,
        *,
        input_usd: Decimal | None = None,
        is_affordable: bool = True,
    ) -> None:
        self.name, self._model, self._client, self._recorder = name, model, client, recorder
        self._input_usd, self._is_affordable = input_usd, is_affordable
        # Another server at the same name makes other vectors.
        self.space = f"{site.base_url} {model}"
        self._url = f"{site.base_url}/embeddings"
        self._headers = headers_for(site.key, "application/json")
        self._breaker = Breaker(f"embedding {name}", recorder=recorder, failures=(EmbeddingFailed,))

    async def embed(self, text: str) -> tuple[tuple[float, ...], EmbeddingCost]:
        """Return the vector of a text and its cost. Raises `EmbeddingFailed`."""
        if not self._is_affordable:
            raise EmbeddingFailed(f"a budget is set and its price is unknown (EXAI_ANSWERS__{PRICE.upper()})")
        outcome = "failed"
        try:
            async with self._breaker.attempt():
                found = await self._vector(text)
            outcome = "ok"
        except BreakerOpen as error:
            raise EmbeddingFailed("it is not asked for now, because it failed repeatedly") from error
        finally:
            self._recorder.count("answer_embeddings_total", outcome=outcome)
        return found

    async def _vector(self, text: str) -> tuple[tuple[float, ...], EmbeddingCost]:
        try:
            async with asyncio.timeout(LIMIT_S):
                received = await self._ask(text)
        except TimeoutError:
            raise EmbeddingFailed(f"no answer within {LIMIT_S:g} s") from None
        except httpx.HTTPError as error:
            raise EmbeddingFailed(reason_of(error)) from error
        return unit(_embedding_in(received)), self._cost(text, _tokens_in(received))

    def _cost(self, text: str, reported: int | None) -> EmbeddingCost:
        tokens = text_tokens(text) + 1 if reported is None else reported
        usd = None if self._input_usd is None else tokens * self._input_usd / TOKENS_PER_PRICE
        return EmbeddingCost(self.name, tokens, usd, is_estimated=reported is None)

    async def _ask(self, text: str) -> bytes:
        body = orjson.dumps({"model": self._model, "input": text, "encoding_format": "float"})
        received = b""
        async with self._client.stream("POST", self._url, headers=self._headers, content=body) as response:
            if response.status_code != httpx.codes.OK:
                raise EmbeddingFailed(f"HTTP {response.status_code}")
            async for chunk in response.aiter_raw():
                received += chunk
                if len(received) > MAX_REPLY_BYTES:
                    raise EmbeddingFailed("the answer is too large")
        return received


@asynccontextmanager
async def open_embedder(
    answers: AnswerSettings, settings: ProvidersSettings, recorder: Recorder, pricing: Pricing
) -> AsyncIterator[Embedder | None]:
    """Open the embedding model of the answer cache, with connections of its own; None without one.

    Its price is that of the settings, else the one that is assumed for models without.

    Raises `ConfigError` if its name is not `provider/model`, or the provider is not configured.
    """
    if answers.embedding_model is None:
        yield None
        return
    name = answers.embedding_model
    provider, slash, model = name.partition("/")
    if not (provider and slash and model):
        raise ConfigError(SETTING, f"is {name!r}, which names no provider", "Write it as provider/model")
    sites = {each: site for each, site in read_sites(settings).items() if site.configured}
    if provider not in sites:
        problem = f"names the provider {provider!r}, which is not configured"
        raise ConfigError(SETTING, problem, f"Configure it, or use one of {', '.join(sites) or 'the providers'}")
    site = sites[provider]
    price = None if answers.embedding_input_usd is None else Decimal(str(answers.embedding_input_usd))
    if price is None and pricing.assumed is not None:
        price = pricing.assumed.input
    affordable = price is not None or not pricing.is_required
    async with HttpClients(settings).open(site.base_url) as client:
        yield Embedder(name, model, site, client, recorder, input_usd=price, is_affordable=affordable)


def unit(vector: list[float]) -> tuple[float, ...]:
    """Return a vector of length 1 in the same direction. Raises `EmbeddingFailed` if there is none."""
    length = math.sqrt(math.fsum(each * each for each in vector)) if all(map(math.isfinite, vector)) else 0.0
    if not 0.0 < length < math.inf:
        raise EmbeddingFailed("the vector has no direction")
    return tuple(each / length for each in vector)


def _tokens_in(received: bytes) -> int | None:
    """Return the tokens that a provider reports, None for a report that no request can have."""
    try:
        usage = decode(received)["usage"]
        found = usage.get("prompt_tokens", usage.get("total_tokens"))
    except (ValueError, TypeError, LookupError, AttributeError):
        return None
    return found if type(found) is int and 0 < found <= MOST_TOKENS else None


def _embedding_in(received: bytes) -> list[float]:
    try:
        document: Any = decode(received)
        found = document["data"][0]["embedding"]
        if not isinstance(found, list) or not 0 < len(found) <= MAX_DIMENSIONS:
            raise EmbeddingFailed("the answer has no vector")
        if any(isinstance(each, bool) or not isinstance(each, int | float) for each in found):
            raise EmbeddingFailed("the vector is not of numbers")
        return [float(each) for each in found]
    except (ValueError, TypeError, LookupError, OverflowError):
        raise EmbeddingFailed("the answer has no vector") from None
