"""uvicorn's HTTP protocol with the entry to the fast path of `fast_path`.

Invariant: a request takes the fast path only if it has arrived completely and no earlier one waits. Until it is taken
nothing is done that uvicorn's path would repeat or miss.
"""

from __future__ import annotations

from typing import ClassVar

from exai.mcp.transport.http.fast_path import MAX_POST_BYTES, POST_URL, AnsweringProtocol, ConnectionPosts, FastPosts


class PostProtocol(AnsweringProtocol):
    """uvicorn's protocol with the fast path, and with one timer for all pauses between a connection's requests."""

    fast_posts: ClassVar[FastPosts | None] = None
    is_deferred = False
    first_data: bytes | None = None
    """The input being parsed, if a request begins with it."""

    _posts: ConnectionPosts | None = None
    _body = b""
    _idle_since: float | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Drop the references that form cycles with the connection."""
        super().connection_lost(exc)
        self._forget_timer()
        if self._posts is not None:
            self._posts.end()
            self._posts = None

    def answer_repeated(self, data: bytes) -> bool:
        """Take a POST whose head repeats the last one's. Returns False if the parser has to see it.

        Nothing may be under way in the parser.
        """
        posts = self._posts
        body = None if posts is None else posts.repeated(data)
        if posts is None or body is None:
            return False
        if not self.cycle.response_complete or self.pipeline or self.flow.write_paused:
            return False
        if not posts.take(self, body, keep_alive=True):
            return False
        if not self.cycle.response_complete:
            self._idle_since = None
        return True

    def is_repeated_head(self, data: bytes) -> bool:
        """Return whether this is the head of a POST that `answer_repeated` may take once its body has arrived."""
        return self._posts is not None and self._posts.is_repeated_head(data)

    def data_received(self, data: bytes) -> None:
        """Pass a request that has not arrived whole to the regular path."""
        super().data_received(data)
        if self.is_deferred:
            self.is_deferred = False
            if not self.transport.is_closing():
                self._keep_lone_head()
                self._take_regular_path()
        self.first_data = None

    def on_message_begin(self) -> None:
        """Defer the creation of ASGI's scope to the regular path."""
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_headers_complete(self) -> None:
        """Hold back a request that may take the fast path until it has arrived whole."""
        if self.url == POST_URL and self.fast_posts is not None and self._is_ordinary():
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
        """Take a complete request if it is a common one."""
        if not self.is_deferred:
            super().on_message_complete()
            return
        self.is_deferred = False
        posts, body = self._connection_posts(), self._body
        keep_alive = self.parser.should_keep_alive()
        is_short = posts is not None and len(body) <= MAX_POST_BYTES
        if posts is not None and is_short and posts.reads(self) and posts.take(self, body, keep_alive=keep_alive):
            self._body = b""
            if self.first_data is not None and keep_alive:
                posts.keep(self.first_data, body)
            return
        self._take_regular_path()
        super().on_message_complete()

    def begin_answer(self) -> None:
        """Create ASGI's scope and start the application."""
        url, headers, expect = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()  # which begins these anew
        self.url, self.scope["headers"], self.headers, self.expect_100_continue = url, headers, headers, expect
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """Do the same as uvicorn, but keep the timer."""
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

    def _keep_lone_head(self) -> None:
        """Keep a head that arrived without its body. Many clients send them separately, and the next head is held."""
        posts = self._connection_posts()
        is_lone = self.first_data is not None and not self._body and self.parser.should_keep_alive()
        if posts is not None and self.first_data is not None and is_lone and posts.reads(self):
            posts.keep(self.first_data, b"")

    def _connection_posts(self) -> ConnectionPosts | None:
        if self._posts is None and self.fast_posts is not None:
            self._posts = ConnectionPosts(self.fast_posts)
        return self._posts

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

    def _take_regular_path(self) -> None:
        self.begin_answer()
        body, self._body = self._body, b""
        if body:
            super().on_body(body)
