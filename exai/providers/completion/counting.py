"""Ask a provider to count the tokens of a prompt, for the few prompts whose estimate is too near the limit.

A count is limited in time and size and is never required: without it the estimate decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import httpx
import orjson

from exai.models import Prompt, Recorder
from exai.providers.base import Family, Model
from exai.providers.completion.http_client import headers_for, reason_of
from exai.providers.completion.shaping import shaped
from exai.providers.reply.reading import decode, tokens

COUNT_LIMIT_S: Final = 3.0
MAX_COUNT_BYTES: Final = 65_536


class CountFailed(Exception):
    """The provider did not return a count; the argument is the reason."""


class TokenCounter:
    """Counts prompts at the address `family.count_path` of one provider."""

    def __init__(self, family: Family, client: httpx.AsyncClient, base_url: str, key: str, recorder: Recorder) -> None:
        self._family, self._client, self._recorder = family, client, recorder
        self._url = f"{base_url}{family.count_path}"
        self._headers = headers_for(key, "application/json")

    async def count(self, model: Model, messages: Sequence[Prompt]) -> int:
        """Return the provider's count of the tokens of `messages`. Raises `CountFailed`."""
        outcome = "failed"
        try:
            async with asyncio.timeout(COUNT_LIMIT_S):
                counted = await self._ask(model, messages)
            outcome = "ok"
        except TimeoutError:
            raise CountFailed(f"no answer within {COUNT_LIMIT_S:g} s") from None
        except httpx.HTTPError as error:
            raise CountFailed(reason_of(error)) from error
        finally:
            self._recorder.count("provider_token_counts_total", provider=self._family.name, outcome=outcome)
        return counted

    async def _ask(self, model: Model, messages: Sequence[Prompt]) -> int:
        body = {"model": model.wire_name, "messages": shaped(messages, strictly=not self._family.takes_any_order)}
        received = b""
        request = self._client.stream("POST", self._url, headers=self._headers, content=orjson.dumps(body))
        async with request as response:
            if response.status_code != httpx.codes.OK:
                raise CountFailed(f"HTTP {response.status_code}")
            async for chunk in response.aiter_raw():
                received += chunk
                if len(received) > MAX_COUNT_BYTES:
                    raise CountFailed("the answer is too large")
        try:
            document = decode(received)
        except ValueError:
            raise CountFailed("the answer is not JSON") from None
        data = document.get("data") if isinstance(document, dict) else None
        counted = tokens(data.get("total_tokens")) if isinstance(data, dict) else 0
        if counted <= 0:
            raise CountFailed("the answer has no count")
        return counted


def counter_of(
    family: Family, client: httpx.AsyncClient, base_url: str, key: str, recorder: Recorder
) -> TokenCounter | None:
    """Return the counter of a provider that offers one."""
    return TokenCounter(family, client, base_url, key, recorder) if family.count_path else None
