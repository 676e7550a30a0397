"""uvicorn's WebSocket protocol with the limits that a server open to unknown clients needs.

Invariant: a connection costs bounded time and memory for any input. The handshake must be complete within its
timeout; a peer that stops reading is aborted, not waited for; a message that is too large or not UTF-8 is answered with
its close code before the socket is closed.
"""

from __future__ import annotations

import asyncio

from exai.mcp.transport.extensions import ABORT, DIRECT
from exai.mcp.transport.library_parts import (
    ASGISendEvent,
    ClientDisconnected,
    Frame,
    Request,
    WebSocketsSansIOProtocol,
)
from exai.mcp.transport.pending import STATE, PendingConnection, admit
from exai.mcp.transport.websocket_fast_path import MAX_SHORT_BYTES, FastMessages
from exai.settings.load import ServerSettings

CLOSE_TIMEOUT_S = 5.0


def websocket_protocol(settings: ServerSettings) -> type[WebSocketsSansIOProtocol]:
    """Return uvicorn's WebSocket protocol with the limits of `settings`."""

    class Limited(_WebSocket):
        limits = settings

    return Limited


class _WebSocket(FastMessages):
    """Adds a handshake timer, abortion of peers that do not read, and close frames that the peer can still read."""

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

    def _wait_if_closing(self) -> None:
        """Limit the time for which a closing connection waits for the peer to take buffered output."""
        if self.close_timer is None and self.transport.is_closing() and not self.disconnected:
            self.close_timer = self.loop.call_later(self.close_timeout, self.transport.abort)

    def _handshake_is_late(self) -> None:
        if not self.handshake_complete:
            self.transport.abort()
