"""One exchange with a provider: one POST, the reading of its stream, and the error for whatever goes wrong in it.

Nothing is retried here. Leaving in any way, cancellation included, closes the upstream response; httpx stops at this
edge. The limits: connecting, the first piece of the answer, the gap between pieces, and the sizes named below; the
request's deadline is the caller's to keep.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Mapping
from typing import Final, Literal

import httpx

from exai import __version__
from exai.addresses import is_loopback
from exai.config import ProvidersSettings
from exai.errors import Overloaded, ProviderBroken, ProviderError, ProviderUnavailable
from exai.models import Recorder
from exai.providers.answer import Answer, ErrorInStream, UnusableAnswer
from exai.providers.base import Call, Clocks, Family
from exai.providers.failures import (
    clean_request_id,
    decode_body,
    error_of,
    parse_retry_after,
    read_failure,
    safe_excerpt,
    verdict_of,
)
from exai.providers.sse import Event, EventTooLarge, SseParser
from exai.resilience import Attempt, expiry

MAX_CONNECTIONS: Final = 100
KEEPALIVE_S: Final = 15.0
MAX_EVENT_BYTES: Final = 1_048_576
MAX_WIRE_BYTES: Final = 256 * 1_048_576
"""The framing around each token is fifty times the token, so a stream may be far larger than its answer."""

MAX_ERROR_BYTES: Final = 65_536
ERROR_BODY_S: Final = 5.0
TAIL_S: Final = 5.0
"""How long usage may follow the finish reason."""

DRAIN_S: Final = 0.25
"""How long the server may take to end the response after its last event; ended responses free their connection."""

_CAUSES_EXAMINED: Final = 8

Phase = Literal["first", "stream", "tail", "drain"]


def open_client(base_url: str, settings: ProvidersSettings, verify: ssl.SSLContext) -> httpx.AsyncClient:
    """Return a client for one provider, so that a hung one cannot take the connections of the others.

    Proxies come from the environment as usual, except on the way to this machine itself.
    """
    return httpx.AsyncClient(
        verify=verify,
        trust_env=not is_loopback(httpx.URL(base_url).host),
        follow_redirects=False,
        timeout=httpx.Timeout(None, connect=settings.connect_timeout_s, pool=settings.connect_timeout_s),
        limits=httpx.Limits(max_connections=MAX_CONNECTIONS, keepalive_expiry=KEEPALIVE_S),
    )


def headers_for(key: str, accept: str) -> dict[str, str]:
    """Headers of every request; compression is declined because its result has no size until it is unpacked."""
    headers = {
        "Accept": accept,
        "Accept-Encoding": "identity",
        "Content-Type": "application/json",
        "User-Agent": f"exai/{__version__}",
    }
    return headers | {"Authorization": f"Bearer {key}"} if key else headers


class Exchange:
    """The transport over HTTP to one provider; `client` belongs to the caller."""

    def __init__(
        self,
        family: Family,
        client: httpx.AsyncClient,
        *,
        base_url: str,
        key: str,
        settings: ProvidersSettings,
        recorder: Recorder,
        clocks: Clocks,
    ) -> None:
        self._family, self._client, self._key = family, client, key
        self._url = f"{base_url}/chat/completions"
        self._headers = headers_for(key, "text/event-stream")
        self._settings, self._recorder, self._clocks = settings, recorder, clocks

    async def run(self, call: Call, attempt: Attempt) -> None:
        """Fill `call.answer`; when this returns, the provider has said that it is whole."""
        scope = asyncio.timeout(self._settings.first_token_timeout_s)
        started = self._clocks.monotonic()
        responded = False
        try:
            async with (
                scope,
                self._client.stream("POST", self._url, content=call.body, headers=self._headers) as response,
            ):
                responded = True
                await self._check(response, call, scope)
                await self._read(response, call, scope, attempt, started)
        except TimeoutError:
            if not scope.expired():
                raise
            if not call.answer.whole:
                raise self._too_slow(call) from expiry(scope, self._family.name)
        except httpx.PoolTimeout as error:
            raise Overloaded(f"connections to {self._family.name}", MAX_CONNECTIONS) from error
        except httpx.TransportError as error:
            if not call.answer.whole:
                raise self._lost(call, error, responded=responded) from error
        except EventTooLarge as error:
            raise self._broken(call, f"an event of the stream is larger than {MAX_EVENT_BYTES:,} bytes") from error
        except UnusableAnswer as error:
            raise self._broken(call, str(error)) from error
        except ErrorInStream as error:
            raise self._error_in_stream(call, error) from None
        if not call.answer.whole:
            raise self._broken(call, "the stream ended before the answer did", may_repeat=True)

    async def _check(self, response: httpx.Response, call: Call, scope: asyncio.Timeout) -> None:
        """Return if an event stream follows, otherwise raise what the reply means."""
        headers = response.headers
        call.request_id = next(filter(None, map(clean_request_id, self._request_ids(headers))), None)
        call.retry_after_s = parse_retry_after(headers.get("retry-after"), self._clocks.now())
        status = response.status_code
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        plain = headers.get("content-encoding", "identity").strip().lower() == "identity"
        if status == 200 and plain and media_type == "text/event-stream":
            return
        if 300 <= status < 400:
            raise self._broken(call, f"HTTP {status} redirects elsewhere", "Set the base URL it redirects to", status)
        if status == 200 and not plain:
            raise self._broken(call, "the reply is compressed although that was declined", status=status)
        # The body has a limit of its own, so that the status is not lost to a body that never ends.
        scope.reschedule(None)
        document, seen = decode_body(await self._error_body(response)) if plain else (None, "")
        failure = read_failure(document, status=status, request_id=call.request_id, retry_after_s=call.retry_after_s)
        words = self._excerpt(call, failure.message or seen)
        if verdict_of(self._family, failure) is None:
            kind = media_type if media_type.isascii() and len(media_type) < 60 else "something else"
            said = f": {words}" if words else ""
            problem = f"HTTP {status} with {kind or 'no content type'} instead of an event stream{said}"
            raise self._broken(call, problem, "Check the provider's base URL", status)
        raise error_of(self._family, failure, words)

    def _request_ids(self, headers: Mapping[str, str]) -> list[str | None]:
        return [headers.get(name) for name in self._family.request_id_headers]

    async def _error_body(self, response: httpx.Response) -> bytes:
        """As much of an error's body as comes quickly; the status alone is enough to go on."""
        body = b""
        try:
            async with asyncio.timeout(min(ERROR_BODY_S, self._settings.gap_timeout_s)):
                async for chunk in response.aiter_raw():
                    body += chunk
                    if len(body) >= MAX_ERROR_BYTES:
                        break
        except (TimeoutError, httpx.TransportError):
            pass
        return body[:MAX_ERROR_BYTES]

    async def _read(
        self, response: httpx.Response, call: Call, scope: asyncio.Timeout, attempt: Attempt, started: float
    ) -> None:
        parser = SseParser(MAX_EVENT_BYTES)
        armed: Phase = "first"
        wire_bytes = 0
        async for chunk in response.aiter_raw():
            wire_bytes += len(chunk)
            if wire_bytes > MAX_WIRE_BYTES:
                raise UnusableAnswer(f"the stream is larger than {MAX_WIRE_BYTES:,} bytes")
            if not call.answer.done:
                for event in parser.feed(chunk):
                    await self._hear(event, call, scope, attempt, started)
            armed = self._arm(scope, call.answer, armed)
        for event in parser.close():
            await self._hear(event, call, scope, attempt, started)

    async def _hear(self, event: Event, call: Call, scope: asyncio.Timeout, attempt: Attempt, started: float) -> None:
        before = call.answer.started
        delta = call.answer.take(event)
        if delta is None:
            return
        if not before:
            attempt.answered()
            self._recorder.observe(
                "provider_first_token_seconds",
                self._clocks.monotonic() - started,
                provider=self._family.name,
                model=call.model.label,
            )
        if call.on_delta is not None:
            # The time the caller takes over a piece is not the provider's.
            scope.reschedule(None)
            await call.on_delta(delta)

    def _arm(self, scope: asyncio.Timeout, answer: Answer, armed: Phase) -> Phase:
        """Set the limit for what is awaited next. The last two are set once: a server that drips cannot extend them."""
        now = asyncio.get_running_loop().time()
        if answer.done or answer.finish_reason is not None:
            phase: Phase = "drain" if answer.done else "tail"
            if phase != armed or scope.when() is None:
                scope.reschedule(now + (DRAIN_S if answer.done else TAIL_S))
            return phase
        if answer.started:
            scope.reschedule(now + self._settings.gap_timeout_s)
            return "stream"
        return "first"

    def _too_slow(self, call: Call) -> ProviderError:
        if call.answer.started:
            return self._broken(call, f"the answer stopped: nothing for {self._settings.gap_timeout_s:g} s")
        # The provider has the request and may be working on it: asking again would only double its load.
        call.may_repeat = False
        return ProviderUnavailable(
            self._family.name,
            f"no answer began within {self._settings.first_token_timeout_s:g} s",
            "Try again, or use a model of another provider",
            request_id=call.request_id,
        )

    def _lost(self, call: Call, error: httpx.TransportError, *, responded: bool) -> ProviderError:
        if responded:
            return self._broken(call, f"the connection broke during the answer ({_reason(error)})", may_repeat=True)
        return ProviderUnavailable(
            self._family.name,
            f"cannot be reached at {httpx.URL(self._url).host} ({_reason(error)})",
            "Check the network, the proxy settings and the base URL",
        )

    def _error_in_stream(self, call: Call, error: ErrorInStream) -> ProviderError:
        request_id = call.request_id or call.answer.request_id
        failure = read_failure(error.document, status=None, request_id=request_id)
        if verdict_of(self._family, failure) is None or call.answer.started:
            names = " ".join(name for name in (failure.kind, failure.code) if name)
            words = self._excerpt(call, failure.message)
            return self._broken(call, "an error came instead of the answer's end" + _colon(names) + _colon(words))
        return error_of(self._family, failure, self._excerpt(call, failure.message))

    def _broken(
        self,
        call: Call,
        problem: str,
        cure: str = "Try again, or use a model of another provider",
        status: int | None = None,
        *,
        may_repeat: bool = False,
    ) -> ProviderBroken:
        call.may_repeat = may_repeat
        request_id = call.request_id or call.answer.request_id
        return ProviderBroken(
            self._family.name, problem, cure, status=status, request_id=request_id, partial=call.answer.content
        )

    def _excerpt(self, call: Call, message: str) -> str:
        return safe_excerpt(message, call.request.messages, self._key)


def _reason(error: BaseException) -> str:
    """What the operating system or TLS says at the bottom of httpx's error, in a few words."""
    reason = type(error).__name__
    cause: BaseException | None = error
    for _ in range(_CAUSES_EXAMINED):
        if cause is None:
            break
        if isinstance(cause, ssl.SSLError):
            return cause.reason or "TLS error"
        if isinstance(cause, OSError) and cause.strerror:
            # asyncio puts its own sentence, with the address, where the system's word would be; resolvers do not.
            return os.strerror(cause.errno) if cause.errno and cause.errno > 0 else cause.strerror
        cause = cause.__cause__ or cause.__context__
    return reason


def _colon(text: str) -> str:
    return f": {text}" if text else ""
