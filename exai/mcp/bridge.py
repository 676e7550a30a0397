"""`exai connect`: newline-delimited JSON on standard input and output, one WebSocket to the daemon.

Invariant: every request read from standard input gets exactly one answer on standard output, from the daemon or, when
that cannot be reached or is lost, from here; nothing but messages is ever written there. Messages pass as bytes, and
only their method and id are looked at. Every editor window starts one of these: nothing heavy may be imported.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
from collections.abc import Mapping
from concurrent.futures import CancelledError
from typing import Any
from urllib.parse import urlsplit

import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.protocol import State
from websockets.typing import Subprotocol

PATIENCE_S = 8.0
"""How long requests wait for a daemon that is away, from when it went; editors give a start about ten seconds."""

RETRY_FIRST_S = 0.1
RETRY_LAST_S = 2.0
OPEN_TIMEOUT_S = 5.0
SEND_TIMEOUT_S = 30.0
REPLAY_TIMEOUT_S = 10.0
LAST_ANSWERS_TIMEOUT_S = 5.0
"""How long answers are awaited after the end of standard input."""

FRAME_MAX_BYTES = 64 * 1_048_576
READ_BYTES = 65_536
LINES_AHEAD = 16
FRAMES_AHEAD = 64

STDIN, STDOUT = 0, 1
BUSY_STATUSES = (429, 503)
NEVER = float("-inf")
"""Since when a daemon is away that no waiting would bring back."""

DISCONNECTED = -31004
"""Beside the daemon's own codes, which are in `exai.mcp.eras`."""

PARSE_ERROR = -32700

_SUBSCRIPTION = "io.modelcontextprotocol/subscriptionId"
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

Id = str | int


def run_bridge(url: str, *, headers: Mapping[str, str] | None = None, patience_s: float = PATIENCE_S) -> int:
    """Carry messages between standard input and output and the daemon until input ends; returns the exit status."""
    try:
        asyncio.run(Bridge(url, headers or {}, patience_s).run())
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        pass  # Nobody reads any more, which is an editor's way of ending this.
    return 0


class Bridge:
    """The state between one standard input and one daemon."""

    def __init__(self, url: str, headers: Mapping[str, str], patience_s: float) -> None:
        self._url = _socket_url(url)
        self._headers = headers
        self._patience_s = patience_s
        self._lines: asyncio.Queue[bytes | None] = asyncio.Queue(LINES_AHEAD)
        self._outgoing: asyncio.Queue[bytes | None] = asyncio.Queue(FRAMES_AHEAD)
        self._socket: ClientConnection | None = None
        self._news = asyncio.Event()
        self._in_flight: dict[Id, None] = {}
        self._answered = asyncio.Event()
        self._handshake: list[bytes] = []
        self._listening: dict[Id, bytes] = {}
        self._acknowledged: set[Id] = set()
        self._away_since = 0.0
        self._why_away = "no connection was made yet"

    async def run(self) -> None:
        """Return when standard input has ended and what was asked has been answered, or nobody reads any more."""
        loop = asyncio.get_running_loop()
        self._away_since = loop.time()
        _start_thread("stdin", _read_lines, STDIN, loop, self._lines)
        writer = asyncio.create_task(self._write(), name="bridge writer")
        keeper = asyncio.create_task(self._keep_connected(), name="bridge connection")
        sender = asyncio.create_task(self._forward_lines(), name="bridge sender")
        await asyncio.wait({writer, keeper, sender}, return_when=asyncio.FIRST_COMPLETED)
        if sender.done() and not writer.done():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_ANSWERS_TIMEOUT_S):
                    await self._last_answers()
                    await self._outgoing.put(None)
                    await asyncio.wait({writer})
        for task in (keeper, sender, writer):
            task.cancel()
        outcomes = await asyncio.gather(keeper, sender, writer, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome

    # From standard input to the daemon.

    async def _forward_lines(self) -> None:
        while (line := await self._lines.get()) is not None:
            if not line.strip():
                continue
            message = _peeked(line)
            if message is None:
                await self._outgoing.put(_error(None, PARSE_ERROR, "Parse error: not valid JSON"))
            else:
                await self._forward(line.strip(), message)

    async def _forward(self, line: bytes, message: dict[str, Any]) -> None:
        method, key = message.get("method"), message.get("id")
        socket = await self._open_socket()
        if socket is None:
            if isinstance(key, Id) and isinstance(method, str):
                await self._outgoing.put(_error(key, DISCONNECTED, self._unreachable()))
            return
        # Nothing is awaited up to the send: a connection lost from here on finds the request among those to be failed.
        self._remember(line, method, key)
        if isinstance(key, Id) and isinstance(method, str) and method != "subscriptions/listen":
            self._in_flight[key] = None
        if method == "notifications/cancelled":
            self._forget(message.get("params"))
        await _sent(socket, line)

    def _remember(self, line: bytes, method: object, key: object) -> None:
        """Keep what a new connection has to be told again."""
        if method == "initialize":
            self._handshake = [line]
        elif method == "notifications/initialized" and len(self._handshake) == 1:
            self._handshake.append(line)
        elif method == "subscriptions/listen" and isinstance(key, Id):
            self._listening[key] = line

    def _forget(self, params: object) -> None:
        target = params.get("requestId") if isinstance(params, dict) else None
        if isinstance(target, Id):
            self._in_flight.pop(target, None)
            self._unlisten(target)
            self._answered.set()

    def _unlisten(self, key: Id) -> None:
        self._listening.pop(key, None)
        self._acknowledged.discard(key)

    async def _open_socket(self) -> ClientConnection | None:
        """Wait for a connection that still takes messages; None when patience is at its end.

        One that is closing is as good as none: what has not been sent on it can go out on the next.
        """
        loop = asyncio.get_running_loop()
        while self._socket is None or self._socket.state is not State.OPEN:
            left_s = self._away_since + self._patience_s - loop.time() if self._socket is None else self._patience_s
            if left_s <= 0:
                return None
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._news.wait()
        return self._socket

    def _unreachable(self) -> str:
        return f"EXAI does not answer at {self._url}: {self._why_away}. Start it with `exai serve`, or set EXAI_URL"

    async def _last_answers(self) -> None:
        while self._in_flight:
            self._answered.clear()
            await self._answered.wait()

    # The connection.

    async def _keep_connected(self) -> None:
        pause_s = RETRY_FIRST_S
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with self._opened() as socket:
                    await self._replay(socket)
                    self._socket = socket
                    self._news.set()
                    pause_s = RETRY_FIRST_S
                    try:
                        await self._receive(socket)
                    except asyncio.CancelledError:
                        # The editor has ended, which is no error; leaving the context by an exception would say 1011.
                        await socket.close()
                        raise
            except InvalidURI:
                self._why_away = "that is not a WebSocket address"
                self._away_since = NEVER
                self._news.set()
            except InvalidStatus as error:
                words = (error.response.body or b"").decode(errors="replace")
                self._why_away = f"it refused with status {error.response.status_code} {words[:300]}".rstrip()
                if error.response.status_code not in BUSY_STATUSES:
                    self._away_since = NEVER
                    self._news.set()
            except (OSError, InvalidHandshake, ConnectionClosed) as error:
                self._why_away = str(error) or type(error).__name__
            if self._socket is not None:
                self._socket = None
                self._away_since = loop.time()
                self._news.set()
                await self._fail_in_flight()
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RETRY_LAST_S)

    def _opened(self) -> connect:
        is_local = urlsplit(self._url).hostname in _LOOPBACK
        return connect(
            self._url,
            subprotocols=[Subprotocol("mcp")],
            additional_headers=dict(self._headers),
            compression=None,
            max_size=FRAME_MAX_BYTES,
            open_timeout=OPEN_TIMEOUT_S,
            close_timeout=1,
            proxy=None if is_local else True,
        )

    async def _replay(self, socket: ClientConnection) -> None:
        """Bring a new connection to where the lost one was; its answers to that are not the client's business."""
        if len(self._handshake) == 2:
            async with asyncio.timeout(REPLAY_TIMEOUT_S):
                await _sent(socket, self._handshake[0])
                await socket.recv(decode=False)
                await _sent(socket, self._handshake[1])
        for line in list(self._listening.values()):
            await _sent(socket, line)

    async def _receive(self, socket: ClientConnection) -> None:
        while True:
            data = await socket.recv(decode=False)
            message = _peeked(data)
            if message is None:
                continue
            if b"\n" in data or b"\r" in data:
                data = orjson.dumps(message)
            if self._is_for_client(message):
                await self._outgoing.put(data)

    def _is_for_client(self, message: dict[str, Any]) -> bool:
        key = message.get("id")
        if "method" not in message and isinstance(key, Id):
            self._in_flight.pop(key, None)
            self._unlisten(key)
            self._answered.set()
            return True
        if message.get("method") == "notifications/subscriptions/acknowledged":
            subscription = message.get("params", {}).get("_meta", {}).get(_SUBSCRIPTION)
            if subscription in self._acknowledged:
                return False
            self._acknowledged.add(subscription)
        return True

    async def _fail_in_flight(self) -> None:
        lost, self._in_flight = self._in_flight, {}
        problem = (
            f"the connection to EXAI at {self._url} was lost ({self._why_away}); the call may or may not have been "
            "carried out. Call again, with the same idempotency key if any"
        )
        for key in lost:
            await self._outgoing.put(_error(key, DISCONNECTED, problem))
        self._answered.set()

    # From the daemon to standard output.

    async def _write(self) -> None:
        """Write in a thread, because a pipe that nobody reads blocks; ends when told to or when the reader is gone."""
        loop = asyncio.get_running_loop()
        jobs: queue.SimpleQueue[tuple[bytes, asyncio.Future[None]]] = queue.SimpleQueue()
        _start_thread("stdout", _write_lines, STDOUT, loop, jobs)
        while (data := await self._outgoing.get()) is not None:
            written = loop.create_future()
            jobs.put((data + b"\n", written))
            await written


async def _sent(socket: ClientConnection, data: bytes) -> None:
    """Send one text frame; a daemon that takes nothing for a long time is dropped, which ends the receiving side."""
    try:
        async with asyncio.timeout(SEND_TIMEOUT_S):
            await socket.send(data, text=True)
    except TimeoutError:
        socket.transport.abort()
    except ConnectionClosed:
        return


def _socket_url(url: str) -> str:
    """Accept the address of the HTTP door too: it is the same port."""
    for scheme, socket_scheme in (("http://", "ws://"), ("https://", "wss://")):
        if url.startswith(scheme):
            return socket_scheme + url.removeprefix(scheme)
    return url


def _peeked(data: bytes) -> dict[str, Any] | None:
    """Return the message to look at: empty for what the daemon has to judge, None for what is not JSON at all."""
    try:
        message = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {} if b"\\u" in data and _is_utf8(data) else None
    return message if isinstance(message, dict) else {}


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _error(key: Id | None, code: int, problem: str) -> bytes:
    body: dict[str, Any] = {"jsonrpc": "2.0", "error": {"code": code, "message": problem}}
    if key is not None:
        body["id"] = key
    return orjson.dumps(body)


def _start_thread(name: str, target: Any, *arguments: Any) -> None:
    """Start a thread that may be left behind at exit while it blocks on a pipe."""
    threading.Thread(target=target, args=arguments, name=f"bridge {name}", daemon=True).start()


def _read_lines(stdin: int, loop: asyncio.AbstractEventLoop, lines: asyncio.Queue[bytes | None]) -> None:
    """Read the descriptor itself: a buffered file held by a thread at exit would abort the interpreter."""
    with contextlib.suppress(RuntimeError, OSError, CancelledError):  # the loop or the pipe is gone: so is the bridge
        rest = b""
        while data := os.read(stdin, READ_BYTES):
            *whole, rest = (rest + data).split(b"\n") if b"\n" in data else (rest + data,)
            for line in whole:
                asyncio.run_coroutine_threadsafe(lines.put(line), loop).result()
            if len(rest) > FRAME_MAX_BYTES:
                rest = b"too long to be a message"
        if rest:
            asyncio.run_coroutine_threadsafe(lines.put(rest), loop).result()
        asyncio.run_coroutine_threadsafe(lines.put(None), loop).result()


def _write_lines(
    stdout: int,
    loop: asyncio.AbstractEventLoop,
    jobs: queue.SimpleQueue[tuple[bytes, asyncio.Future[None]]],
) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is gone: so is the bridge
        while True:
            data, written = jobs.get()
            view = memoryview(data)
            try:
                while view:
                    view = view[os.write(stdout, view) :]
            except OSError as error:
                loop.call_soon_threadsafe(_settle, written, BrokenPipeError(str(error)))
                return
            loop.call_soon_threadsafe(_settle, written, None)


def _settle(future: asyncio.Future[None], problem: Exception | None) -> None:
    if future.done():
        return
    if problem is None:
        future.set_result(None)
    else:
        future.set_exception(problem)
