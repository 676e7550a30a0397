"""The models an endpoint says it serves: one bounded GET, remembered for a while, never in the way of a request.

A list that cannot be had is a sentence in the status, not an error: a model named as `endpoint/model` needs no list.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import orjson

from exai.providers.base import Clocks, Family
from exai.providers.exchange import headers_for

LIST_LIMIT_S: Final = 5.0
MAX_LIST_BYTES: Final = 1_048_576
MAX_MODELS: Final = 500
MAX_NAME_CHARS: Final = 200
FRESH_S: Final = 300.0
RETRY_S: Final = 30.0

_WINDOW_FIELDS: Final = ("max_model_len", "context_length", "context_window")
_MIN_WINDOW: Final = 256


@dataclass(slots=True)
class Discovery:
    """What one endpoint listed; `windows` maps each model to its window, None where it was not told."""

    family: Family
    base_url: str
    key: str
    client: httpx.AsyncClient
    clocks: Clocks
    windows: dict[str, int | None] = field(default_factory=dict)
    problem: str | None = None
    _due: float = 0.0
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self._due = self.clocks.monotonic()

    async def refresh(self) -> None:
        """Ask the endpoint unless it answered lately; concurrent callers share one request. Never raises for it."""
        async with self._lock:
            if self.clocks.monotonic() < self._due:
                return
            try:
                async with asyncio.timeout(LIST_LIMIT_S):
                    self.windows, self.problem = _windows(await self._get()), None
            except (TimeoutError, httpx.TransportError, _NoList) as error:
                self.problem = str(error) or type(error).__name__
            self._due = self.clocks.monotonic() + (RETRY_S if self.problem else FRESH_S)

    async def _get(self) -> bytes:
        headers = headers_for(self.key, "application/json")
        async with self.client.stream("GET", f"{self.base_url}/models", headers=headers) as response:
            if response.status_code != 200 or response.headers.get("content-encoding", "identity") != "identity":
                raise _NoList(f"HTTP {response.status_code}")
            body = b""
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > MAX_LIST_BYTES:
                    raise _NoList(f"more than {MAX_LIST_BYTES:,} bytes")
            return body


class _NoList(Exception):
    """The endpoint does not list its models in a way we understand."""


def _windows(body: bytes) -> dict[str, int | None]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise _NoList("not JSON") from None
    entries = document.get("data") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise _NoList("no list of models")
    named = [entry for entry in entries if isinstance(entry, dict) and _is_name(entry.get("id"))]
    return {entry["id"]: _window(entry) for entry in named[:MAX_MODELS]}


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME_CHARS and value.isprintable()


def _window(entry: dict[str, Any]) -> int | None:
    for name in _WINDOW_FIELDS:
        value = entry.get(name)
        if isinstance(value, int) and value >= _MIN_WINDOW:
            return value
    return None
