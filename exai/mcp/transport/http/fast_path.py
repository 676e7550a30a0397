"""The fast path of `POST /mcp`: answers a complete POST of a common request without ASGI's scope, queues and tasks.

It saves four fifths of the processor time of a call on the regular path, which `exai bench --door` measures with 32
connections. Each part was measured by disabling it in turn, as a share of a call: not parsing a head that repeats the
connection's last one 25 %, checking equal headers once 22 % (where the head is parsed), one session and outbox for the
POSTs of a connection 22 %, one timer for all pauses of a connection (`post_protocol`) 5 %. A head that arrives before
its body is held (`protocol`), because otherwise no call of httpx would take this path.

Invariant: a request on the fast path is checked and answered as in `streamable`, with the same bytes. A request that
`streamable` would refuse, delay or stream from the start goes there before anything is counted or started. What is kept
from a connection's last POST is what a repetition of its head would produce again.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.types import Receive, Scope
from starlette.types import Send as AsgiSend

from exai.mcp.admission import header_map
from exai.mcp.core import jsonrpc
from exai.mcp.core.directories import directory_of
from exai.mcp.core.jsonrpc import Request, RpcError
from exai.mcp.core.protocol import ClientInfo, Send, Start
from exai.mcp.identity import Admitted
from exai.mcp.server import McpServer
from exai.mcp.session.outbox import Outbox
from exai.mcp.session.quota import Quota
from exai.mcp.session.session import Session
from exai.mcp.session.timeouts import Timeouts
from exai.mcp.transport.extensions import peer_of
from exai.mcp.transport.http.headers import agent_of, legacy_version
from exai.mcp.transport.http.streamable import (
    JSON_TYPE,
    HttpReply,
    StreamableHttp,
    retry_after,
    status_of,
    takes_streams,
    unfit,
)
from exai.mcp.transport.library_parts import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from exai.mcp.transport.pending import admit
from exai.tracing import TRACE_PARENT

POST_URL = b"/mcp"
MAX_POST_BYTES = 4_096
"""The regular path counts the parsing of a longer body."""

MAX_KEPT_HEAD_BYTES = 2_048
"""A connection keeps its last head up to this size; browsers and agents send about 500 bytes."""

MAX_LENGTH_DIGITS = len(str(MAX_POST_BYTES))

Header = tuple[bytes, bytes]
Application = Callable[..., Awaitable[None]]

_LENGTH = b"content-length"
_HEAD_END = b"\r\n\r\n"
_GOOD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
"""The head of nearly all answers."""

_AROUND_LENGTH = re.compile(rb"(?is)(.*\r\ncontent-length:[ \t]*)[0-9]+([ \t]*\r\n.*)")
_WITHOUT_ENVELOPE = Request(0, "", {})
"""Stands for any request that does not state its revision."""


class AnsweringProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which may answer a request that is not its newest."""

    answering: RequestResponseCycle | None = None
    """The cycle that is being answered while `cycle` is that of a newer request."""

    def go_on(self, exchange: Exchange, app: Application) -> None:
        """Let `app` answer a started POST through ASGI, piece by piece, with uvicorn's cycle."""
        # The head of the next request may have arrived in part.
        parsed = self.scope, self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        scope = self.scope
        scope["method"], scope["path"] = "POST", POST_URL.decode()
        self.scope, self.url, self.headers, self.expect_100_continue = parsed
        cycle = RequestResponseCycle(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=exchange.keep_alive,
            on_response=self.on_response_complete,
        )
        # A pipelined request may have replaced the exchange in `cycle`, where uvicorn keeps only the newest.
        newest: object = self.cycle
        if newest is exchange:
            self.cycle = cycle
        else:
            self.answering = cycle
        self._start_asgi_task(cycle, app)


class FastPosts:
    """The state shared by all connections."""

    def __init__(self, server: McpServer, regular: StreamableHttp) -> None:
        self.server, self.regular = server, regular
        self.timeouts = Timeouts()
        self.unwinding: set[asyncio.Task[None]] = set()


class ConnectionPosts:
    """The POSTs of one connection, one at a time. Each that it takes is answered unless the connection is lost."""

    def __init__(self, shared: FastPosts) -> None:
        self._shared = shared
        self._methods = shared.server.surface.methods
        self._fields: list[Header] | None = None
        self._headers: dict[str, str] = {}
        self._admitted: Admitted | None = None
        self._version: str | None = None
        self._client, self._directory, self._trace_parent = ClientInfo(), "", ""
        self._may_stream = False
        self._exchange: Exchange | None = None
        # The last head before and after the number in its Content-Length; empty if there is none to repeat.
        self._before = self._after = b""

    def repeated(self, data: bytes) -> bytes | None:
        """Return the body of a request if its head repeats the last one's byte for byte except its length; else None.

        The parser has accepted such a head, so it need not see this one.
        """
        end = self._length_end(data)
        if end < 0:
            return None
        body = data[end + len(self._after) :]
        is_whole = data[len(self._before) : end] == b"%d" % len(body)
        return body if is_whole and len(body) <= MAX_POST_BYTES else None

    def is_repeated_head(self, data: bytes) -> bool:
        """Return whether this is a head that repeats the last one's, and no part of its body has arrived."""
        end = self._length_end(data)
        return end >= 0 and end + len(self._after) == len(data) and data[len(self._before) : end].isdigit()

    def _length_end(self, data: bytes) -> int:
        """Return the end of the number in the Content-Length of a repeated head; -1 if it is none."""
        start = len(self._before)
        if not start or not data.startswith(self._before):
            return -1
        end = data.find(b"\r", start, start + MAX_LENGTH_DIGITS + 1)
        return end if data.startswith(self._after, end) else -1

    def keep(self, data: bytes, body: bytes) -> None:
        """Keep the head of a request whose headers were checked, if `data` is exactly that head and `body`."""
        if self._before:
            return
        size = len(data) - len(body)
        found = None
        if size <= MAX_KEPT_HEAD_BYTES and data.find(_HEAD_END) + len(_HEAD_END) == size:
            found = _AROUND_LENGTH.fullmatch(data[:size])
        # The spaces after the number are left to the parser.
        if found is not None and found[2].startswith(b"\r"):
            self._before, self._after = found[1], found[2]

    def reads(self, protocol: HttpToolsProtocol) -> bool:
        """Check the headers of a request; False if it has to take the regular path."""
        # The headers of consecutive POSTs usually differ only in their length, so a connection checks the others once.
        fields = [each for each in protocol.headers if each[0] != _LENGTH]
        if len(fields) != len(protocol.headers) - 1:
            return False
        return fields == self._fields or self._read(protocol, fields)

    def _read(self, protocol: HttpToolsProtocol, fields: list[Header]) -> bool:
        headers = header_map(fields)
        server = self._shared.server
        admitted = server.edge.admit_at_once(headers)
        if admitted is None or unfit("POST", headers, server.settings.message_max_bytes):
            return False
        admit(protocol.app_state)
        if self._admitted != admitted:
            self.end()
        self._fields, self._headers, self._admitted = fields, headers, admitted
        self._before = self._after = b""
        try:
            self._version = legacy_version(headers, _WITHOUT_ENVELOPE)
        except RpcError:
            self._version = None
        self._may_stream = takes_streams(headers.get("accept", "*/*"))
        self._client, self._directory = agent_of(headers), directory_of(headers)
        self._trace_parent = headers.get(TRACE_PARENT, "")
        return True

    def take(self, protocol: AnsweringProtocol, body: bytes, *, keep_alive: bool) -> bool:
        """Start to answer a POST with the last headers, or return False if it has to take the regular path."""
        admitted = self._admitted
        message = jsonrpc.parse(body)
        if not isinstance(message, Request) or admitted is None or message.method not in self._methods:
            return False
        version = self._version
        if version is None or "_meta" in message.params:
            meta = message.params.get("_meta")
            if isinstance(meta, dict) and "progressToken" in meta:  # Its answer is not the only message.
                return False
            try:
                version = legacy_version(self._headers, message)
            except RpcError:
                return False
        if admitted.expires_at is not None and admitted.expires_at <= time.time():
            return False
        quota = self._shared.server.quotas.of(admitted.owner)
        # Undone in `_end`, `_unwind` or at the end of the stream, whichever ends this exchange.
        if not quota.connect():
            return False
        exchange = self._exchange
        # The `Quota` of an idle owner is discarded, so its next one is a different object.
        if exchange is None or exchange.quota is not quota or not exchange.is_free:
            self.end()
            peer = peer_of({"client": protocol.client})
            exchange = self._exchange = Exchange(self._shared, quota, admitted, peer)
        exchange.client, exchange.directory = self._client, self._directory
        exchange.trace_parent = self._trace_parent
        exchange.keep_alive = keep_alive
        exchange.begin(protocol, message, len(body), version, may_stream=self._may_stream)
        return True

    def end(self) -> None:
        """Drop the exchange; if its call is running it ends by itself."""
        if self._exchange is not None and self._exchange.is_free:
            self._exchange.session = None  # Breaks the reference cycle.
        self._exchange = None


class Exchange(Outbox):
    """Consecutive POSTs as the outbox of a session, and in place of uvicorn's cycle, of which it has what is read.

    The first message is the whole answer. If it is late, the transport continues with a stream, and this is an ordinary
    queue until the stream ends.
    """

    def __init__(self, shared: FastPosts, quota: Quota, admitted: Admitted, peer: str) -> None:
        super().__init__(account=quota.account)
        self._shared, self.quota = shared, quota
        self.keep_alive = True
        self.client, self.directory, self.trace_parent = ClientInfo(), "", ""
        self.response_complete = True
        self.disconnected = False
        self._protocol: AnsweringProtocol | None = None
        self._is_beginning = False
        self._is_running = False
        self._refusal: Send | None = None
        self._loop = asyncio.get_running_loop()
        self.session: Session | None = shared.server.make_session(admitted, peer=peer, outbox=self)
        self.session.when_quiet = self._end

    @property
    def is_free(self) -> bool:
        """Return whether another POST may start."""
        return not self._is_running and self.session is not None

    @property
    def response_started(self) -> bool:
        """Return whether anything was sent; an answer is sent whole."""
        return self.response_complete

    @property
    def message_event(self) -> Exchange:
        """Return the object on which uvicorn calls `set` when the connection is lost."""
        return self

    def set(self) -> None:
        """Handle the loss of the connection: cancel the call."""
        if self._protocol is None or self.session is None:
            return
        self._shared.timeouts.end(self)
        session, self.session, self._protocol = self.session, None, None
        session.when_quiet = None
        task = self._loop.create_task(self._unwind(session), name="mcp http unwind")
        self._shared.unwinding.add(task)
        task.add_done_callback(self._shared.unwinding.discard)

    def begin(
        self, protocol: AnsweringProtocol, message: Request, size_bytes: int, version: str | None, *, may_stream: bool
    ) -> None:
        """Process the message. Afterwards it has been answered, or its call is running."""
        session = self.session
        assert session is not None  # noqa: S101 - it is free
        cycle: Any = self
        protocol.cycle = cycle
        self._protocol = protocol
        self._is_running = self._is_beginning = True
        self.is_closed = self.response_complete = False
        # One session serves consecutive POSTs, which may be of different revisions.
        connection = session.connection
        connection.version, connection.client, connection.directory = version, self.client, self.directory
        connection.trace_parent = self.trace_parent
        self._shared.server.enlist(session)
        # An answer pushed during `process` is kept by `push`: its status depends on the action that is returned.
        action, _ = session.process(message, size_bytes)
        self._is_beginning = False
        if self._refusal is not None:
            refusal, self._refusal = self._refusal, None
            self._answer(refusal, from_method=isinstance(action, Start))
            self._end()
        elif may_stream:
            self._shared.timeouts.begin(self, self._loop.time() + self._shared.regular.quiet_s, self._loop)

    def push(self, message: Send) -> bool:
        """Send this message as the answer."""
        if self._protocol is None:
            return super().push(message)
        if self._is_beginning:
            self._refusal = message  # or a method's answer that needs no call
        else:
            self._answer(message, from_method=True)
        return True

    def stop_late(self) -> None:
        """Continue with a stream: clients and proxies close a response that is silent for longer."""
        if self._protocol is None or self.session is None:
            return
        # From here on the stream owns session and outbox; the next POST of the connection gets a new exchange.
        session, self.session = self.session, None
        protocol, self._protocol, session.when_quiet = self._protocol, None, None

        async def stream(scope: Scope, receive: Receive, send: AsgiSend) -> None:  # noqa: ARG001
            try:
                timeout_s = self._shared.server.settings.send_timeout_s
                reply = HttpReply(send, protocol.transport.abort, timeout_s)
                await self._shared.regular.go_on(session, receive, reply)
            finally:
                self.quota.disconnect()

        protocol.go_on(self, stream)

    def _answer(self, message: Send, *, from_method: bool) -> None:
        protocol, self._protocol = self._protocol, None
        self.is_closed = self.response_complete = True
        self._shared.timeouts.end(self)
        if protocol is None or protocol.transport.is_closing():
            return
        data = message.data
        if message.error is None and self.keep_alive:
            protocol.transport.write(_GOOD % len(data) + data)
        else:
            status = status_of(message.error, from_method=from_method)
            more = b"".join([b"%b: %b\r\n" % each for each in retry_after(message.error)])
            if not self.keep_alive:
                more += b"connection: close\r\n"
            facts = (STATUS_LINE[status], JSON_TYPE, len(data), more)
            protocol.transport.write(b"%bcontent-type: %b\r\ncontent-length: %d\r\n%b\r\n" % facts + data)
            if not self.keep_alive:
                protocol.transport.close()
        protocol.on_response_complete()

    def _end(self) -> None:
        """Release the session and the connection count once no call runs."""
        if self._is_running and self.session is not None:
            self._is_running = False
            self._shared.server.forget(self.session)
            self.quota.disconnect()

    async def _unwind(self, session: Session) -> None:
        try:
            await session.end()
        finally:
            self.quota.disconnect()
