"""The WebSocket transport: one text frame carries one message, in both directions.

The binding, which no specification defines: the subprotocol `mcp` is selected if offered and not required; a binary
frame is accepted as text, but none is sent; `notifications/cancelled` cancels a call; losing the connection ends its
calls and subscriptions, and nothing is sent again, because state belongs to handles. Close codes: 1001 shutdown, 1007
not UTF-8, 1008 too many malformed messages, 1009 too large, 1011 no pong, 1012 restart, 1013 far more messages than the
owner's rate, 4401 token expired. Refusals (401, 403, 404, 421, 429, 503) are sent before the upgrade.

Invariant: the reading loop only passes messages on, so a running call never delays pongs, cancellations and closes.
Messages that a peer does not take at once are sent by one writer task, with a timeout for each send; the socket of a
peer that does not read is aborted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import structlog
from starlette.types import Message, Receive, Scope, Send

from exai.errors import Overloaded
from exai.mcp.admission import Rejection, header_map, too_many
from exai.mcp.core.directories import directory_of
from exai.mcp.core.jsonrpc import JsonRpcMessage as Incoming
from exai.mcp.core.jsonrpc import Malformed, parse
from exai.mcp.core.versions import MESSAGE_MAX_HEADER
from exai.mcp.identity import Admitted
from exai.mcp.server import McpServer
from exai.mcp.session.session import Session
from exai.mcp.transport.extensions import Direct, abort_of, direct_of, peer_of
from exai.mcp.transport.metering import POLICY_VIOLATION, TRY_AGAIN_LATER

SUBPROTOCOL = "mcp"
MAX_MALFORMED = 100
"""Malformed messages after which the connection is closed."""

PATIENCE_BYTES = 67_108_864
"""Net excess over the owner's rate that a peer may send, in bytes; each message adds 1/1000 of it."""

REFUSAL_BYTES = PATIENCE_BYTES // 1_000

log = structlog.get_logger(__name__)


class WebSocketTransport:
    """The ASGI application for scopes of type websocket."""

    def __init__(self, server: McpServer) -> None:
        self._server = server
        self._sessions: set[Session] = set()

    def report(self) -> None:
        """Set the gauges of the open connections and of the bytes that wait to be sent on them."""
        recorder = self._server.recorder
        recorder.gauge("ws_connections", len(self._sessions))
        recorder.gauge("ws_send_queue_bytes", sum(each.outbox.size_bytes for each in self._sessions))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection from handshake to close."""
        await receive()  # websocket.connect
        admitted = await self._server.edge.admit(scope)
        if isinstance(admitted, Rejection):
            await reject(send, admitted)
            return
        if self._server.is_draining:
            await reject(send, Rejection(503, "the daemon is shutting down; connect again shortly"))
            return
        with ExitStack() as stack:
            try:
                quota = self._server.quotas.of(admitted.owner)
                quota.check_barred()
                stack.enter_context(quota.hold_connection())
            except Overloaded as error:
                await reject(send, too_many(error))
                return
            await self._serve(admitted, scope, receive, send)

    async def _serve(self, admitted: Admitted, scope: Scope, receive: Receive, send: Send) -> None:
        chosen = SUBPROTOCOL if SUBPROTOCOL in scope["subprotocols"] else None
        limit = str(self._server.settings.message_max_bytes).encode()
        headers = [(MESSAGE_MAX_HEADER.encode(), limit)]
        await send({"type": "websocket.accept", "subprotocol": chosen, "headers": headers})
        session = self._server.open_session(admitted, peer=peer_of(scope))
        session.connection.directory = directory_of(header_map(scope["headers"]))
        log.info("connected", peer=session.peer, owner=session.owner, transport="websocket")
        direct = direct_of(scope)
        if direct is not None:
            session.outbox.send_now = direct.send_now
        abort = abort_of(scope)
        self._sessions.add(session)
        writer = asyncio.create_task(self._write(session, send, abort), name="mcp websocket writer")
        try:
            code = await self._read(session, receive, direct)
            log.info("disconnected", peer=session.peer, code=code)
        finally:
            await self._close(session, writer)
            self._sessions.discard(session)

    async def _read(self, session: Session, receive: Receive, direct: Direct | None) -> int:
        taking = _Taking(session, direct)
        if direct is not None:
            direct.offer_to(taking.at_once, session.quota)
        while True:
            event = await receive()
            if event["type"] == "websocket.disconnect":
                return int(event.get("code", 1005))
            await taking.in_turn(_payload(event))

    async def _write(self, session: Session, send: Send, abort: Callable[[], None]) -> None:
        """Send queued messages, then close; abort the connection if a send takes too long."""
        timeout_s = self._server.settings.send_timeout_s
        try:
            while (message := await session.outbox.get()) is not None:
                async with asyncio.timeout(timeout_s):
                    await send({"type": "websocket.send", "text": message.data.decode()})
            async with asyncio.timeout(timeout_s):
                await send({"type": "websocket.close", "code": session.close_code})
        except TimeoutError:
            log.warning("dropped a peer that does not read", peer=session.peer, send_timeout_s=timeout_s)
            self._server.recorder.count("mcp_slow_peers_total", transport="websocket")
            abort()
        except OSError:
            pass  # The connection is lost; the reading loop receives the disconnect as well.
        finally:
            # Without a writer nothing would make room for those that wait for it.
            session.outbox.close(discard=True)

    async def _close(self, session: Session, writer: asyncio.Task[None]) -> None:
        writer.cancel()
        await asyncio.wait({writer})
        await session.end()


class _Taking:
    """Takes the messages of one peer in order, and closes the connection after too much useless input."""

    def __init__(self, session: Session, direct: Direct | None) -> None:
        self._session, self._direct = session, direct
        self._is_waiting = False
        self._malformed = 0
        self._excess_bytes = 0

    def at_once(self, data: bytes) -> bool:
        """Process a message now, or return False if it has to wait for room or for an earlier message."""
        if self._is_waiting or not self._session.outbox.has_room:
            return False
        if not self._session.outbox.is_closed:  # With a closed outbox a call could not be answered.
            message = parse(data)
            _, is_within_rate = self._session.process(message, len(data))
            if self._malformed or self._excess_bytes or not is_within_rate or isinstance(message, Malformed):
                self._judge(message, len(data), is_within_rate=is_within_rate)
        return True

    async def in_turn(self, data: bytes) -> None:
        """Process a message once there is room for its answer."""
        self._is_waiting = True
        await self._session.outbox.wait_for_room()
        self._is_waiting = False
        self.at_once(data)

    def _judge(self, message: Incoming, size_bytes: int, *, is_within_rate: bool) -> None:
        self._malformed = self._malformed + 1 if isinstance(message, Malformed) else 0
        counted = size_bytes + REFUSAL_BYTES
        if not is_within_rate:
            self._excess_bytes += counted
        elif self._excess_bytes:
            self._excess_bytes = max(0, self._excess_bytes - counted)
        if self._malformed == MAX_MALFORMED:
            self._give_up(POLICY_VIOLATION)
        elif self._excess_bytes > PATIENCE_BYTES:
            self._give_up(TRY_AGAIN_LATER)

    def _give_up(self, code: int) -> None:
        if self._direct is not None:
            self._direct.read_no_more()
        self._session.quota.bar()
        self._session.finish(code)


async def reject(send: Send, rejection: Rejection) -> None:
    """Answer a handshake with an HTTP status instead of the upgrade."""
    body = rejection.text.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *rejection.headers]
    await send({"type": "websocket.http.response.start", "status": rejection.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})


def _payload(event: Message) -> bytes:
    text: Any = event.get("text")
    data: Any = event.get("bytes")
    return text.encode() if text is not None else bytes(data or b"")
