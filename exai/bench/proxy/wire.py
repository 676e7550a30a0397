"""A proxy in front of both servers that counts round trips and adds latency, in a process of its own.

Invariant: it uses no time of the measured process: it runs in a separate process, receives commands and returns counts
over its standard streams, and ends with its input.
"""

from __future__ import annotations

import asyncio
import json
import selectors
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from exai.bench.proxy.counting import Count, Counter, PostgresCounter, RedisCounter
from exai.errors import StartupError

START_LIMIT_S: Final = 20.0
ANSWER_LIMIT_S: Final = 20.0
MAX_HELD_BYTES: Final = 64 * 1_048_576
"""Maximum number of bytes in transit in one direction of a connection; beyond it the connection is closed."""

HOST: Final = "127.0.0.1"

ServerKind = Literal["postgres", "redis"]


@dataclass(frozen=True, slots=True)
class Upstream:
    """A server behind the proxy: a socket's `path`, or `host` and `port`; `background` as the counters say."""

    kind: ServerKind
    host: str = ""
    port: int = 0
    path: str = ""
    background: tuple[str, ...] = ()


class LatencyProxy:
    """The proxy as its user sees it; `ports` are where it listens on `HOST`, by kind of server."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.ports: dict[str, int] = {}

    async def take_counts(self) -> dict[str, Count]:
        """Return the counts since the last call, by kind of server."""
        if self._process.stdin is None:
            raise AssertionError("the proxy was started with a pipe")
        self._process.stdin.write(b"\n")
        return {kind: Count(**each) for kind, each in (await self._answer()).items()}

    async def _answer(self) -> dict[str, Any]:
        if self._process.stdout is None:
            raise AssertionError("the proxy was started with a pipe")
        async with asyncio.timeout(ANSWER_LIMIT_S):
            line = await self._process.stdout.readline()
        if not line:
            raise StartupError("the counting proxy", "it ended", "Its traceback is above; please report it")
        answer: dict[str, Any] = json.loads(line)
        return answer


@asynccontextmanager
async def open_wire(upstreams: tuple[Upstream, ...], *, delay_ms: float) -> AsyncIterator[LatencyProxy]:
    """Start the proxy in front of the servers; every byte arrives `delay_ms` after it was sent, either way.

    Raises `StartupError`.
    """
    plan = json.dumps({"delay_s": delay_ms / 1000, "upstreams": [asdict(each) for each in upstreams]})
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "exai.bench.proxy.wire", plan),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # so that an interrupt at the terminal reaches the one who can unwind
    )
    try:
        wire = LatencyProxy(process)
        async with asyncio.timeout(START_LIMIT_S):
            wire.ports = await wire._answer()
        yield wire
    finally:
        if process.stdin is not None:
            process.stdin.close()
        try:
            async with asyncio.timeout(ANSWER_LIMIT_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


class _End(asyncio.Protocol):
    """One end of a connection through the proxy; what it receives is delivered to `other` after the delay."""

    def __init__(self, delay_s: float, on_data: Callable[[bytes], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._delay_s, self._on_data = delay_s, on_data
        self._held: deque[tuple[float, bytes]] = deque()
        self._held_bytes = 0
        self._ended = False
        self._transport: asyncio.Transport | None = None
        self.other: _End | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._on_data(data)
        self._hold(data)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._transport = None
        self._ended = True
        if not self._held:
            self._deliver()

    def joined(self) -> None:
        """Connect to the other end."""
        self._deliver()

    def _hold(self, data: bytes) -> None:
        self._held_bytes += len(data)
        if self._held_bytes > MAX_HELD_BYTES and self._transport is not None:
            self._transport.abort()
        self._held.append((self._loop.time() + self._delay_s, data))
        if len(self._held) == 1:
            self._deliver()

    def _deliver(self) -> None:
        """Deliver the pieces that are due, in order, and schedule the next delivery."""
        target = self.other._transport if self.other is not None else None
        if self.other is None:
            return
        now = self._loop.time()
        while self._held and self._held[0][0] <= now:
            _, data = self._held.popleft()
            self._held_bytes -= len(data)
            if target is not None:
                target.write(data)
        if self._held:
            self._loop.call_at(self._held[0][0], self._deliver)
        elif self._ended and target is not None:
            target.close()


class _Front:
    """Listens in front of one server."""

    def __init__(self, upstream: Upstream, delay_s: float) -> None:
        self.count = Count()
        self._upstream, self._delay_s = upstream, delay_s
        self._joining: set[asyncio.Task[None]] = set()

    async def listen(self) -> int:
        """Return the port."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(self._accepted, HOST, 0)
        port: int = server.sockets[0].getsockname()[1]
        return port

    def take_count(self) -> Count:
        """Return the count so far and begin a new one."""
        taken = Count(self.count.requests, self.count.round_trips)
        self.count.requests = self.count.round_trips = 0
        return taken

    def _accepted(self) -> _End:
        make = PostgresCounter if self._upstream.kind == "postgres" else RedisCounter
        counter: Counter = make(self.count, self._upstream.background)
        client = _End(self._delay_s, counter.sent)
        task = asyncio.get_running_loop().create_task(self._join(client, counter))
        self._joining.add(task)
        task.add_done_callback(self._joining.discard)
        return client

    async def _join(self, client: _End, counter: Counter) -> None:
        loop, upstream = asyncio.get_running_loop(), self._upstream
        server = _End(self._delay_s, counter.received)
        try:
            if upstream.path:
                await loop.create_unix_connection(lambda: server, upstream.path)
            else:
                await loop.create_connection(lambda: server, upstream.host, upstream.port)
        except OSError:
            if client._transport is not None:
                client._transport.abort()
            return
        client.other, server.other = server, client
        client.joined()


async def _serve(plan: dict[str, Any]) -> None:
    upstreams = [Upstream(**{**each, "background": tuple(each["background"])}) for each in plan["upstreams"]]
    fronts = {each.kind: _Front(each, plan["delay_s"]) for each in upstreams}
    _say({kind: await front.listen() for kind, front in fronts.items()})
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.readline():
        _say({kind: asdict(front.take_count()) for kind, front in fronts.items()})


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Run the proxy that `open_wire` starts."""
    # Only select waits for fractions of a millisecond; the other selectors round a delay of 2 ms up to 3.
    loop_of = selectors.SelectSelector
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(loop_of())) as runner:
        runner.run(_serve(json.loads(sys.argv[1])))


if __name__ == "__main__":
    main()
