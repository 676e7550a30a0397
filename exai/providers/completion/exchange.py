"""Exchange one request with a provider: send one POST, read its stream, and translate every failure.

Nothing is retried here. Every exit, including cancellation, closes the upstream response. No httpx type leaves this
module. There are limits for connecting, for the first piece of the answer, for the gap between pieces, and for the
sizes below. The caller enforces the request's deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import httpx

from exai.errors import (
    ProviderAuthFailed,
    ProviderBroken,
    ProviderError,
    ProviderLimited,
    ProviderTooLong,
    ProviderUnavailable,
    ProviderUnreachable,
)
from exai.models import Delta, Recorder
from exai.providers.base import Clocks, Family, ProviderCall, ProviderRefusal
from exai.providers.completion.failures import (
    Failure,
    clean_request_id,
    decode_body,
    error_of,
    parse_retry_after,
    read_failure,
    safe_excerpt,
    verdict_of,
)
from exai.providers.completion.http_client import headers_for, reason_of
from exai.providers.completion.windows import too_long
from exai.providers.network.limits import MovingLimit
from exai.providers.reply.answer import ErrorInStream, UnusableAnswer
from exai.providers.reply.bodies import MAX_FOREIGN_BYTES, Body, BodyTooLarge, BrokenCompression, Unpacker
from exai.providers.reply.sse import EventTooLarge
from exai.resilience import Attempt, expiry
from exai.settings.load import ProvidersSettings

MAX_EVENT_BYTES: Final = 1_048_576
MAX_WIRE_BYTES: Final = 256 * 1_048_576
"""Maximum size of a stream, which far exceeds its answer: the framing of a token is about fifty times its size."""

MAX_ERROR_BYTES: Final = 65_536
ERROR_BODY_S: Final = 5.0
TAIL_S: Final = 5.0
"""How long usage may follow the finish reason."""

DRAIN_S: Final = 0.25
"""How long the server may take to end the response after its last event; ended responses free their connection."""

ALIVE_PAUSE_S: Final = 10.0
"""Interval between reports of a provider that sends bytes but no text."""

GOOD_STATUSES: Final = range(200, 204)
READABLE_ENCODINGS: Final = frozenset({"", "identity", "gzip", "x-gzip", "deflate"})

ReadPhase = Literal["first", "stream", "tail", "drain", "delivery"]


@dataclass(slots=True)
class _ReplyState:
    """Progress of reading one reply; `armed` is the phase whose timeout is running."""

    call: ProviderCall
    attempt: Attempt
    limit: MovingLimit
    started: float
    armed: ReadPhase = "first"
    has_begun: bool = False
    pieces: int = 0
    first_piece_at: float = 0.0
    last_piece_at: float = 0.0
    is_over: bool = False
    reported_at: float = field(init=False)

    def __post_init__(self) -> None:
        self.reported_at = self.started


class HttpTransport:
    """The HTTP transport to one provider; the caller closes `client`."""

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

    async def run(self, call: ProviderCall, attempt: Attempt) -> None:
        """Fill `call.answer`; it is complete when this returns.

        If the connection or the provider failed after the answer but before the stream's end, `call.answer.lost` is the
        reason.
        """
        scope = asyncio.timeout(None)
        limit = MovingLimit(scope)
        limit.move(asyncio.get_running_loop().time() + self._settings.first_token_timeout_s)
        reading = _ReplyState(call, attempt, limit, self._clocks.monotonic())
        responded = False
        try:
            with closing(limit):
                async with (
                    scope,
                    self._client.stream("POST", self._url, content=call.body, headers=self._headers) as response,
                ):
                    responded = True
                    await self._read_whole(response, reading, await self._check(response, call, limit))
        except TimeoutError:
            if not scope.expired():
                raise
            if not call.answer.whole:
                raise self._too_slow(call) from expiry(scope, self._family.name)
            self._end_is_missing(call, "the stream did not end")
        except httpx.TransportError as error:
            if not call.answer.whole:
                raise self._lost(call, error, responded=responded) from error
            self._end_is_missing(call, f"the connection broke ({reason_of(error)})")
        reading.is_over = True
        await self._deliver_piece(call.answer.settle(), reading)
        if not call.answer.whole:
            unread = call.answer.unread
            facts = f"; {unread} of its events could not be read" if unread else ""
            raise self._broken(call, f"the stream ended before the answer did{facts}", may_repeat=not unread)

    def _end_is_missing(self, call: ProviderCall, reason: str) -> None:
        if not call.answer.done:
            call.answer.lost = reason

    async def _check(self, response: httpx.Response, call: ProviderCall, limit: MovingLimit) -> Body:
        """Return a reader of the body if it may hold an answer; otherwise raise the error that the reply stands for."""
        headers = response.headers
        call.request_id = next(filter(None, map(clean_request_id, self._request_ids(headers))), None)
        call.retry_after_s = parse_retry_after(headers.get("retry-after"), self._clocks.now())
        status = response.status_code
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if 300 <= status < 400:
            raise self._broken(call, f"HTTP {status} redirects elsewhere", "Set the base URL it redirects to", status)
        readable = encoding in READABLE_ENCODINGS
        if status in GOOD_STATUSES and not readable:
            raise self._broken(call, "the reply is compressed although that was declined", status=status)
        body = Body(_media_type(response), encoding, max_event_bytes=MAX_EVENT_BYTES, max_bytes=MAX_WIRE_BYTES)
        if status in GOOD_STATUSES:
            return body
        # The body has its own timeout, so that a body that never ends does not hide the status.
        limit.move(None)
        raise self._refusal(response, call, await self._error_body(response, encoding) if readable else b"")

    def _refusal(self, response: httpx.Response, call: ProviderCall, body: bytes) -> ProviderError:
        """Return the error that a reply without an answer stands for."""
        status = response.status_code
        document, seen = decode_body(body)
        failure = read_failure(document, status=status, request_id=call.request_id, retry_after_s=call.retry_after_s)
        failure = replace(failure, message=failure.message or seen)
        words = self._excerpt(call, failure.message)
        if verdict_of(self._family, failure) is None:
            media_type = _media_type(response)
            kind = media_type if media_type.isascii() and len(media_type) < 60 else "something else"
            said = f": {words}" if words else ""
            problem = f"HTTP {status} with {kind or 'no content type'} instead of an event stream{said}"
            return self._broken(call, problem, "Check the provider's base URL", status)
        return self._meaning(call, failure, words)

    def _meaning(self, call: ProviderCall, failure: Failure, words: str) -> ProviderError:
        """Return the error for a failure; `call.refusal` receives the parameters it refuses, for the next request."""
        error = error_of(self._family, failure, words)
        if (long := too_long(failure)) is not None:
            return ProviderTooLong(
                error.provider,
                error.problem,
                "Send less, or use a model with a larger window",
                status=error.status,
                request_id=error.request_id,
                limit_tokens=long.limit_tokens,
                sent_tokens=long.sent_tokens,
            )
        if not isinstance(error, ProviderAuthFailed | ProviderLimited):
            call.refusal = ProviderRefusal(failure.status, failure.message, failure.params)
        return error

    def _request_ids(self, headers: Mapping[str, str]) -> list[str | None]:
        return [headers.get(name) for name in self._family.request_id_headers]

    async def _error_body(self, response: httpx.Response, encoding: str) -> bytes:
        """Read the body of an error within its limits; it may be incomplete, because the status alone suffices."""
        body = b""
        unpacker = Unpacker(encoding)
        try:
            async with asyncio.timeout(min(ERROR_BODY_S, self._settings.stream_idle_timeout_s)):
                async for chunk in response.aiter_raw():
                    for piece in unpacker.feed(chunk):
                        body += piece
                        if len(body) >= MAX_ERROR_BYTES:
                            return body[:MAX_ERROR_BYTES]
        except (TimeoutError, httpx.TransportError, BrokenCompression):
            pass
        return body + unpacker.end()

    async def _read_whole(self, response: httpx.Response, reading: _ReplyState, body: Body) -> None:
        """Read the answer to the end of the body; translate violations of its format into errors."""
        call = reading.call
        try:
            await self._read(response, reading, body)
        except EventTooLarge as error:
            raise self._broken(call, f"an event of the stream is larger than {MAX_EVENT_BYTES:,} bytes") from error
        except BodyTooLarge as error:
            raise self._broken(call, f"the stream is larger than {MAX_WIRE_BYTES:,} bytes") from error
        except BrokenCompression as error:
            raise self._broken(call, "the reply is not compressed as its header says") from error
        except UnusableAnswer as error:
            raise self._broken(call, str(error)) from error
        except ErrorInStream as error:
            failed = self._error_in_stream(call, error)
            if not call.answer.whole:
                raise failed from None
            self._end_is_missing(call, failed.problem)

    async def _read(self, response: httpx.Response, reading: _ReplyState, body: Body) -> None:
        answer = reading.call.answer
        async for chunk in response.aiter_raw():
            alive = body.alive
            for event in body.feed(chunk):
                if (delta := answer.take(event)) is not None:
                    await self._deliver_piece(delta, reading)
            if body.form == "foreign" and len(body.foreign) >= MAX_FOREIGN_BYTES:
                break
            if body.alive > alive and not answer.started:
                await self._report_alive(reading)
            self._arm(reading, is_alive=body.alive > alive)
        for event in body.close():
            await self._deliver_piece(answer.take(event), reading)
        self._record_gap(reading)
        if body.foreign or (body.form != "events" and not answer.whole):
            raise self._refusal(response, reading.call, body.foreign)
        if body.is_one_document:
            answer.done = True
        is_framed = "content-length" in response.headers or "transfer-encoding" in response.headers
        if not body.ended or (answer.goes_on and not is_framed):
            self._end_is_missing(reading.call, "the stream ended without its end marker")

    async def _deliver_piece(self, delta: Delta | None, reading: _ReplyState) -> None:
        """Deliver a piece of the answer to the caller, and record the time of the first one."""
        call = reading.call
        if delta is None:
            return
        if not reading.has_begun:
            reading.has_begun = True
            reading.first_piece_at = self._clocks.monotonic()
            reading.attempt.answered()
            self._recorder.observe(
                "provider_first_token_seconds",
                self._clocks.monotonic() - reading.started,
                provider=self._family.name,
                model=call.model.label,
            )
        reading.pieces += 1
        reading.last_piece_at = self._clocks.monotonic()
        await self._deliver(delta, reading)

    def _record_gap(self, reading: _ReplyState) -> None:
        """Record the mean time between two pieces of an answer; a piece is about one token."""
        if reading.pieces > 1:
            gap_s = (reading.last_piece_at - reading.first_piece_at) / (reading.pieces - 1)
            labels = {"provider": self._family.name, "model": reading.call.model.label}
            self._recorder.observe("provider_token_gap_seconds", gap_s, **labels)

    async def _report_alive(self, reading: _ReplyState) -> None:
        """Report periodically to the caller that a model that has sent no text yet is still working."""
        now = self._clocks.monotonic()
        if now - reading.reported_at >= ALIVE_PAUSE_S:
            reading.reported_at = now
            waited_s = now - reading.started
            await self._deliver(Delta(note=f"{self._family.name} has been at work for {waited_s:.0f} s"), reading)

    async def _deliver(self, delta: Delta, reading: _ReplyState) -> None:
        if reading.call.on_delta is not None:
            # The caller's time to process a piece does not count towards the provider's limit.
            if not reading.is_over:
                reading.armed = "delivery"
                reading.limit.move(None)
            await reading.call.on_delta(delta)

    def _arm(self, reading: _ReplyState, *, is_alive: bool) -> None:
        """Set the timeout of the next phase.

        After the finish reason, further bytes do not extend the timeout, so a server cannot delay the end. Before the
        first piece each line extends it, so that a model that reasons without output may use the request's whole time.
        """
        now = asyncio.get_running_loop().time()
        answer, armed = reading.call.answer, reading.armed
        phase: ReadPhase = "first"
        limit_s = self._settings.first_token_timeout_s
        if answer.done:
            phase, limit_s = "drain", DRAIN_S
        elif answer.finish_reason is not None:
            is_sure = not (answer.may_go_on or answer.goes_on)
            phase, limit_s = "tail", TAIL_S if is_sure else self._settings.stream_idle_timeout_s
            is_alive = is_alive and not is_sure
        elif answer.started:
            phase, limit_s, is_alive = "stream", self._settings.stream_idle_timeout_s, True
        if phase != armed or (is_alive and phase != "drain"):
            reading.armed = phase
            reading.limit.move(now + limit_s)

    def _too_slow(self, call: ProviderCall) -> ProviderError:
        if call.answer.started:
            return self._broken(call, f"the answer stopped: nothing for {self._settings.stream_idle_timeout_s:g} s")
        # The provider has received the request and may be processing it, so a retry would only double its load.
        call.may_repeat = False
        return ProviderUnavailable(
            self._family.name,
            f"no answer began within {self._settings.first_token_timeout_s:g} s",
            "Try again, or use a model of another provider",
            request_id=call.request_id,
        )

    def _lost(self, call: ProviderCall, error: httpx.TransportError, *, responded: bool) -> ProviderError:
        if responded:
            return self._broken(call, f"the connection broke during the answer ({reason_of(error)})", may_repeat=True)
        return ProviderUnreachable(
            self._family.name,
            f"cannot be reached at {httpx.URL(self._url).host} ({reason_of(error)})",
            "Check the network, the proxy settings and the base URL",
        )

    def _error_in_stream(self, call: ProviderCall, error: ErrorInStream) -> ProviderError:
        request_id = call.request_id or call.answer.request_id
        failure = read_failure(error.document, status=None, request_id=request_id)
        is_known = verdict_of(self._family, failure) is not None or too_long(failure) is not None
        if not is_known or call.answer.started:
            names = " ".join(name for name in (failure.kind, failure.code) if name)
            words = self._excerpt(call, failure.message)
            return self._broken(call, "an error came instead of the answer's end" + _colon(names) + _colon(words))
        return self._meaning(call, failure, self._excerpt(call, failure.message))

    def _broken(
        self,
        call: ProviderCall,
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

    def _excerpt(self, call: ProviderCall, message: str) -> str:
        return safe_excerpt(message, call.request.messages, self._key)


def _media_type(response: httpx.Response) -> str:
    media_type: str = response.headers.get("content-type", "")
    return media_type.partition(";")[0].strip().lower()


def _colon(text: str) -> str:
    return f": {text}" if text else ""
