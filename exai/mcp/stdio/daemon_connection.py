"""The bridge's WebSocket to the daemon: opened at the start, and again whenever it is lost.

Invariant: at most one connection is open. It is available to requests only after the handshake and the subscriptions
were repeated on it. Messages, and a token, are sent to the configured address only.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, InvalidURI, WebSocketException
from websockets.protocol import State
from websockets.typing import Subprotocol

from exai.mcp.core.directories import directory_header
from exai.mcp.core.versions import MESSAGE_MAX_HEADER
from exai.settings.addresses import is_loopback

RETRY_FIRST_S = 0.1
RETRY_LAST_S = 2.0
KNOWN_FOR_S = 0.2
"""Time after a failed attempt during which the daemon is considered unreachable without a new attempt."""

LAST_TRY_S = 1.0
OPEN_TIMEOUT_S = 5.0
SEND_TIMEOUT_S = 30.0
SLOWEST_BYTES_PER_S = 131_072
"""Minimum rate of large messages, for which the daemon gets additional time to send."""

FRAME_MAX_BYTES = 64 * 1_048_576
BUSY_STATUSES = (429, 503)
REDIRECTS = range(300, 400)
START_CURE = "Start the daemon with `exai serve`, or set EXAI_URL to its address"
ADDRESS_CURE = "Set EXAI_URL to the address of an EXAI daemon, such as ws://127.0.0.1:8079/"
CURES = {
    401: "Set EXAI_TOKEN in the environment of this command to a token of the daemon",
    429: "The daemon accepts no more connections now; try again later",
    503: "The daemon accepts no more connections now; try again later",
}
NEVER = float("-inf")
"""The time of loss of a daemon for which waiting is useless."""

UseSocket = Callable[[ClientConnection], Awaitable[None]]

PROJECT_VARIABLE = "CLAUDE_PROJECT_DIR"
"""Claude Code's variable for the directory of the open project."""


def directory_of_client(url: str) -> dict[str, str]:
    """Return the header with the client's working directory, for a daemon of this machine only."""
    if not is_loopback(urlsplit(url).hostname or ""):
        return {}
    try:
        return directory_header(os.environ.get(PROJECT_VARIABLE) or str(Path.cwd()))
    except OSError:
        return {}  # The working directory was removed.


class Dial(connect):
    """Connects to the configured address only: a redirect would send messages, and a token, elsewhere."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        """Follow no redirect."""
        return exc


class DaemonConnection:
    """The connection to one daemon, which may be unreachable for a while."""

    def __init__(self, url: str, headers: Mapping[str, str], patience_s: float) -> None:
        self.url = _socket_url(url)
        self.message_max_bytes: int | None = None
        """The largest message that the daemon accepts, once it is known."""

        self.problem, self._cure = "no connection was made yet", START_CURE
        self._headers = headers
        self._patience_s = patience_s
        self._socket: ClientConnection | None = None
        self._state_changed = asyncio.Event()
        """Set when a connection is opened or lost, and when an attempt has failed."""

        self._lost_at_s = asyncio.get_running_loop().time()
        self._attempted_at_s = NEVER
        self._retry = asyncio.Event()

    @property
    def unreachable(self) -> str:
        """Return the text of the error for a request that cannot be sent."""
        return f"EXAI cannot be reached at {self.url}: {self.problem}. {self._cure}"

    async def open_socket(self) -> ClientConnection | None:
        """Wait for an open connection. Returns None when `patience_s` has passed and one more attempt has failed.

        A closing connection is not used: messages that were not sent on it can be sent on the next.
        """
        loop = asyncio.get_running_loop()
        while self._socket is None or self._socket.state is not State.OPEN:
            left_s = self._lost_at_s + self._patience_s - loop.time() if self._socket is None else self._patience_s
            if left_s <= 0:
                return await self._try_once_more()
            self._state_changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._state_changed.wait()
        return self._socket

    async def _try_once_more(self) -> ClientConnection | None:
        """Try now to reach a daemon that has been away for long; the next regular attempt may be seconds away."""
        if self._lost_at_s == NEVER or asyncio.get_running_loop().time() - self._attempted_at_s < KNOWN_FOR_S:
            return None
        self._state_changed.clear()
        self._retry.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_TRY_S):
                await self._state_changed.wait()
        return self._socket

    async def run(
        self, replay: UseSocket, receive: UseSocket, on_loss: Callable[[int | None], Awaitable[None]]
    ) -> None:
        """Keep a connection open until cancelled.

        `replay` prepares each new connection, `receive` processes its messages until it is lost, and `on_loss` is then
        called with its close code.
        """
        pause_s = RETRY_FIRST_S
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with self._dial() as socket:
                    # Published only after the replay, so that no request precedes the handshake on the new connection.
                    await replay(socket)
                    self._socket = socket
                    self.message_max_bytes = _stated_limit(socket) or self.message_max_bytes
                    self._state_changed.set()
                    pause_s = RETRY_FIRST_S
                    try:
                        await receive(socket)
                    except asyncio.CancelledError:
                        # The editor has ended, which is no error; leaving by an exception would close with 1011.
                        await socket.close()
                        raise
            except (InvalidURI, ImportError, ValueError) as error:
                self.problem = "that is not a WebSocket address" if isinstance(error, InvalidURI) else str(error)
                self._cure = ADDRESS_CURE
                self._give_up()
            except InvalidStatus as error:
                self._explain_status(error)
            except (OSError, EOFError, WebSocketException) as error:
                self.problem, self._cure = str(error) or type(error).__name__, START_CURE
            if self._socket is not None:
                lost, self._socket = self._socket, None
                self._lost_at_s = loop.time()
                self._state_changed.set()
                await on_loss(lost.close_code)
            self._attempted_at_s = loop.time()
            self._state_changed.set()
            self._retry.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._retry.wait()
            pause_s = min(2 * pause_s, RETRY_LAST_S)

    def _explain_status(self, error: InvalidStatus) -> None:
        """Store why the handshake was refused, and fail the waiting requests unless the daemon is only busy."""
        status = error.response.status_code
        words = (error.response.body or b"").decode(errors="replace")
        self.problem = f"the connection was refused with HTTP status {status}: {words[:300]}".rstrip(": \n")
        self._cure = CURES.get(status, ADDRESS_CURE)
        if status in REDIRECTS:
            self.problem = f"it redirects to {error.response.headers.get('Location')}, which is not followed"
        if status not in BUSY_STATUSES:
            self._give_up()

    def _give_up(self) -> None:
        """Fail all waiting requests: the problem is not temporary."""
        self._lost_at_s = NEVER
        self._state_changed.set()

    def _dial(self) -> connect:
        is_local = is_loopback(urlsplit(self.url).hostname or "")
        return Dial(
            self.url,
            subprotocols=[Subprotocol("mcp")],
            additional_headers=dict(self._headers),
            compression=None,
            max_size=FRAME_MAX_BYTES,
            open_timeout=OPEN_TIMEOUT_S,
            close_timeout=1,
            proxy=None if is_local else True,
        )


async def send_text(socket: ClientConnection, data: bytes) -> None:
    """Send one text frame. Drops a daemon that accepts nothing for a long time, which ends the receiving side."""
    try:
        async with asyncio.timeout(SEND_TIMEOUT_S + len(data) / SLOWEST_BYTES_PER_S):
            await socket.send(data, text=True)
    except TimeoutError:
        socket.transport.abort()
    except (ConnectionClosed, OSError):
        return


def _stated_limit(socket: ClientConnection) -> int | None:
    """Return the size of the largest message that the daemon accepts, or None if it has not stated one."""
    stated = socket.response.headers.get(MESSAGE_MAX_HEADER, "") if socket.response is not None else ""
    return int(stated) if stated.isascii() and stated.isdecimal() else None


def _socket_url(url: str) -> str:
    """Return the WebSocket URL; the address of the HTTP transport is accepted too, since the port is the same."""
    for scheme, socket_scheme in (("http://", "ws://"), ("https://", "wss://")):
        if url.startswith(scheme):
            return socket_scheme + url.removeprefix(scheme)
    return url
