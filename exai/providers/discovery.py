"""Query an endpoint for the names and context windows of its models, and cache the result.

A query is limited in time, size and number of requests, and concurrent callers share it. A failed query is reported in
the status and is not an error: a model named `endpoint/model` can be used without a list, with a small default window.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any, Final

import httpx
import orjson
import structlog

from exai.providers.base import TOKENS_PER_PRICE, Clocks, Family, Price
from exai.providers.completion.http_client import headers_for
from exai.providers.reply.reading import decode, tokens

LIST_LIMIT_S: Final = 5.0
MAX_LIST_BYTES: Final = 8 * 1_048_576
MAX_MODELS: Final = 2_000
MAX_NAME_CHARS: Final = 200
FRESH_S: Final = 300.0
DAY_S: Final = 86_400.0
"""Age at which the list of a provider that EXAI describes is read again."""

RETRY_S: Final = 30.0
MAX_SHOWN_MODELS: Final = 8
"""Maximum number of models that are queried individually from Ollama."""

log = structlog.get_logger(__name__)

_MIN_WINDOW: Final = 256
_WINDOW_FIELDS: Final = (
    "loaded_context_length",
    "max_model_len",
    "context_length",
    "context_window",
    "max_context_length",
    "n_ctx",
    "max_input_tokens",
    "inputTokenLimit",
    "max_seq_len",
)
"""Fields of the window: LM Studio, vLLM and SGLang, many, many, LM Studio, llama.cpp, LiteLLM, Gemini, TabbyAPI."""

_PLACES: Final = ("meta", "model_info", "top_provider", "limits", "default_generation_settings", "status", "metadata")
_NUM_CTX: Final = re.compile(r"^\s*num_ctx\s+(\d{1,9})", re.MULTILINE)


@dataclass(slots=True)
class Discovery:
    """The models of one endpoint; `windows` maps each to its context window in tokens, None if unknown.

    `wanted` are the configured models; if it is empty, the endpoint's own list is queried. `listed` are the names of
    the last list, None without one. With `is_described` only the list is queried, once a day.
    """

    family: Family
    base_url: str
    key: str
    client: httpx.AsyncClient
    clocks: Clocks
    windows: dict[str, int | None] = field(default_factory=dict)
    prices: dict[str, Price] = field(default_factory=dict)
    listed: frozenset[str] | None = None
    is_described: bool = False
    problem: str | None = None
    wanted: tuple[str, ...] = ()
    limit_s: float = LIST_LIMIT_S
    has_answered: bool = False
    _is_unsure: bool = False
    _due: float = 0.0
    _asked: float = 0.0
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self._due = self._asked = self.clocks.monotonic()

    async def refresh(self) -> None:
        """Query the endpoint unless the last result is recent. Concurrent callers share one query; errors are kept."""
        async with self._lock:
            if not self.is_due:
                return
            self._is_unsure, self._asked = False, self.clocks.monotonic()
            try:
                async with asyncio.timeout(self.limit_s):
                    await self._ask()
            except (TimeoutError, httpx.HTTPError) as error:
                self.problem = str(error) or type(error).__name__
            except Exception as error:
                # An unexpected answer of one endpoint must not end the task that queries all endpoints.
                log.warning("provider_list_unreadable", url=self.base_url, exc_info=True)
                self.problem = f"the answer cannot be read ({type(error).__name__})"
            self.has_answered = True
            fresh_s = DAY_S if self.is_described else FRESH_S
            self._due = self.clocks.monotonic() + (RETRY_S if self.problem or self._is_unsure else fresh_s)

    def expire(self) -> None:
        """Let the next refresh query the endpoint, unless the last query is very recent."""
        self._due = min(self._due, self._asked + RETRY_S)

    @property
    def no_list(self) -> tuple[str, ...]:
        """Problems that are no defect: not every provider that EXAI describes lists its models to every key."""
        return ("HTTP 404", "HTTP 405") if self.is_described else ()

    @property
    def is_due(self) -> bool:
        """Whether the last result is too old."""
        return self.clocks.monotonic() >= self._due

    async def _ask(self) -> None:
        try:
            entries = _entries(await self._get(f"{self.base_url}/models"))
            self.windows = {name: _window(entry) for name, entry in entries.items()}
            self.prices = {name: price for name, entry in entries.items() if (price := _price(entry)) is not None}
            # A list without models is of no use, and some gateways answer with one.
            self.listed, self.problem = frozenset(entries) or None, None
        except _NoList as error:
            self.problem = str(error)
        if not self.is_described:
            await self._ask_for_windows()

    async def _ask_for_windows(self) -> None:
        """Query server-specific APIs, each one only while a window is unknown."""
        for source in (self._of_models, self._of_llama_cpp, self._of_ollama):
            names = [name for name in (self.wanted or self.windows) if self.windows.get(name) is None]
            if not names:
                return
            async for name, window in source(names):
                self.windows[name] = window
        for name in self.wanted:
            self.windows.setdefault(name, None)

    async def _of_models(self, names: list[str]) -> AsyncIterator[tuple[str, int]]:
        """Yield windows from the additional lists of LM Studio and LiteLLM."""
        for path in (f"{self._origin}/api/v0/models", f"{self.base_url}/model/info"):
            document = await self._document("GET", path)
            entries = document.get("data")
            for entry in entries[:MAX_MODELS] if isinstance(entries, list) else ():
                name = entry.get("id") or entry.get("model_name") if isinstance(entry, dict) else None
                if name in names and (window := _window(entry)) is not None:
                    yield name, window

    async def _of_llama_cpp(self, names: list[str]) -> AsyncIterator[tuple[str, int]]:
        """Yield the window of llama.cpp's one model, which is the context size the server was started with."""
        window = _window(await self._document("GET", f"{self._origin}/props"))
        if window is not None:
            for name in names:
                yield name, window

    async def _of_ollama(self, names: list[str]) -> AsyncIterator[tuple[str, int]]:
        """Yield the windows of Ollama's models: the context size of a loaded model, else that of its model file.

        The training length is not used, because Ollama silently truncates a prompt that exceeds the context size.
        """
        loaded = await self._document("GET", f"{self._origin}/api/ps")
        if not isinstance(loaded.get("models"), list):
            return
        running = {
            known: _window(entry)
            for entry in loaded["models"]
            if isinstance(entry, dict)
            for known in _ollama_names(entry)
        }
        for name in names[:MAX_SHOWN_MODELS]:
            window = running.get(name)
            if window is None:
                shown = await self._document("POST", f"{self._origin}/api/show", {"model": name})
                parameters = shown.get("parameters")
                asked = _NUM_CTX.search(parameters) if isinstance(parameters, str) else None
                window = _plausible(asked[1]) if asked else None
            if window is not None:
                yield name, window
            # The context size is known only once the model is loaded.
            self._is_unsure = self._is_unsure or running.get(name) is None

    @property
    def _origin(self) -> str:
        return self.base_url.removesuffix("/v1")

    async def _document(self, method: str, url: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the JSON object at an address that only some servers have; {} if it does not exist."""
        try:
            document = decode(await self._get(url, method, body))
        except (_NoList, ValueError):
            return {}
        return document if isinstance(document, dict) else {}

    async def _get(self, url: str, method: str = "GET", body: Mapping[str, Any] | None = None) -> bytes:
        headers = headers_for(self.key, "application/json")
        content = None if body is None else orjson.dumps(body)
        async with self.client.stream(method, url, headers=headers, content=content) as response:
            if response.status_code != 200 or response.headers.get("content-encoding", "identity") != "identity":
                raise _NoList(f"HTTP {response.status_code}")
            received = b""
            async for chunk in response.aiter_raw():
                received += chunk
                if len(received) > MAX_LIST_BYTES:
                    raise _NoList(f"more than {MAX_LIST_BYTES:,} bytes")
            return received


class _NoList(Exception):
    """The endpoint's list of models is in an unknown form."""


def read_list(body: bytes) -> frozenset[str] | None:
    """Return the names in a list of models; None for a body that is none, or lists nothing."""
    try:
        return frozenset(_entries(body)) or None
    except _NoList:
        return None


def _entries(body: bytes) -> dict[str, Mapping[str, Any]]:
    try:
        document = decode(body)
    except ValueError:
        raise _NoList("not JSON") from None
    entries = document.get("data") if isinstance(document, dict) else document
    if not isinstance(entries, list):
        raise _NoList("no list of models")
    named = [entry for entry in entries if isinstance(entry, dict) and _is_name(entry.get("id"))]
    return {entry["id"]: entry for entry in named[:MAX_MODELS]}


def _price(entry: Mapping[str, Any]) -> Price | None:
    """Return the price that OpenRouter states with a model, in dollars per token."""
    pricing = entry.get("pricing")
    if not isinstance(pricing, Mapping):
        return None
    given, output = _dollars(pricing.get("prompt")), _dollars(pricing.get("completion"))
    if given is None or output is None:
        return None
    cached = _dollars(pricing.get("input_cache_read"))
    return Price(given, output, given if cached is None else cached)


def _dollars(value: object) -> Decimal | None:
    """Return dollars per million tokens; None for no amount, and for -1, which stands for a price that varies."""
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        return None
    try:
        amount = Decimal(str(value)[:MAX_NAME_CHARS])
    except InvalidOperation:
        return None
    return amount * TOKENS_PER_PRICE if amount.is_finite() and 0 <= amount <= 1 else None


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME_CHARS and value.isprintable()


def _window(entry: Mapping[str, Any]) -> int | None:
    """Return the smallest window in an entry, at its top level or in one of the known fields."""
    loaded = _plausible(entry.get(_WINDOW_FIELDS[0]))
    return loaded or min(_named_windows(entry), default=None)


def _named_windows(entry: Mapping[str, Any]) -> Iterator[int]:
    for place in (entry, *(entry.get(name) for name in _PLACES)):
        if isinstance(place, Mapping):
            yield from filter(None, (_plausible(place.get(name)) for name in _WINDOW_FIELDS))


def _plausible(value: object) -> int | None:
    window = tokens(value)
    return window if window >= _MIN_WINDOW else None


def _ollama_names(entry: Mapping[str, Any]) -> Iterator[str]:
    for name in (entry.get("name"), entry.get("model")):
        if isinstance(name, str):
            yield name
            yield name.removesuffix(":latest")
