"""The fast path for POSTs that arrive whole, without ASGI's scope, queues and tasks; uvicorn handles the rest.

Invariant: a request takes this path only if it has arrived completely, no earlier one waits, and the door accepts it.
Until then nothing is done that uvicorn's path would repeat or miss.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Protocol

from exai.mcp.transport.library_parts import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from exai.mcp.transport.pending import STATE, PendingConnection

POST_URL = b"/mcp"
MAX_POST_BYTES = 4_096
"""The regular path counts the parsing of a longer body."""

OK = 200
JSON_TYPE = b"application/json"
_GOOD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
"""The head of nearly all answers."""

Header = tuple[bytes, bytes]
Application = Callable[..., Awaitable[None]]


class Post:
    """One request and its answer, in place of uvicorn's cycle; it has the attributes of a cycle that uvicorn reads."""

    __slots__ = ("_protocol", "body", "disconnected", "headers", "keep_alive", "response_complete", "when_gone")

    def __init__(self, protocol: Posting, headers: list[Header], body: bytes, *, keep_alive: bool) -> None:
        self._protocol: Posting | None = protocol
        self.headers, self.body, self.keep_alive = headers, body, keep_alive
        self.disconnected = False
        self.response_complete = False
        self.when_gone: Callable[[], None] | None = None

    @property
    def response_started(self) -> bool:
        """Return whether anything was sent; an answer is sent whole."""
        return self.response_complete

    @property
    def message_event(self) -> Post:
        """Return the object on which uvicorn calls `set` when the connection is lost."""
        return self

    def set(self) -> None:
        """Handle the loss of the connection."""
        when_gone, self.when_gone, self._protocol = self.when_gone, None, None
        if when_gone is not None:
            when_gone()

    @property
    def peer(self) -> str:
        """Return the peer's address for logs."""
        client = None if self._protocol is None else self._protocol.client
        return f"{client[0]}:{client[1]}" if client else "unknown"

    def admit(self) -> None:
        """Note that the owner is known."""
        pending = None if self._protocol is None else self._protocol.app_state.get(STATE)
        if isinstance(pending, PendingConnection):
            pending.admit()

    def answer(self, status: int, kind: bytes, data: bytes, headers: tuple[Header, ...] = ()) -> None:
        """Send the whole answer, and continue with the next request."""
        protocol, self._protocol, self.when_gone = self._protocol, None, None
        self.response_complete = True
        if protocol is None or protocol.transport.is_closing():
            return
        if status == OK and kind == JSON_TYPE and not headers and self.keep_alive:
            protocol.transport.write(_GOOD % len(data) + data)
            protocol.on_response_complete()
            return
        more = b"".join([b"%b: %b\r\n" % each for each in headers]) if headers else b""
        if not self.keep_alive:
            more += b"connection: close\r\n"
        head = b"%bcontent-type: %b\r\ncontent-length: %d\r\n%b\r\n" % (STATUS_LINE[status], kind, len(data), more)
        protocol.transport.write(head + data)
        if not self.keep_alive:
            protocol.transport.close()
        protocol.on_response_complete()

    def go_on(self, app: Application) -> Callable[[], None]:
        """Let `app` answer through ASGI, piece by piece. Returns the function that aborts the connection."""
        protocol, self._protocol, self.when_gone = self._protocol, None, None
        if protocol is None:
            return _nothing
        protocol.go_on(self, app)
        return protocol.transport.abort


def _nothing() -> None:
    """Do nothing: the connection is already lost."""


class PostHandler(Protocol):
    """The door's state of one connection."""

    def take(self, post: Post) -> bool:
        """Start to answer a POST, or return False if it has to take the regular path."""

    def end(self) -> None:
        """Handle the loss of the connection."""


class Door(Protocol):
    """A consumer of POSTs."""

    def open_lane(self) -> PostHandler:
        """Return the lane of a new connection."""


class Posting(HttpToolsProtocol):
    """uvicorn's protocol with the fast path, and with one timer for all pauses between a connection's requests."""

    door: ClassVar[Door | None] = None
    answering: RequestResponseCycle | None = None
    """The cycle that is being answered while `cycle` is that of a newer request."""

    _lane: PostHandler | None = None
    is_deferred = False
    _body = b""
    _idle_since: float | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Drop the references that form cycles with the connection."""
        super().connection_lost(exc)
        self._forget_timer()
        if self._lane is not None:
            self._lane.end()
            self._lane = None

    def data_received(self, data: bytes) -> None:
        """Pass a request that has not arrived whole to the regular path."""
        super().data_received(data)
        if self.is_deferred:
            self.is_deferred = False
            if not self.transport.is_closing():
                self._go_the_long_way()

    def on_message_begin(self) -> None:
        """Defer the creation of ASGI's scope to the regular path."""
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_headers_complete(self) -> None:
        """Hold back a request that may take the fast path until it has arrived whole."""
        if self.url == POST_URL and self.door is not None and self._is_ordinary():
            self.is_deferred, self._body = True, b""
        else:
            self.begin_answer()

    def on_body(self, body: bytes) -> None:
        """Collect the body."""
        if self.is_deferred:
            self._body += body
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Offer a complete request to the door."""
        if not self.is_deferred:
            super().on_message_complete()
            return
        self.is_deferred = False
        before: Any = self.cycle
        if self._lane is None and self.door is not None:
            self._lane = self.door.open_lane()
        if self._lane is not None and len(self._body) <= MAX_POST_BYTES:
            post: Any = Post(self, self.headers, self._body, keep_alive=self.parser.should_keep_alive())
            self.cycle = post
            if self._lane.take(post):
                self._body = b""
                return
        self.cycle = before
        self._go_the_long_way()
        super().on_message_complete()

    def begin_answer(self) -> None:
        """Create ASGI's scope and start the application."""
        url, headers, expect = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()  # which begins these anew
        self.url, self.scope["headers"], self.headers, self.expect_100_continue = url, headers, headers, expect
        super().on_headers_complete()

    def go_on(self, post: Post, app: Application) -> None:
        """Replace a started POST with uvicorn's cycle."""
        super().on_message_begin()
        self.scope["method"], self.scope["path"], self.scope["headers"] = "POST", POST_URL.decode(), post.headers
        cycle = RequestResponseCycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=post.keep_alive,
            on_response=self.on_response_complete,
        )
        # A pipelined request may have replaced the post in `cycle`, where uvicorn keeps only the newest.
        newest: object = self.cycle
        if newest is post:
            self.cycle = cycle
        else:
            self.answering = cycle
        self._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """Do what uvicorn does, but keep the timer."""
        if self.transport.is_closing():
            return
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            self.flow.resume_reading()
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self._look_for_idleness)

    def handle_websocket_upgrade(self) -> None:
        """Cancel the timer: another protocol takes over the connection."""
        self._forget_timer()
        super().handle_websocket_upgrade()

    def _unset_keepalive_if_required(self) -> None:
        self._idle_since = None

    def _look_for_idleness(self) -> None:
        self.timeout_keep_alive_task = None
        if self._idle_since is None:
            return
        left_s = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left_s > 0:
            self.timeout_keep_alive_task = self.loop.call_later(left_s, self._look_for_idleness)
        else:
            self.timeout_keep_alive_handler()

    def _forget_timer(self) -> None:
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None

    def _is_ordinary(self) -> bool:
        parser = self.parser
        return (
            (self.cycle is None or self.cycle.response_complete)
            and not self.pipeline
            and not self.expect_100_continue
            and not self.flow.write_paused
            and parser.get_method() == b"POST"
            and parser.get_http_version() == "1.1"
            and not parser.should_upgrade()
        )

    def _go_the_long_way(self) -> None:
        self.begin_answer()
        body, self._body = self._body, b""
        if body:
            super().on_body(body)
