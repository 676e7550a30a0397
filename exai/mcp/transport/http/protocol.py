"""uvicorn's HTTP protocol with the limits that a server open to unknown clients needs.

Invariant: a connection costs bounded time and memory for any input. Heads must arrive whole within the
handshake timeout and stay small; a peer that stops reading is aborted, not waited for.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar, cast

from exai.mcp.transport.extensions import ABORT
from exai.mcp.transport.http.fast_path import FastPosts
from exai.mcp.transport.http.flow import Flow
from exai.mcp.transport.http.older_http import UnchunkedCycle
from exai.mcp.transport.http.post_protocol import PostProtocol
from exai.mcp.transport.library_parts import Config, HttpToolsProtocol, ServerState
from exai.mcp.transport.pending import KEEP_ALIVE_S, STATE, PendingConnection, PendingConnections
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

HOLD_S = 0.005
"""Time for which a head that repeats the last one's is held until its body arrives; most follow within 0.1 ms."""

MAX_TURNED_AWAY = 256
"""Number of excess connections that are answered with 503 at a time; further ones are aborted without an answer."""

_FULL = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 5\r\ncontent-length: 0\r\n\r\n"
_BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_HEAD_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


def http_protocol(settings: ServerSettings, posts: FastPosts) -> type[HttpToolsProtocol]:
    """Return uvicorn's HTTP protocol with the limits of `settings`, and with `posts` as its fast path."""

    class Limited(_Http):
        limits = settings
        pending = PendingConnections()
        fast_posts = posts

    return Limited


class _Refused(Exception):
    """Ends the parser from within one of its callbacks."""


class _Http(PostProtocol):
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
        self._held = b""
        self._holding: asyncio.TimerHandle | None = None
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
        self._release_held()
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
        if self._held:
            data = self._release_held() + data
        if not self._is_message_open and not self._is_head_awaited:
            if self.answer_repeated(data):
                return
            if self.is_repeated_head(data):
                self._hold(data)
                return
        self._feed(data)

    def _hold(self, head: bytes) -> None:
        self._unset_keepalive_if_required()
        self._held, self._holding = head, self.loop.call_later(HOLD_S, self._hold_no_longer)

    def _release_held(self) -> bytes:
        held, self._held = self._held, b""
        if self._holding is not None:
            self._holding.cancel()
            self._holding = None
        return held

    def _hold_no_longer(self) -> None:
        """Give a held head to the parser: its body is late, and takes the regular path with its time limit."""
        held = self._release_held()
        if held and not self.transport.is_closing():
            self._feed(held)

    def _feed(self, data: bytes) -> None:
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
            self.first_data = None if self._head_bytes else data
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
        super().on_header(name, value)
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
        if self.transport.is_closing():
            self._wait_if_closing()
        elif self._is_message_open:
            # The answer precedes the end of the body. The rest is read and discarded: closing now would reset the
            # connection, and the answer would be lost. The time for that is limited.
            self._patience = self.loop.call_later(self.limits.handshake_timeout_s, self.transport.abort)

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
