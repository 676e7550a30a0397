"""Call a transport with minimal cost of the client: each caller sends the same bytes again after each answer.

Invariant: requests are those of an ordinary client, and every answer is parsed far enough to distinguish it from an
error.
"""

from __future__ import annotations

import asyncio
import resource
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, cast

from exai.bench.batch import Batch
from exai.errors import StartupError

HOST: Final = "127.0.0.1"
OPENING_AT_ONCE: Final = 100
OPEN_TIMEOUT_S: Final = 60.0
CALLS_TIMEOUT_S: Final = 300.0

_TEXT: Final = 0x81
_PING: Final = 0x89
_PONG: Final = b"\x8a\x80\0\0\0\0"
_HANDSHAKE: Final = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mcp\r\n"
)


class Broken(Exception):
    """The server closed a connection or sent an unexpected answer."""


class Caller(ABC, asyncio.Protocol):
    """One connection with at most one call in flight; counts its `answers` and records their `latencies`."""

    def __init__(self, message: bytes) -> None:
        self._message = self.framed(message)
        self._transport: asyncio.Transport | None = None
        self._data = b""
        self._sent_at = 0.0
        self._left: list[int] = [0]
        self._answered: asyncio.Future[None] | None = None
        self.latencies: list[float] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake, if the transport has one."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wake the waiting task."""
        self._fail(Broken(f"the server closed a connection{f': {exc}' if exc else ''}"))

    def data_received(self, data: bytes) -> None:
        """Process answers."""
        self._data = self._data + data if self._data else data
        while (answer := self.taken()) is not None:
            self._answer(answer)

    async def call(self, left: list[int]) -> None:
        """Call repeatedly until the shared iterator `left` is exhausted. Raises `Broken`."""
        self._left = left
        self._answered = asyncio.get_running_loop().create_future()
        self._next()
        await self._answered

    async def ask(self, message: bytes) -> None:
        """Send a different message and wait for its answer."""
        usual, self._message = self._message, self.framed(message)
        await self.call([1])
        self._message = usual
        self.latencies.clear()

    def close(self) -> None:
        """Abort the connection."""
        if self._transport is not None:
            self._transport.abort()

    @abstractmethod
    def framed(self, message: bytes) -> bytes:
        """Return the bytes of a message."""

    @abstractmethod
    def taken(self) -> bytes | None:
        """Remove one complete answer from the input; None if there is none yet."""

    def write(self, data: bytes) -> None:
        """Send bytes unchanged."""
        if self._transport is not None:
            self._transport.write(data)

    def _next(self) -> None:
        if self._left[0] == 0:
            if self._answered is not None and not self._answered.done():
                self._answered.set_result(None)
            return
        self._left[0] -= 1
        self._sent_at = time.perf_counter()
        self.write(self._message)

    def _answer(self, answer: bytes) -> None:
        self.latencies.append(time.perf_counter() - self._sent_at)
        if b'"result"' not in answer:
            self._fail(Broken(f"the server answered {answer[:200].decode(errors='replace')}"))
            return
        self._next()

    def _fail(self, broken: Broken) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(broken)


class WebSocketCaller(Caller):
    """Text frames with a mask of zeros, which is free for the client and costs the server as much as any other."""

    def __init__(self, message: bytes, *, token: str | None = None) -> None:
        super().__init__(message)
        self._authorization = b"" if token is None else f"Authorization: Bearer {token}\r\n".encode()
        self._is_open: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Request the upgrade."""
        super().connection_made(transport)
        self.write(_HANDSHAKE + self._authorization + b"\r\n")

    def connection_lost(self, exc: Exception | None) -> None:
        """Wake the waiting task."""
        super().connection_lost(exc)
        if not self._is_open.done():
            self._is_open.set_exception(Broken("the server closed a connection during its handshake"))

    async def opened(self) -> None:
        """Wait for the upgrade. Raises `Broken`."""
        await self._is_open

    def framed(self, message: bytes) -> bytes:
        """Return one text frame."""
        size = len(message)
        length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
        return bytes([_TEXT]) + length + bytes(4) + message

    def taken(self) -> bytes | None:
        """Remove one text frame; answers pings."""
        if not self._is_open.done():
            head, found, self._data = self._data.partition(b"\r\n\r\n")
            if not found:
                self._data = head
                return None
            if not head.startswith(b"HTTP/1.1 101"):
                self._is_open.set_exception(Broken(f"no upgrade: {head[:100].decode(errors='replace')}"))
                return None
            self._is_open.set_result(None)
        while (frame := self._frame()) is not None:
            kind, payload = frame
            if kind == _TEXT:
                return payload
            if kind == _PING:
                # The payload of the ping is returned, with a mask of zeros.
                self.write(_PONG[:1] + bytes([0x80 | len(payload)]) + bytes(4) + payload)
        return None

    def _frame(self) -> tuple[int, bytes] | None:
        data = self._data
        if len(data) < 2:
            return None
        size, start = data[1], 2
        if size == 126:
            size, start = int.from_bytes(data[2:4], "big"), 4
        elif size == 127:
            size, start = int.from_bytes(data[2:10], "big"), 10
        if len(data) < start + size:
            return None
        self._data = data[start + size :]
        return data[0], data[start : start + size]


class HttpCaller(Caller):
    """`POST /mcp` on one connection that stays open."""

    async def opened(self) -> None:
        """Do nothing: HTTP has no handshake."""

    def framed(self, message: bytes) -> bytes:
        """Return one request."""
        head = (
            "POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            "Accept: application/json, text/event-stream\r\nMCP-Protocol-Version: 2025-11-25\r\n"
            f"Content-Length: {len(message)}\r\n\r\n"
        )
        return head.encode() + message

    def taken(self) -> bytes | None:
        """Remove one response; return its body."""
        head, found, rest = self._data.partition(b"\r\n\r\n")
        if not found:
            return None
        lines = [line.partition(b":") for line in head.lower().split(b"\r\n")]
        size = next((int(value) for name, _, value in lines if name == b"content-length"), 0)
        if len(rest) < size:
            return None
        self._data = rest[size:]
        return rest[:size]


def allow_open_files() -> int:
    """Raise the limit of open files as far as possible; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


CallerType = type[WebSocketCaller] | type[HttpCaller]


@asynccontextmanager
async def open_callers(
    kind: Callable[[bytes], WebSocketCaller | HttpCaller],
    port: int,
    number: int,
    message: bytes,
    first: bytes | None = None,
) -> AsyncIterator[list[Caller]]:
    """Open connections and send `first` on each. Raises `StartupError`."""
    loop = asyncio.get_running_loop()
    callers: list[Caller] = []

    async def open_one() -> None:
        _, caller = await loop.create_connection(lambda: kind(message), HOST, port)
        callers.append(caller)
        await caller.opened()
        if first is not None:
            await caller.ask(first)

    try:
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                for start in range(0, number, OPENING_AT_ONCE):
                    await asyncio.gather(*(open_one() for _ in range(min(OPENING_AT_ONCE, number - start))))
        except (OSError, Broken) as error:
            cause = f"connection {len(callers)} of {number} could not be opened ({error or 'too slow'})"
            raise StartupError("bench", cause, "Run it on a machine with less other work") from error
        yield callers
    finally:
        for caller in callers:
            caller.close()


async def call_all(callers: Sequence[Caller], number: int) -> tuple[list[float], list[int], float]:
    """Share calls between callers; return their sorted latencies, the share of each caller, and the time taken.

    Raises `StartupError` for a server that fails a call.
    """
    for caller in callers:
        caller.latencies.clear()
    left = [number]
    started = time.perf_counter()
    try:
        async with asyncio.timeout(CALLS_TIMEOUT_S):
            await asyncio.gather(*(caller.call(left) for caller in callers))
    except (Broken, TimeoutError) as error:
        raise StartupError("bench", f"a call was not answered ({error or 'too slow'})", "Look into it") from error
    took_s = time.perf_counter() - started
    latencies = sorted(latency for caller in callers for latency in caller.latencies)
    return latencies, [len(caller.latencies) for caller in callers], took_s


def batch_of(latencies: Sequence[float], took_s: float, cpu_s: float) -> Batch:
    """Return a batch's figures; `cpu_s` is the server's."""
    number = len(latencies)
    return Batch(
        ops_s=number / took_s,
        p50_ms=latencies[number // 2] * 1_000,
        p99_ms=latencies[number * 99 // 100] * 1_000,
        cpu_us=cpu_s / number * 1_000_000,
        as_named=1.0,
    )
