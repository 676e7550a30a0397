"""The short way through the HTTP door: a whole post of a usual request, answered without a task but the call's own.

Invariant: what goes this way is checked and answered as `exai.mcp.http` does it, with the same bytes. What that would
refuse, hold up or stream from the beginning goes there, before anything was counted or begun. What is kept of a
connection's last post is what the same headers would lead to again.
"""

from __future__ import annotations

import asyncio

from starlette.types import Receive, Scope
from starlette.types import Send as AsgiSend

from exai.mcp import jsonrpc
from exai.mcp.edge import Admitted, header_map
from exai.mcp.headers import legacy_version
from exai.mcp.http import HttpDoor, Reply, retry_after, status_of, takes_streams, unfit
from exai.mcp.jsonrpc import Request, RpcError
from exai.mcp.outbox import Outbox
from exai.mcp.posting import JSON_TYPE, OK, Header, Post
from exai.mcp.protocol import Send, Start
from exai.mcp.quota import Quota
from exai.mcp.running import Watch
from exai.mcp.server import McpServer
from exai.mcp.session import Session

LENGTH = b"content-length"
_WITHOUT_ENVELOPE = Request(0, "", {})
"""What stands for any request that says nothing of its revision."""


class ShortHttp:
    """What the lanes of all connections share."""

    def __init__(self, server: McpServer, door: HttpDoor) -> None:
        self.server, self.door = server, door
        self.watch = Watch()
        self.unwinding: set[asyncio.Task[None]] = set()

    def open_lane(self) -> Lane:
        """Begin a connection."""
        return Lane(self)

    def is_usual(self, request: Request) -> bool:
        """Tell whether a request is a call that is answered once, with nothing before it, and changes no session."""
        if request.method not in self.server.surface.methods:
            return False
        meta = request.params.get("_meta")
        return not (isinstance(meta, dict) and "progressToken" in meta)


class Lane:
    """One connection's posts, one at a time. The posts that it has taken are answered, whatever becomes of it."""

    def __init__(self, way: ShortHttp) -> None:
        self._way = way
        self._fields: list[Header] | None = None
        self._headers: dict[str, str] = {}
        self._admitted: Admitted | None = None
        self._version: str | None = None
        self._may_stream = False
        self._exchange: Exchange | None = None

    def take(self, post: Post) -> bool:
        """Begin to answer a post, or return False when it has to go the long way."""
        fields = [each for each in post.headers if each[0] != LENGTH]
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
        if not quota.connect():
            return False
        exchange = self._exchange
        if exchange is None or exchange.quota is not quota or not exchange.is_free:
            exchange = self._exchange = Exchange(self._way, quota, self._admitted, post.peer)
        exchange.begin(post, message, version, may_stream=self._may_stream)
        return True

    def end(self) -> None:
        """The connection is lost."""
        if self._exchange is not None and self._exchange.is_free:
            self._exchange.session = None  # The two refer to each other.
        self._exchange = None

    def _read(self, post: Post, fields: list[Header]) -> bool:
        """Remember what these headers say; False when what they come with goes the long way."""
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
    """One post after the other, as the outbox of a session: the first message is the answer, and all there is.

    When that takes long, the door goes on with a stream, and this is a queue like any other, until it ends.
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
        """Whether another post may begin."""
        return not self._is_running and self.session is not None

    def begin(self, post: Post, message: Request, version: str | None, *, may_stream: bool) -> None:
        """Take the message; it has been answered afterwards, or a call runs."""
        session = self.session
        assert session is not None  # noqa: S101 - it is free
        self._post = post
        self._is_running = self._is_beginning = True
        self.is_closed = False
        session.connection.version = version
        self._way.server.enlist(session)
        action = session.take(message, len(post.body))
        self._is_beginning = False
        if self._refusal is not None:
            refusal, self._refusal = self._refusal, None
            self._answer(refusal, at_the_door=not isinstance(action, Start))
            self._end()
            return
        session.when_quiet = self._end
        post.when_gone = self._gone
        if may_stream:
            self._way.watch.begin(self, self._loop.time() + self._way.door.quiet_s, self._loop)

    def push(self, message: Send) -> bool:
        """Answer with this message."""
        if self._post is None:
            return super().push(message)
        if self._is_beginning:
            self._refusal = message  # or a method's answer that needs no call
        else:
            self._answer(message, at_the_door=False)
        return True

    def stop_late(self) -> None:
        """Go on with a stream: what is silent for longer is cut by clients and what is between."""
        if self._post is None or self.session is None:
            return
        session, self.session = self.session, None
        post, self._post, session.when_quiet = self._post, None, None

        async def stream(scope: Scope, receive: Receive, send: AsgiSend) -> None:  # noqa: ARG001
            try:
                reply = Reply(send, abort, self._way.server.settings.send_timeout_s)
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
        """Nothing runs any more."""
        if self._is_running and self.session is not None:
            self._is_running = False
            self._way.server.forget(self.session)
            self.quota.disconnect()

    def _gone(self) -> None:
        """The client went away: cancel the call."""
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
