"""Vectors of texts, from the embedding model of one provider.

A vector is limited in time and size and is never required. Invariant: a returned vector has the length 1.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx
import orjson

from exai.errors import ConfigError
from exai.models import Recorder
from exai.providers.completion.http_client import HttpClients, headers_for, reason_of
from exai.providers.endpoints import Site, read_sites
from exai.providers.reply.reading import decode
from exai.resilience import Breaker, BreakerOpen
from exai.settings.load import AnswerSettings, ProvidersSettings

SETTING: Final = "EXAI_ANSWERS__EMBEDDING_MODEL"
LIMIT_S: Final = 3.0
MAX_REPLY_BYTES: Final = 1_048_576
MAX_DIMENSIONS: Final = 4_096


class EmbeddingFailed(Exception):
    """The provider returned no vector; the argument is the reason."""


class Embedder:
    """Asks one embedding model; `name` is its name in the settings."""

    def __init__(self, name: str, model: str, site: Site, client: httpx.AsyncClient, recorder: Recorder) -> None:
        self.name, self._model, self._client, self._recorder = name, model, client, recorder
        # Another server at the same name makes other vectors.
        self.space = f"{site.base_url} {model}"
        self._url = f"{site.base_url}/embeddings"
        self._headers = headers_for(site.key, "application/json")
        self._breaker = Breaker(f"embedding {name}", recorder=recorder, failures=(EmbeddingFailed,))

    async def embed(self, text: str) -> tuple[float, ...]:
        """Return the vector of a text. Raises `EmbeddingFailed`."""
        outcome = "failed"
        try:
            async with self._breaker.attempt():
                vector = await self._vector(text)
            outcome = "ok"
        except BreakerOpen as error:
            raise EmbeddingFailed("it is not asked for now, because it failed repeatedly") from error
        finally:
            self._recorder.count("answer_embeddings_total", outcome=outcome)
        return vector

    async def _vector(self, text: str) -> tuple[float, ...]:
        try:
            async with asyncio.timeout(LIMIT_S):
                received = await self._ask(text)
        except TimeoutError:
            raise EmbeddingFailed(f"no answer within {LIMIT_S:g} s") from None
        except httpx.HTTPError as error:
            raise EmbeddingFailed(reason_of(error)) from error
        return unit(_embedding_in(received))

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
    answers: AnswerSettings, settings: ProvidersSettings, recorder: Recorder
) -> AsyncIterator[Embedder | None]:
    """Open the embedding model of the answer cache, with connections of its own; None without one.

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
    async with HttpClients(settings).open(site.base_url) as client:
        yield Embedder(name, model, site, client, recorder)


def unit(vector: list[float]) -> tuple[float, ...]:
    """Return a vector of length 1 in the same direction. Raises `EmbeddingFailed` if there is none."""
    length = math.sqrt(math.fsum(each * each for each in vector)) if all(map(math.isfinite, vector)) else 0.0
    if not 0.0 < length < math.inf:
        raise EmbeddingFailed("the vector has no direction")
    return tuple(each / length for each in vector)


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
