"""The fast path of the HTTP transport: answers a complete POST of a common request with no task but that of its call.

Invariant: requests on the fast path are checked and answered as in `streamable`, with the same bytes. A request that
`streamable` would refuse, delay or stream from the start goes there before anything is counted or started. The state
kept from a connection's last POST is what the same headers would produce again.
"""

from __future__ import annotations

import asyncio

from starlette.types import Receive, Scope
from starlette.types import Send as AsgiSend

from exai.mcp.admission import header_map
from exai.mcp.core import jsonrpc
from exai.mcp.core.jsonrpc import Request, RpcError
from exai.mcp.core.protocol import Send, Start
from exai.mcp.identity import Admitted
from exai.mcp.server import McpServer
from exai.mcp.session.outbox import Outbox
from exai.mcp.session.quota import Quota
from exai.mcp.session.session import Session
from exai.mcp.session.timeouts import Timeouts
from exai.mcp.transport.http.headers import legacy_version
from exai.mcp.transport.http.posting import JSON_TYPE, OK, Header, Post
from exai.mcp.transport.http.streamable import HttpDoor, HttpReply, retry_after, status_of, takes_streams, unfit

LENGTH = b"content-length"
_WITHOUT_ENVELOPE = Request(0, "", {})
"""Stands for any request that does not state its revision."""


class ShortHttp:
    """The state shared by the lanes of all connections."""

    def __init__(self, server: McpServer, door: HttpDoor) -> None:
        self.server, self.door = server, door
        self.watch = Timeouts()
        self.unwinding: set[asyncio.Task[None]] = set()

    def open_lane(self) -> Lane:
        """Return the lane of a new connection."""
        return Lane(self)

    def is_usual(self, request: Request) -> bool:
        """Return whether a request is a call with one answer, nothing before it, and no effect on the session."""
        if request.method not in self.server.surface.methods:
            return False
        meta = request.params.get("_meta")
        return not (isinstance(meta, dict) and "progressToken" in meta)


class Lane:
    """The POSTs of one connection, one at a time. Every POST it accepts is answered unless the connection is lost."""

    def __init__(self, way: ShortHttp) -> None:
        self._way = way
        self._fields: list[Header] | None = None
        self._headers: dict[str, str] = {}
        self._admitted: Admitted | None = None
        self._version: str | None = None
        self._may_stream = False
        self._exchange: Exchange | None = None

    def take(self, post: Post) -> bool:
        """Start to answer a POST, or return False if it has to take the regular path."""
        fields = [each for each in post.headers if each[0] != LENGTH]
        # The headers of consecutive POSTs usually differ only in their length, so a connection checks the others once.
        if len(fields) != len(post.headers) - 1 or (fields != self._fields and not self._read(post, fields)):
            return False
        message = jsonrpc.parse(post.body)
        if not isinstance(message, Request) or not self._way.is_usual(message) or self._admitted is None:
            return False
        version = self._version
        if version is None or "_meta" in message.params:
            try:
                version = legacy_version(self._headers, message)
            except RpcError:
                return False
        quota = self._way.server.quotas.of(self._admitted.owner)
        # Undone in `_end`, `_unwind` or at the end of the stream, whichever ends this exchange.
        if not quota.connect():
            return False
        exchange = self._exchange
        # The `Quota` of an idle owner is discarded, so its next one is a different object.
        if exchange is None or exchange.quota is not quota or not exchange.is_free:
            exchange = self._exchange = Exchange(self._way, quota, self._admitted, post.peer)
        exchange.begin(post, message, version, may_stream=self._may_stream)
        return True

    def end(self) -> None:
        """Handle the loss of the connection."""
        if self._exchange is not None and self._exchange.is_free:
            self._exchange.session = None  # Breaks the reference cycle.
        self._exchange = None

    def _read(self, post: Post, fields: list[Header]) -> bool:
        """Store the result of checking these headers. Returns False if their requests have to take the regular path."""
        headers = header_map(fields)
        admitted = self._way.server.edge.admit_at_once(headers)
        if admitted is None or unfit("POST", headers, self._way.server.settings.message_max_bytes):
            return False
        post.admit()
        if self._admitted != admitted:
            self._exchange = None
        self._fields, self._headers, self._admitted = fields, headers, admitted
        try:
            self._version = legacy_version(headers, _WITHOUT_ENVELOPE)
        except RpcError:
            self._version = None
        self._may_stream = takes_streams(headers.get("accept", "*/*"))
        return True


class Exchange(Outbox):
    """Successive POSTs as the outbox of a session: the first message is the whole answer.

    If the answer is late, the transport continues with a stream, and this is an ordinary queue until the stream ends.
    """

    def __init__(self, way: ShortHttp, quota: Quota, admitted: Admitted, peer: str) -> None:
        super().__init__(account=quota.account)
        self._way, self.quota = way, quota
        self._post: Post | None = None
        self._is_beginning = False
        self._is_running = False
        self._refusal: Send | None = None
        self._loop = asyncio.get_running_loop()
        self.session: Session | None = way.server.make_session(admitted, peer=peer, outbox=self)

    @property
    def is_free(self) -> bool:
        """Return whether another POST may start."""
        return not self._is_running and self.session is not None

    def begin(self, post: Post, message: Request, version: str | None, *, may_stream: bool) -> None:
        """Process the message. Afterwards it has been answered, or its call is running."""
        session = self.session
        assert session is not None  # noqa: S101 - it is free
        self._post = post
        self._is_running = self._is_beginning = True
        self.is_closed = False
        # One session serves consecutive POSTs, which may be of different revisions.
        session.connection.version = version
        self._way.server.enlist(session)
        # An answer pushed during `process` is kept by `push`: its status depends on the action that is returned.
        action, _ = session.process(message, len(post.body))
        self._is_beginning = False
        if self._refusal is not None:
            refusal, self._refusal = self._refusal, None
            self._answer(refusal, at_the_door=not isinstance(action, Start))
            self._end()
            return
        session.when_quiet = self._end
        post.when_gone = self._cancel_call
        if may_stream:
            self._way.watch.begin(self, self._loop.time() + self._way.door.quiet_s, self._loop)

    def push(self, message: Send) -> bool:
        """Send this message as the answer."""
        if self._post is None:
            return super().push(message)
        if self._is_beginning:
            self._refusal = message  # or a method's answer that needs no call
        else:
            self._answer(message, at_the_door=False)
        return True

    def stop_late(self) -> None:
        """Continue with a stream: clients and proxies close a response that is silent for longer."""
        if self._post is None or self.session is None:
            return
        # From here on the stream owns session and outbox; the lane makes a new exchange for the next POST.
        session, self.session = self.session, None
        post, self._post, session.when_quiet = self._post, None, None

        async def stream(scope: Scope, receive: Receive, send: AsgiSend) -> None:  # noqa: ARG001
            try:
                reply = HttpReply(send, abort, self._way.server.settings.send_timeout_s)
                await self._way.door.go_on(session, receive, reply)
            finally:
                self.quota.disconnect()

        abort = post.go_on(stream)

    def _answer(self, message: Send, *, at_the_door: bool) -> None:
        post, self._post = self._post, None
        self.is_closed = True
        self._way.watch.end(self)
        if post is not None:
            if message.error is None:
                post.answer(OK, JSON_TYPE, message.data)
            else:
                status = status_of(message.error, at_the_door=at_the_door)
                post.answer(status, JSON_TYPE, message.data, retry_after(message.error))

    def _end(self) -> None:
        """Release the session and the connection count once no call runs."""
        if self._is_running and self.session is not None:
            self._is_running = False
            self._way.server.forget(self.session)
            self.quota.disconnect()

    def _cancel_call(self) -> None:
        """Cancel the call: the client has disconnected."""
        self._way.watch.end(self)
        session, self.session, self._post = self.session, None, None
        if session is not None:
            session.when_quiet = None
            task = self._loop.create_task(self._unwind(session), name="mcp http unwind")
            self._way.unwinding.add(task)
            task.add_done_callback(self._way.unwinding.discard)

    async def _unwind(self, session: Session) -> None:
        try:
            await session.end()
        finally:
            self.quota.disconnect()
