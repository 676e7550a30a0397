"""The Streamable HTTP transport: one POST carries one message; the answer is JSON or a stream of events.

Invariant: no state outlives a request, so any daemon may serve the next one. An early answer is plain JSON; a late one,
or one with progress, is a stream that is never silent. A client that disconnects cancels its call.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import structlog
from starlette.types import Receive, Scope
from starlette.types import Send as AsgiSend

from exai.account import Account
from exai.errors import Overloaded
from exai.mcp.admission import Rejection, expired, header_map, too_many
from exai.mcp.core import jsonrpc, versions
from exai.mcp.core.directories import directory_of
from exai.mcp.core.jsonrpc import Fault, JsonRpcMessage, Malformed, RpcError
from exai.mcp.core.protocol import Ignore, Send, Start
from exai.mcp.identity import Admitted
from exai.mcp.server import McpServer
from exai.mcp.session.session import Session
from exai.mcp.transport.extensions import abort_of, peer_of
from exai.mcp.transport.http.headers import agent_of, legacy_version
from exai.mcp.transport.metering import SLICE_BYTES
from exai.mcp.transport.pending import admit
from exai.tracing import TRACE_PARENT

BODY_PATIENCE = 6.0
"""Timeout of a body as a multiple of that of a head: a body has up to 8 MiB."""

JSON_TYPE = b"application/json"
STREAM_TYPE = b"text/event-stream"
_COMMENT = b":\n\n"

_STATUS = {
    jsonrpc.PARSE_ERROR: 400,
    jsonrpc.INVALID_REQUEST: 400,
    versions.HEADER_MISMATCH: 400,
    versions.MISSING_CAPABILITY: 400,
    versions.UNSUPPORTED_VERSION: 400,
    versions.OVERLOADED: 429,
    versions.SHUTTING_DOWN: 503,
}
_OWN_STATUS = {**_STATUS, jsonrpc.METHOD_NOT_FOUND: 404, jsonrpc.INVALID_PARAMS: 400}

_OVER_RATE = Rejection(
    429, "beyond EXAI_SERVER__OWNER_REQUESTS_PER_S or EXAI_SERVER__OWNER_BYTES_PER_S", ((b"retry-after", b"1"),)
)

log = structlog.get_logger(__name__)


class Gone(Exception):
    """The client disconnected."""


@dataclass(frozen=True, slots=True)
class _Posted:
    """One message as received, and the kinds of answer its client accepts."""

    message: JsonRpcMessage
    size_bytes: int
    accept: str


class StreamableHttp:
    """The ASGI application of the MCP endpoint."""

    def __init__(self, server: McpServer) -> None:
        self._server = server
        # Interval of keep-alive comments: several clients close a stream that is silent for some minutes.
        self.quiet_s = server.settings.progress_interval_s

    async def __call__(self, scope: Scope, receive: Receive, send: AsgiSend) -> None:
        """Serve one request."""
        reply = HttpReply(send, abort_of(scope), self._server.settings.send_timeout_s)
        headers = header_map(scope["headers"])
        try:
            admitted = await self._server.edge.admit(scope)
            if isinstance(admitted, Rejection):
                await reply.text(admitted)
                return
            admit(scope.get("state"))
            with self._server.quotas.of(admitted.owner).hold_connection():
                await self._exchange(scope, headers, admitted, receive, reply)
        except Overloaded as error:
            await reply.text(too_many(error))
        except Gone:
            return
        except TimeoutError:
            await reply.text(Rejection(408, "the body did not arrive in time"))

    async def _exchange(
        self, scope: Scope, headers: dict[str, str], admitted: Admitted, receive: Receive, reply: HttpReply
    ) -> None:
        """Read one message and answer it."""
        rejection = unfit(scope["method"], headers, self._server.settings.message_max_bytes)
        quota = self._server.quotas.of(admitted.owner)
        body = b"" if rejection is not None else await self._body(receive, quota.account)
        if body is None:
            rejection = Rejection(413, "the message is larger than EXAI_SERVER__MESSAGE_MAX_BYTES")
        if rejection is not None or body is None:
            await reply.text(rejection or Rejection(400, "no body"))
            return
        # Parsing blocks the event loop, so the time for a long body is charged to its owner, whose request then waits.
        began_s = time.thread_time()
        message = jsonrpc.parse(body)
        if len(body) > SLICE_BYTES and (pause_s := quota.charge_time(time.thread_time() - began_s)):
            with quota.account.hold(len(body), "messages that arrive"):
                await asyncio.sleep(pause_s)
        session = await self._session(message, headers, admitted, peer_of(scope), reply)
        if session is not None:
            posted = _Posted(message, len(body), headers.get("accept", "*/*"))
            await self._serve(session, posted, receive, reply)

    async def _body(self, receive: Receive, account: Account) -> bytes | None:
        """Read the whole body, counted as it arrives; None if it is too large. Raises `Overloaded`."""
        limit = self._server.settings.message_max_bytes
        body = bytearray()
        held_bytes = 0
        try:
            async with asyncio.timeout(BODY_PATIENCE * self._server.settings.handshake_timeout_s):
                while True:
                    event = await receive()
                    if event["type"] == "http.disconnect":
                        raise Gone
                    body += event.get("body", b"")
                    if len(body) > limit:
                        return None
                    if not event.get("more_body", False):
                        return bytes(body)
                    account.take(len(body) - held_bytes, "messages that arrive")
                    held_bytes = len(body)
        finally:
            account.give(held_bytes)

    async def _session(
        self, message: JsonRpcMessage, headers: dict[str, str], admitted: Admitted, peer: str, reply: HttpReply
    ) -> Session | None:
        """Open a session in the request's revision, or refuse a request whose headers contradict its body."""
        try:
            version = legacy_version(headers, message)
        except RpcError as error:
            found = message.id if isinstance(message, jsonrpc.Request | Malformed) else None
            fault = Fault(error.code, error.data)
            await reply.json(status_of(fault, from_method=False), jsonrpc.encode_error(found, error))
            return None
        session = self._server.open_session(admitted, peer=peer, version=version)
        session.connection.client, session.connection.directory = agent_of(headers), directory_of(headers)
        session.connection.trace_parent = headers.get(TRACE_PARENT, "")
        return session

    async def _serve(self, session: Session, posted: _Posted, receive: Receive, reply: HttpReply) -> None:
        await self._while_there(session, receive, self._answer(session, posted, reply))

    async def go_on(self, session: Session, receive: Receive, reply: HttpReply) -> None:
        """Answer with a stream: a call that started without one takes long."""
        with contextlib.suppress(Gone):
            await self._while_there(session, receive, self._stream(session, None, reply))

    async def _while_there(self, session: Session, receive: Receive, answering: Coroutine[Any, Any, None]) -> None:
        """Run `answering`, then end the session. If the client disconnects first, the session's calls are cancelled."""
        gone = asyncio.create_task(_wait_until_gone(receive, session), name="mcp http disconnect")
        try:
            await answering
        finally:
            gone.cancel()
            await asyncio.wait({gone})
            await session.end()

    async def _answer(self, session: Session, posted: _Posted, reply: HttpReply) -> None:
        if session.outbox.is_closed:
            await reply.text(expired())
            return
        action, is_within_rate = await session.receive(posted.message, posted.size_bytes)
        if isinstance(action, Ignore):
            await (reply.empty(202) if is_within_rate else reply.text(_OVER_RATE))
            return
        # Without a call the answer is the protocol's own, whose errors have HTTP statuses of their own.
        from_method = isinstance(action, Start)
        may_stream = takes_streams(posted.accept)
        if session.connection.listening:
            await self._stream(session, None, reply)
            return
        first = await self._first(session, wait_s=self.quiet_s if may_stream else None)
        # Plain JSON only for the final answer: a first message before it, such as progress, begins a stream.
        if first is not None and not session.connection.in_flight and not len(session.outbox):
            await reply.json(status_of(first.error, from_method=from_method), first.data, retry_after(first.error))
        elif not may_stream:
            await self._only_answer(session, first, reply)
        else:
            await self._stream(session, first, reply)

    async def _first(self, session: Session, wait_s: float | None) -> Send | None:
        """Return the first message, or None if it does not come within `wait_s`; a stream then starts without it."""
        try:
            async with asyncio.timeout(wait_s):
                message = await session.outbox.get()
        except TimeoutError:
            return None
        if message is None:
            raise Gone
        return message

    async def _only_answer(self, session: Session, message: Send | None, reply: HttpReply) -> None:
        """Send the answer without progress, for a client that does not accept streams."""
        while message is None or session.connection.in_flight or len(session.outbox):
            message = await session.outbox.get()
            if message is None:
                raise Gone
        await reply.json(status_of(message.error, from_method=True), message.data)

    async def _stream(self, session: Session, first: Send | None, reply: HttpReply) -> None:
        await reply.begin_stream()
        message = first
        while True:
            await reply.event(message.data if message is not None else None)
            if not len(session.outbox) and not session.connection.in_flight and not session.connection.listening:
                break
            try:
                async with asyncio.timeout(self.quiet_s):
                    message = await session.outbox.get()
            except TimeoutError:
                message = None
                continue
            if message is None:
                break
        await reply.end_stream()


class HttpReply:
    """One HTTP answer. Every send has a timeout, and a client that does not read is disconnected."""

    def __init__(self, send: AsgiSend, abort: Callable[[], None], timeout_s: float) -> None:
        self._send = send
        self._abort = abort
        self._timeout_s = timeout_s

    async def json(self, status: int, data: bytes, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        """Answer with one message."""
        await self._whole(status, data, JSON_TYPE, headers)

    async def text(self, rejection: Rejection) -> None:
        """Answer with plain text."""
        await self._whole(rejection.status, rejection.text.encode(), b"text/plain; charset=utf-8", rejection.headers)

    async def empty(self, status: int) -> None:
        """Answer without a body."""
        await self._start(status, ((b"content-length", b"0"),))
        await self._body(b"", more=False)

    async def begin_stream(self) -> None:
        """Begin a stream of events."""
        headers = ((b"content-type", STREAM_TYPE), (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no"))
        await self._start(200, headers)

    async def event(self, data: bytes | None) -> None:
        """Send one message as an event, or for None a comment that keeps the stream alive."""
        await self._body(_COMMENT if data is None else b"event: message\ndata: " + data + b"\n\n", more=True)

    async def end_stream(self) -> None:
        """End the stream."""
        await self._body(b"", more=False)

    async def _whole(
        self, status: int, data: bytes, kind: bytes, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        closing = ((b"connection", b"close"),) if status == 408 else ()
        size = (b"content-length", str(len(data)).encode())
        await self._start(status, ((b"content-type", kind), size, *closing, *headers))
        await self._body(data, more=False)

    async def _start(self, status: int, headers: tuple[tuple[bytes, bytes], ...]) -> None:
        await self._send_bounded({"type": "http.response.start", "status": status, "headers": list(headers)})

    async def _body(self, data: bytes, *, more: bool) -> None:
        await self._send_bounded({"type": "http.response.body", "body": data, "more_body": more})

    async def _send_bounded(self, event: dict[str, object]) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._send(event)
        except TimeoutError:
            self._abort()
            # uvicorn notices in the next iteration of the loop; before that it would log an incomplete response.
            await asyncio.sleep(0)
            raise Gone from None


async def _wait_until_gone(receive: Receive, session: Session) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    session.outbox.close(discard=True)


def takes_streams(accept: str) -> bool:
    """Return whether this Accept header allows a stream of events."""
    return "text/event-stream" in accept or "*/*" in accept


def unfit(method: str, headers: dict[str, str], max_bytes: int) -> Rejection | None:
    """Return the reason why a request cannot carry a message, or None."""
    if method != "POST":
        return Rejection(405, "this endpoint takes POST", ((b"allow", b"POST"),))
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return Rejection(415, "send the message as application/json")
    length = headers.get("content-length", "0")
    if length.isdecimal() and int(length) > max_bytes:
        return Rejection(413, "the message is larger than EXAI_SERVER__MESSAGE_MAX_BYTES")
    return None


def status_of(error: Fault | None, *, from_method: bool) -> int:
    """Return the HTTP status: errors of transport and envelope have their own, errors of methods are sent with 200."""
    if error is None:
        return 200
    return (_STATUS if from_method else _OWN_STATUS).get(error.code, 200)


def retry_after(error: Fault | None) -> tuple[tuple[bytes, bytes], ...]:
    """Return the Retry-After header of an error with a known delay, in whole seconds."""
    if error is None or error.code != versions.OVERLOADED:
        return ()
    wait_s = (error.data or {}).get("retry_after_s", 1.0)
    return ((b"retry-after", str(math.ceil(wait_s)).encode()),)
