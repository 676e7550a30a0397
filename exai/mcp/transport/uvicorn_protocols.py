"""Subclasses of uvicorn's protocols with the limits that a server open to unknown clients needs.

Invariant: a connection costs bounded time and memory whatever its peer sends. Heads must arrive whole within the
handshake timeout and stay small; a peer that stops reading is aborted, not waited for; a message that is too large or
not UTF-8 is answered with its close code before the socket is closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, ClassVar, cast

from exai.mcp.transport.extensions import ABORT, DIRECT
from exai.mcp.transport.frames import MAX_SHORT_BYTES, is_utf8, only_text, short_text
from exai.mcp.transport.http.flow import Flow
from exai.mcp.transport.http.older_http import UnchunkedCycle
from exai.mcp.transport.http.posting import Door, Posting
from exai.mcp.transport.library_parts import (
    OPEN_MESSAGE_BYTES,
    ASGISendEvent,
    ClientDisconnected,
    Config,
    Frame,
    HttpToolsProtocol,
    InvalidState,
    Request,
    ServerState,
    State,
    WebSocketsSansIOProtocol,
)
from exai.mcp.transport.metering import Arriving, Meter
from exai.mcp.transport.pending import KEEP_ALIVE_S, STATE, PendingConnection, PendingConnections, admit
from exai.settings.load import ServerSettings

MAX_HEAD_BYTES = 65_536
MAX_HEADERS = 100
"""Maximum number of fields of a head and of a body's trailers together."""

MAX_WAITING = 1
"""Maximum number of pipelined requests that wait on one connection; no MCP client sends any."""

SLICE_BYTES = 16_384
"""Bytes parsed between two checks of the limits."""

FRAMING_SHARE = 8
"""Maximum ratio of content to framing (chunk sizes, extensions, trailers) of a body, beyond one head's size."""

CLOSE_TIMEOUT_S = 5.0
MAX_TURNED_AWAY = 256
"""Number of excess connections that are answered with 503 at a time; further ones are aborted without an answer."""

INVALID_UTF8 = 1007

_FULL = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 5\r\ncontent-length: 0\r\n\r\n"
_BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_HEAD_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


def http_protocol(settings: ServerSettings, posts: Door) -> type[HttpToolsProtocol]:
    """Return uvicorn's HTTP protocol with the limits of `settings`, and with `posts` as its fast path."""

    class Limited(_Http):
        limits = settings
        pending = PendingConnections()
        door = posts

    return Limited


def websocket_protocol(settings: ServerSettings) -> type[WebSocketsSansIOProtocol]:
    """Return uvicorn's WebSocket protocol with the limits of `settings`."""

    class Limited(_WebSocket):
        limits = settings

    return Limited


class _Refused(Exception):
    """Ends the parser from within one of its callbacks."""


class _Http(Posting):
    """Adds limits on connections, heads, framing, waiting requests, unwanted bodies, and peers that do not read."""

    limits: ServerSettings
    pending: ClassVar[PendingConnections]

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._patience: asyncio.TimerHandle | None = None
        self._is_head_awaited = False
        self._head_bytes = 0
        self._is_message_open = False
        self._framing_bytes = 0.0
        self._unwanted_bytes = 0
        self._is_excess = False
        self._is_refused = False
        self._refusal: bytes | None = None
        self._unsent_bytes = 0
        self._pending: PendingConnection | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)
        super().connection_made(transport)
        self.flow = Flow(transport, lambda: not self.pipeline and not self._is_refused)
        address = self.client[0] if self.client else ""
        pending = self._pending = self.app_state[STATE] = self.pending.add(address, self._drop_if_idle)
        pending.when_admitted = self._restore_keep_alive
        self.timeout_keep_alive = min(KEEP_ALIVE_S, self.config.timeout_keep_alive)
        excess = self._excess(pending)
        if excess > MAX_TURNED_AWAY:
            transport.abort()
            return
        # The request is read before its refusal: closing a socket with unread input resets it, and the answer is lost.
        self._is_excess = excess > 0
        self._is_head_awaited = True
        self._wait_for_head()

    def _excess(self, pending: PendingConnection) -> int:
        """Return by how many connections this one exceeds a limit, after making room for it if possible."""
        most, each = self.limits.max_connections, self.limits.max_handshakes_per_address
        beyond = len(self.connections) - most
        if beyond > 0 and self.pending.drop_oldest(pending):
            beyond -= 1
        if beyond > 0:
            self.pending.refused("EXAI_SERVER__MAX_CONNECTIONS", most)
        beyond_each = self.pending.of(pending.address) - each
        if beyond_each > 0:
            self.pending.refused("EXAI_SERVER__MAX_HANDSHAKES_PER_ADDRESS", each)
        return max(beyond, beyond_each)

    def connection_lost(self, exc: Exception | None) -> None:
        self._have_patience()
        if self._pending is not None:
            self._pending.leave()
        self.pipeline.clear()
        if self.answering is not None and not self.answering.response_complete:
            # uvicorn notifies only the newest request, which this one is not.
            self.answering.disconnected = True
            self.answering.message_event.set()
        super().connection_lost(exc)
        self.answering = None
        if isinstance(self.flow, Flow):
            self.flow.end()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing() or self._is_refused:
            return
        if not self._is_message_open and not self._is_head_awaited:
            self._have_patience()
            self._head_bytes = 0
            self._is_head_awaited = True
        if len(data) <= SLICE_BYTES:
            self._parse(data)
        else:
            whole = memoryview(data)
            for start in range(0, len(data), SLICE_BYTES):
                self._parse(bytes(whole[start : start + SLICE_BYTES]))
                if self._is_refused or self.transport.is_closing() or self.transport.get_protocol() is not self:
                    break
        self._wait_if_closing()
        if self._is_head_awaited and self._patience is None and not self.transport.is_closing():
            self._wait_for_head()  # Most heads arrive whole in one read and need no timer.

    def _parse(self, data: bytes) -> None:
        if self._is_head_awaited:
            self._head_bytes += len(data)
        self._framing_bytes += len(data)
        super().data_received(data)
        if self._is_refused or self.transport.is_closing():
            return
        if self._is_head_awaited and self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(_HEAD_TOO_LARGE)
        elif self._is_message_open and not self._is_head_awaited and self._framing_bytes > MAX_HEAD_BYTES:
            self._refuse(_BAD_REQUEST)

    def _refuse(self, answer: bytes) -> None:
        """Stop reading from this peer, send `answer` unless another answer is in progress, and close."""
        self._is_refused = True
        self.flow.pause_reading()
        if not self._is_answer_due() or not (self.cycle.response_started or self.pipeline):
            self.transport.write(answer)
        self.transport.close()

    def _is_answer_due(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def on_message_begin(self) -> None:
        self._is_message_open = True
        self._framing_bytes = 0.0
        self._unwanted_bytes = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        # Does what uvicorn does, without the call.
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))
        if len(self.headers) > MAX_HEADERS:
            self._refusal = _HEAD_TOO_LARGE
            raise _Refused

    def on_headers_complete(self) -> None:
        self._have_patience()
        self._framing_bytes = 0.0
        if self._is_excess:
            self.transport.write(_FULL)
            self.transport.close()
            return
        if len(self.pipeline) >= MAX_WAITING:
            # Earlier requests are answered; the last of these answers closes the connection.
            self._is_refused = True
            self.pipeline[0][0].keep_alive = False
            self.flow.pause_reading()
            raise _Refused
        if self.url.startswith(b"//"):
            self.url = b"/" + self.url.lstrip(b"/")  # Otherwise `//x` would be parsed as a host name.
        if self._is_answer_due() and self.parser.should_upgrade():
            raise _Refused
        super().on_headers_complete()

    def begin_answer(self) -> None:
        answering = self.cycle if self._is_answer_due() else None
        super().begin_answer()
        if self.scope["http_version"] == "1.0" and self.cycle is not answering:
            self.cycle.__class__ = UnchunkedCycle  # uvicorn has no hook for the class of its cycles.
        if answering is not None:
            self.answering = answering
        self.scope["extensions"] = {ABORT: {ABORT: self.transport.abort}}

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Answer input that the parser refuses. The name is uvicorn's."""
        if not self._is_refused:
            self._refuse(_BAD_REQUEST if self._refusal is None else self._refusal)

    def on_body(self, body: bytes) -> None:
        self._framing_bytes -= len(body) * (1 + 1 / FRAMING_SHARE)
        if self.cycle is not None and self.cycle.response_complete and not self.is_deferred:
            self._unwanted_bytes += len(body)
            if self._unwanted_bytes > 2 * self.limits.message_max_bytes:
                self._refusal = b""
                raise _Refused
        if not self._is_excess:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._is_message_open = False
        self._have_patience()
        if not self._is_excess:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_message_open and not self.transport.is_closing():
            # The answer precedes the end of the body. The rest is read and discarded: closing now would reset the
            # connection, and the answer would be lost. The time for that is limited.
            self._patience = self.loop.call_later(self.limits.handshake_timeout_s, self.transport.abort)
        self._wait_if_closing()

    def handle_websocket_upgrade(self) -> None:
        self._have_patience()
        if not self._is_excess:
            super().handle_websocket_upgrade()

    def _drop_if_idle(self) -> bool:
        """Close the connection unless one of its requests is being answered."""
        if self._is_answer_due():
            return False
        self.connections.discard(self)
        self.transport.abort()
        return True

    def _restore_keep_alive(self) -> None:
        self.timeout_keep_alive = self.config.timeout_keep_alive

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection. If an answer is still buffered, close it once the buffer stops shrinking."""
        unsent_bytes = self.transport.get_write_buffer_size()
        if unsent_bytes == 0:
            super().timeout_keep_alive_handler()
        elif unsent_bytes == self._unsent_bytes:
            self.transport.abort()
        else:
            self._unsent_bytes = unsent_bytes
            self._have_patience()
            self._patience = self.loop.call_later(self.limits.send_timeout_s, self.timeout_keep_alive_handler)

    def _wait_if_closing(self) -> None:
        """Limit the time for which a closing connection waits for the peer to take buffered output."""
        if self.transport.is_closing() and self.transport.get_write_buffer_size():
            self._unsent_bytes = 0
            self.timeout_keep_alive_handler()

    def _wait_for_head(self) -> None:
        self._patience = self.loop.call_later(self.limits.handshake_timeout_s, self.transport.abort)

    def _have_patience(self) -> None:
        self._is_head_awaited = False
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None


class _WebSocket(Arriving):
    """Adds a handshake timer, abortion of peers that do not read, and close frames that the peer can still read."""

    take: Callable[[bytes], bool] | None = None
    pong = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.max_short_bytes = min(MAX_SHORT_BYTES, self.limits.message_max_bytes)
        self.close_timeout = min(CLOSE_TIMEOUT_S, self.limits.send_timeout_s)
        self._handshake_timer = self.loop.call_later(self.limits.handshake_timeout_s, self._handshake_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._handshake_timer.cancel()
        pending = self.app_state.pop(STATE, None)
        if isinstance(pending, PendingConnection):
            pending.leave()
        super().connection_lost(exc)
        # Break the reference cycle, which otherwise lasts until the next collection.
        self.take = None
        if self.handshake_initiated and self.response.status_code == 101:
            self.scope["extensions"] = {}

    def shutdown(self) -> None:
        """Do nothing: `McpServer.drain` drains and closes the sessions before the server stops."""

    def data_received(self, data: bytes) -> None:
        conn = self.conn
        is_free = not self.unfed and not self.is_refused
        if (
            self.take is not None
            and self.reader.is_between_frames
            and getattr(conn, OPEN_MESSAGE_BYTES) is None
            and is_free
        ):
            text = only_text(data, self.max_short_bytes) if conn.state is State.OPEN else None
            if text is not None:
                self.curr_msg_data_type = "text"
                self._process_message(text)
                return
        if conn.parser_exc is None:
            super().data_received(data)

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if not self.handshake_complete:
            # The application's task has not run yet, so it finds this extension in its scope.
            own: dict[str, dict[object, object]] = {
                ABORT: {ABORT: self.transport.abort},
                DIRECT: {DIRECT: self},
            }
            self.scope["extensions"] = {**(self.scope["extensions"] or {}), **own}
            self.transport.pause_reading()  # Until the owner is known, whose account counts the input.

    def send_receive_event_to_app(self) -> None:
        data = self.frames[0] if len(self.frames) == 1 else b"".join(self.frames)
        self.frames = []
        self._process_message(data)

    def _process_message(self, data: bytes) -> None:
        """Process a complete message."""
        if self._held_bytes or self._late is not None:
            self.message_ended()
        if self.is_refused:
            return
        if self.curr_msg_data_type == "text" and not self.close_sent and not is_utf8(data):
            self.conn.fail(INVALID_UTF8, "text is not UTF-8")
            self.handle_parser_exception()
            return
        if self.take is not None and not self.close_sent and self.queue.empty() and self.take(data):
            return
        self.message_queued(len(data))
        self.frames = [data]
        self.curr_msg_data_type = "bytes"
        super().send_receive_event_to_app()

    def handle_parser_exception(self) -> None:
        """Send the close frame, then discard input: closing at once would reset the socket and lose the frame."""
        if self.close_sent:
            return
        closing = self.conn.close_sent
        code, reason = (closing.code, closing.reason) if closing is not None else (1006, "")
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.close_sent = True
        self.stop_keepalive()
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self.transport.write(b"".join(self.conn.data_to_send()))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.close_timer = self.loop.call_later(self.close_timeout, self.transport.abort)

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        # Closing waits for the peer to take buffered output, and this peer has not answered a ping.
        self.close_timer = self.loop.call_later(self.close_timeout, self.transport.abort)

    def handle_ping(self) -> None:
        """Answer; while the peer does not read, keep only the latest pong, which acknowledges all earlier pings."""
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.pong = (self.conn.data_to_send() or [self.pong])[-1]

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.pong and not self.close_sent and not self.transport.is_closing():
            self.transport.write(self.pong)
        self.pong = b""

    def handle_close(self, event: Frame) -> None:
        super().handle_close(event)
        self._wait_if_closing()

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        super().on_task_complete(task)
        self._wait_if_closing()

    async def send(self, message: ASGISendEvent) -> None:
        await self.writable.wait()
        if self.close_sent:
            # The connection was failed while the application waited, which is not the application's error.
            raise ClientDisconnected
        await super().send(message)
        if message["type"] == "websocket.accept":
            admit(self.app_state)
            if not self.transport.is_closing():
                self.transport.resume_reading()
        if message["type"] == "websocket.http.response.body":
            self.handshake_complete = (
                True  # A refusal completes the handshake; otherwise uvicorn logs an application error.
            )
        if message["type"] == "websocket.close" and self.close_timer is not None:
            self.close_timer.cancel()
            self.close_timer = self.loop.call_later(self.close_timeout, self.transport.abort)
            if self.is_refused:
                self.read_no_more()
                self.hurry_close()

    def offer_to(self, take: Callable[[bytes], bool], meter: Meter) -> None:
        """See `exai.mcp.transport.extensions.Direct`."""
        self.take, self.meter = take, meter

    def send_now(self, data: bytes) -> bool:
        """Send a text frame, unless earlier output is still buffered or the connection is closing."""
        if not self.writable.is_set() or not self.handshake_complete or self.close_sent or self.disconnected:
            return False
        if len(data) <= MAX_SHORT_BYTES and self.conn.state is State.OPEN:
            self.transport.write(short_text(data))
            return True
        try:
            self.conn.send_text(data)
        except InvalidState:
            return False
        self.transport.write(b"".join(self.conn.data_to_send()))
        return True

    def _wait_if_closing(self) -> None:
        """Limit the time for which a closing connection waits for the peer to take buffered output."""
        if self.close_timer is None and self.transport.is_closing() and not self.disconnected:
            self.close_timer = self.loop.call_later(self.close_timeout, self.transport.abort)

    def _handshake_is_late(self) -> None:
        if not self.handshake_complete:
            self.transport.abort()
