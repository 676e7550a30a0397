"""`exai connect`: newline-delimited JSON on standard input and output, one WebSocket to the daemon.

Invariant: every request read from standard input gets exactly one answer on standard output: from the daemon, or from
the bridge if the daemon cannot be reached, is lost, or would not understand the request. Nothing but messages is
written there, and after the end of input only answers. Messages pass as bytes; they are parsed only to
classify them. Every editor window starts a bridge, so it must not import anything heavy.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, InvalidURI, WebSocketException
from websockets.protocol import State
from websockets.typing import Subprotocol

from exai.mcp.core.jsonrpc import (
    INVALID_REQUEST,
    JsonRpcMessage,
    Malformed,
    Notification,
    Request,
    RequestId,
    Response,
    encode_result,
    request_id,
)
from exai.mcp.core.versions import MESSAGE_MAX_HEADER, META_SUBSCRIPTION, OVERLOADED
from exai.mcp.stdio.messages import error_of, refusal_of, too_large, understood
from exai.mcp.stdio.pipes import InputLine, start_reading, start_writing
from exai.program import program
from exai.settings.addresses import is_loopback

PATIENCE_S = 8.0
"""Time that requests wait for an unreachable daemon, from its loss; editors allow about ten seconds for a start."""

RETRY_FIRST_S = 0.1
RETRY_LAST_S = 2.0
KNOWN_FOR_S = 0.2
"""Time after a failed attempt during which the daemon is considered unreachable without a new attempt."""

LAST_TRY_S = 1.0
OPEN_TIMEOUT_S = 5.0
SEND_TIMEOUT_S = 30.0
SLOWEST_BYTES_PER_S = 131_072
"""Minimum rate of large messages, for which the daemon gets additional time to send."""

REPLAY_TIMEOUT_S = 10.0
LAST_ANSWERS_TIMEOUT_S = 5.0
"""Time to wait for answers after the end of standard input."""

FLUSH_TIMEOUT_S = 2.0
"""Time to write the remaining output to a client that may no longer read."""

LINE_MAX_BYTES = 64 * 1_048_576
LINES_AHEAD = 4
FRAMES_AHEAD = 64

STDIN, STDOUT = 0, 1
BUSY_STATUSES = (429, 503)
REDIRECTS = range(300, 400)
START_CURE = f"Start the daemon with `{program()} serve`, or set EXAI_URL to its address"
ADDRESS_CURE = "Set EXAI_URL to the address of an EXAI daemon, such as ws://127.0.0.1:8079/"
CURES = {
    401: "Set EXAI_TOKEN in the environment of this command to a token of the daemon",
    429: "The daemon accepts no more connections now; try again later",
    503: "The daemon accepts no more connections now; try again later",
}
TOO_BIG = 1009
NEVER = float("-inf")
"""The time of loss of a daemon for which waiting is useless."""

DISCONNECTED = -31004
"""An error code beside the daemon's own, which are in `exai.mcp.core.versions`."""


def run_bridge(
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    patience_s: float = PATIENCE_S,
    stdin: int = STDIN,
    stdout: int = STDOUT,
) -> int:
    """Carry messages between two descriptors and the daemon until input ends. Returns the exit status."""
    try:
        asyncio.run(Bridge(url, headers or {}, patience_s, stdin, stdout).run())
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        pass  # The client has closed standard output, which is how editors end the bridge.
    return 0


class Dial(connect):
    """Connects to the configured address only: a redirect would send messages, and a token, elsewhere."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        """Follow no redirect."""
        return exc


class Bridge:
    """The state of one standard input and one daemon."""

    def __init__(
        self, url: str, headers: Mapping[str, str], patience_s: float, stdin: int = STDIN, stdout: int = STDOUT
    ) -> None:
        self._url = _socket_url(url)
        self._headers = headers
        self._patience_s = patience_s
        self._stdin, self._stdout = stdin, stdout
        self._lines: asyncio.Queue[InputLine | None] = asyncio.Queue(LINES_AHEAD)
        self._outgoing: asyncio.Queue[tuple[bytes, bool] | None] = asyncio.Queue(FRAMES_AHEAD)
        """The messages to write, and whether each is an answer."""

        self._input_ended = asyncio.Event()
        self._socket: ClientConnection | None = None
        self._message_max_bytes: int | None = None
        self._news = asyncio.Event()
        self._in_flight: dict[RequestId, int] = {}
        """The running requests and their sizes."""

        self._unsent: InputLine | None = None

        self._answered = asyncio.Event()
        self._handshake: list[bytes] = []
        self._listening: dict[RequestId, bytes] = {}
        self._acknowledged: set[RequestId] = set()
        self._away_since = 0.0
        self._why_away, self._cure = "no connection was made yet", START_CURE
        self._tried_at = NEVER
        self._retry = asyncio.Event()

    async def run(self) -> None:
        """Run until standard input has ended and every request is answered, or the client no longer reads."""
        loop = asyncio.get_running_loop()
        self._away_since = loop.time()
        start_reading(self._stdin, loop, self._lines, self._input_ended, LINE_MAX_BYTES)
        writer = asyncio.create_task(self._write(), name="bridge writer")
        keeper = asyncio.create_task(self._keep_connected(), name="bridge connection")
        sender = asyncio.create_task(self._forward_lines(), name="bridge sender")
        ended = asyncio.create_task(self._input_ended.wait(), name="bridge input")
        tasks = (keeper, sender, writer, ended)
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not writer.done():
            await self._finish(sender, writer)
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome

    async def _finish(self, sender: asyncio.Task[None], writer: asyncio.Task[None]) -> None:
        """Answer every open request, within limits that hold even if daemon or client no longer respond."""
        await asyncio.wait({sender, writer}, timeout=self._patience_s, return_when=asyncio.FIRST_COMPLETED)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_ANSWERS_TIMEOUT_S):
                await asyncio.wait({sender, writer}, return_when=asyncio.FIRST_COMPLETED)
                while self._in_flight and not writer.done():
                    self._answered.clear()
                    await self._answered.wait()
        is_all_read = sender.done()
        sender.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_TIMEOUT_S):
                await self._answer_the_rest(is_all_read=is_all_read)
                await self._outgoing.put(None)
                await asyncio.wait({writer})

    async def _answer_the_rest(self, *, is_all_read: bool) -> None:
        problem = "the input has ended, and EXAI has not answered within {:g} s; the call may or may not have been done"
        await self._fail(problem.format(LAST_ANSWERS_TIMEOUT_S))
        for key in self._listening:
            await self._answer(encode_result(key, {"resultType": "complete", "_meta": {META_SUBSCRIPTION: key}}))
        line = None if is_all_read else self._unsent or await self._lines.get()
        while line is not None:
            message, _, raw_id = understood(line)
            if isinstance(message, Request):
                await self._answer(error_of(message.id, DISCONNECTED, "the input has ended; the call was not sent"))
            elif isinstance(message, Malformed):
                await self._answer(refusal_of(raw_id, message.error))
            line = await self._lines.get()

    # From standard input to the daemon.

    async def _forward_lines(self) -> None:
        while (line := await self._lines.get()) is not None:
            self._unsent = line
            await self._forward(*understood(line))
            self._unsent = None

    async def _forward(self, message: JsonRpcMessage, data: bytes, raw_id: bytes | None) -> None:
        match message:
            case Malformed():
                # Not forwarded: the daemon would refuse it too, and close a connection with many such messages.
                await self._answer(refusal_of(raw_id, message.error))
            case Request():
                if message.id in self._in_flight or message.id in self._listening:
                    problem = f"Invalid Request: id {message.id!r} is already in use"
                    await self._answer(error_of(message.id, INVALID_REQUEST, problem))
                elif (socket := await self._open_socket()) is None:
                    await self._answer(error_of(message.id, DISCONNECTED, self._unreachable()))
                elif self._message_max_bytes is not None and len(data) > self._message_max_bytes:
                    await self._answer(error_of(message.id, OVERLOADED, too_large(len(data), self._message_max_bytes)))
                else:
                    # No await between this and the send: if the connection is lost from here on, the request is
                    # among those that fail.
                    self._remember(message, data)
                    self._unsent = None
                    await _send_text(socket, data)
            case Notification() | Response():
                socket = await self._open_socket()
                if socket is None:
                    return
                if isinstance(message, Notification):
                    self._remember_notification(message, data)
                await _send_text(socket, data)

    def _remember(self, request: Request, line: bytes) -> None:
        """Store what a new connection has to repeat, and the request to be answered."""
        if request.method == "subscriptions/listen":
            self._listening[request.id] = line
            return
        if request.method == "initialize":
            self._handshake = [line]
        self._in_flight[request.id] = len(line)

    def _remember_notification(self, message: Notification, line: bytes) -> None:
        if message.method == "notifications/initialized" and len(self._handshake) == 1:
            self._handshake.append(line)
        elif message.method == "notifications/cancelled":
            target = message.params.get("requestId")
            # A number is the same id in every spelling.
            target = int(target) if isinstance(target, float) and target.is_integer() else target
            if request_id(target):
                self._settle(target)

    def _settle(self, key: RequestId) -> None:
        """Note that no further message follows for this request."""
        self._in_flight.pop(key, None)
        self._listening.pop(key, None)
        self._acknowledged.discard(key)
        self._answered.set()

    async def _open_socket(self) -> ClientConnection | None:
        """Wait for an open connection. Returns None when `patience_s` has passed and one more attempt has failed.

        A closing connection is not used: messages that were not sent on it can be sent on the next.
        """
        loop = asyncio.get_running_loop()
        while self._socket is None or self._socket.state is not State.OPEN:
            left_s = self._away_since + self._patience_s - loop.time() if self._socket is None else self._patience_s
            if left_s <= 0:
                return await self._try_once_more()
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._news.wait()
        return self._socket

    async def _try_once_more(self) -> ClientConnection | None:
        """Try to reach a daemon that is long gone now, since the next regular attempt may be seconds away."""
        if self._away_since == NEVER or asyncio.get_running_loop().time() - self._tried_at < KNOWN_FOR_S:
            return None
        self._news.clear()
        self._retry.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_TRY_S):
                await self._news.wait()
        return self._socket

    def _unreachable(self) -> str:
        return f"EXAI cannot be reached at {self._url}: {self._why_away}. {self._cure}"

    # The connection.

    async def _keep_connected(self) -> None:
        pause_s = RETRY_FIRST_S
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with self._dial() as socket:
                    # Published only after the replay, so that no request precedes the handshake on the new connection.
                    await self._replay(socket)
                    self._socket = socket
                    self._message_max_bytes = _stated_limit(socket) or self._message_max_bytes
                    self._news.set()
                    pause_s = RETRY_FIRST_S
                    try:
                        await self._receive(socket)
                    except asyncio.CancelledError:
                        # The editor has ended, which is no error; leaving by an exception would close with 1011.
                        await socket.close()
                        raise
            except (InvalidURI, ImportError, ValueError) as error:
                self._why_away = "that is not a WebSocket address" if isinstance(error, InvalidURI) else str(error)
                self._cure = ADDRESS_CURE
                self._give_up()
            except InvalidStatus as error:
                status = error.response.status_code
                words = (error.response.body or b"").decode(errors="replace")
                self._why_away = f"the connection was refused with HTTP status {status}: {words[:300]}".rstrip(": \n")
                self._cure = CURES.get(status, ADDRESS_CURE)
                if status in REDIRECTS:
                    self._why_away = f"it redirects to {error.response.headers.get('Location')}, which is not followed"
                if status not in BUSY_STATUSES:
                    self._give_up()
            except (OSError, EOFError, WebSocketException) as error:
                self._why_away, self._cure = str(error) or type(error).__name__, START_CURE
            if self._socket is not None:
                lost, self._socket = self._socket, None
                self._away_since = loop.time()
                self._news.set()
                await self._fail_in_flight(lost.close_code)
            self._tried_at = loop.time()
            self._news.set()
            self._retry.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._retry.wait()
            pause_s = min(2 * pause_s, RETRY_LAST_S)

    def _give_up(self) -> None:
        """Fail all waiting requests: the problem is not temporary."""
        self._away_since = NEVER
        self._news.set()

    def _dial(self) -> connect:
        is_local = is_loopback(urlsplit(self._url).hostname or "")
        return Dial(
            self._url,
            subprotocols=[Subprotocol("mcp")],
            additional_headers=dict(self._headers),
            compression=None,
            max_size=LINE_MAX_BYTES,
            open_timeout=OPEN_TIMEOUT_S,
            close_timeout=1,
            proxy=None if is_local else True,
        )

    async def _replay(self, socket: ClientConnection) -> None:
        """Repeat the handshake and subscriptions on a new connection; the client does not receive these answers."""
        if len(self._handshake) == 2:
            async with asyncio.timeout(REPLAY_TIMEOUT_S):
                await _send_text(socket, self._handshake[0])
                await socket.recv(decode=False)
                await _send_text(socket, self._handshake[1])
        for line in list(self._listening.values()):
            await _send_text(socket, line)

    async def _receive(self, socket: ClientConnection) -> None:
        while True:
            data = await socket.recv(decode=False)
            try:
                message = orjson.loads(data)
            except orjson.JSONDecodeError:
                continue
            if not isinstance(message, dict):
                continue
            if b"\n" in data or b"\r" in data:
                data = orjson.dumps(message)
            if "method" in message:
                if self._is_for_client(message):
                    await self._outgoing.put((data, False))
            else:
                if request_id(message.get("id")):
                    self._settle(message["id"])
                await self._answer(data)

    def _is_for_client(self, message: dict[str, Any]) -> bool:
        """Return whether this message is new to the client; a repeated subscription is acknowledged a second time."""
        if message["method"] == "notifications/subscriptions/acknowledged":
            subscription = message.get("params", {}).get("_meta", {}).get(META_SUBSCRIPTION)
            if subscription in self._acknowledged:
                return False
            self._acknowledged.add(subscription)
        return True

    async def _fail_in_flight(self, code: int | None) -> None:
        if code == TOO_BIG and self._in_flight:
            # The daemon did not say which message was too large; it must be the largest.
            largest = max(self._in_flight, key=self._in_flight.__getitem__)
            self._message_max_bytes = self._in_flight.pop(largest) - 1
            await self._answer(error_of(largest, OVERLOADED, too_large(self._message_max_bytes + 1, None)))
        await self._fail(
            f"the connection to EXAI at {self._url} was lost ({self._why_away}); the call may or may not have been "
            "carried out. Call again, with the same idempotency key if any"
        )

    async def _fail(self, problem: str) -> None:
        lost, self._in_flight = self._in_flight, {}
        for key in lost:
            await self._answer(error_of(key, DISCONNECTED, problem))
        self._answered.set()

    # From the daemon to standard output.

    async def _answer(self, data: bytes) -> None:
        await self._outgoing.put((data, True))

    async def _write(self) -> None:
        """Write in a thread, because a pipe without a reader blocks. Ends on request or when the reader is gone."""
        loop = asyncio.get_running_loop()
        jobs = start_writing(self._stdout, loop)
        while (item := await self._outgoing.get()) is not None:
            data, is_answer = item
            if self._input_ended.is_set() and not is_answer:
                continue
            written = loop.create_future()
            jobs.put((data + b"\n", written))
            await written


async def _send_text(socket: ClientConnection, data: bytes) -> None:
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
