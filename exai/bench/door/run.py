"""`exai bench --door`: the cost of calls and idle connections for each transport, and fairness between connections.

Invariant: processor time and memory are those that the server reports for itself, and EXAI and the bare servers are
called alternately by the same callers with the same bytes.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final

from exai.bench.batch import Batch, Figures, figures_of, ratio
from exai.bench.door.client import (
    CallerType,
    HttpCaller,
    WebSocketCaller,
    allow_open_files,
    batch_of,
    call_all,
    open_callers,
)
from exai.bench.door.server import BARE, BARE_HTTP, CPU, DOOR, MEMORY, TOOL
from exai.bench.measure import Comparison
from exai.bench.run import ReportProgress, machine
from exai.errors import StartupError

TEXT_BYTES: Final = 100
SPARE_FILES: Final = 200
WARM_UP_CALLS: Final = 500
END_TIMEOUT_S: Final = 30.0

CALL_WEBSOCKET: Final = "call by WebSocket"
CALL_HTTP: Final = "call by HTTP"
ECHO: Final = "bare echo"
ANSWER: Final = "bare uvicorn"

_HELLO: Final = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "bench", "version": "1"},
    "arguments": {"text": ""},  # for the echo, which has no other argument
}
_CALL: Final = {"name": TOOL, "arguments": {"text": "x" * TEXT_BYTES}}


@dataclass(frozen=True, slots=True)
class DoorPlan:
    """Sizes of a run. `calls` is how many one round of one contestant does, by connections."""

    rounds: int = 9
    calls: tuple[tuple[int, int], ...] = ((1, 2_000), (32, 8_000))
    idle: int = 5_000
    settling_s: float = 1.0
    idle_s: float = 60.0
    crowd: int = 64
    crowd_calls: int = 64_000


FULL: Final = DoorPlan()
QUICK: Final = replace(FULL, rounds=1, calls=((1, 100), (32, 320)), idle=100, idle_s=1.0, crowd_calls=1_280)


@dataclass(frozen=True, slots=True)
class Idle:
    """Idle connections, which only answer pings. `bytes_each` is None if the system does not report memory."""

    connections: int
    seconds: float
    bytes_each: float | None
    core_share: float


@dataclass(frozen=True, slots=True)
class Crowd:
    """Connections that call without pauses. Shares are relative to an equal share of all calls."""

    connections: int
    ops_s: float
    p50_ms: float
    p99_ms: float
    least_share: float
    most_share: float


@dataclass(frozen=True, slots=True)
class DoorReport:
    """The results of a run. `idle_of_echo` is for information; `notes` state deviations from the plan."""

    plan: DoorPlan
    machine: str
    comparisons: tuple[Comparison, ...]
    idle: Idle
    idle_of_echo: Idle
    crowd: Crowd
    notes: tuple[str, ...]


class BenchServer:
    """One server in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.port = 0

    async def wait_started(self) -> None:
        """Wait until the server listens. Raises `StartupError`."""
        self.port = int((await self._read_report())["port"] or 0)

    async def cpu_s(self) -> float:
        """Return the server's processor time so far. Raises `StartupError` if it has ended."""
        return float((await self._ask(CPU))["cpu_s"] or 0.0)

    async def memory_bytes(self) -> float | None:
        """Return the server's memory, None if the system does not report it. Raises `StartupError` if it has ended."""
        return (await self._ask(MEMORY))["memory_bytes"]

    async def _ask(self, what: str) -> dict[str, float | None]:
        assert self._process.stdin is not None  # noqa: S101 - it was opened with one
        self._process.stdin.write(f"{what}\n".encode())
        return await self._read_report()

    async def _read_report(self) -> dict[str, float | None]:
        assert self._process.stdout is not None  # noqa: S101 - it was opened with one
        line = await self._process.stdout.readline()
        if not line:
            raise StartupError("bench", "a server it started has ended", "Run it again; if that fails, look into it")
        figures: dict[str, float | None] = json.loads(line)
        return figures


@asynccontextmanager
async def open_servers() -> AsyncIterator[tuple[BenchServer, BenchServer, BenchServer]]:
    """Start EXAI, the WebSocket echo and the HTTP server, each in a process that ends with the context."""
    async with _open_server(DOOR) as door, _open_server(BARE) as echo, _open_server(BARE_HTTP) as answer:
        yield door, echo, answer


@asynccontextmanager
async def _open_server(kind: str) -> AsyncIterator[BenchServer]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "exai.bench.door.server", kind),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,  # one line for each call
    )
    try:
        server = BenchServer(process)
        await server.wait_started()
        yield server
    finally:
        if process.stdin is not None:
            process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), END_TIMEOUT_S)
        except TimeoutError:
            process.kill()
            await process.wait()


async def run_door(plan: DoorPlan, progress: ReportProgress) -> DoorReport:
    """Run all measurements. Raises `StartupError` if the machine's limits are too low."""
    files = allow_open_files()
    number = max(1, min(plan.idle, files - SPARE_FILES))
    notes: tuple[str, ...] = ()
    if number < plan.idle:
        notes = (f"{number} idle connections instead of {plan.idle}: this machine allows {files} open files",)
    async with open_servers() as servers:
        door, echo, _ = servers
        progress(0.0, "calls in turn")
        steps = _Steps(progress, 0.6 / (len(plan.calls) * plan.rounds * 4))
        comparisons = [each for pair in plan.calls for each in await _compare(servers, pair, plan.rounds, steps)]
        progress(0.6, f"{plan.crowd} connections without a pause")
        crowd = await _crowd(door, plan)
        progress(0.65, f"{number} idle connections")
        idle = await _idle(door, number, plan.settling_s, plan.idle_s)
        progress(0.85, f"{number} idle connections of the echo")
        idle_of_echo = await _idle(echo, number, plan.settling_s, plan.idle_s)
    progress(1.0, "done")
    return DoorReport(plan, machine(), tuple(comparisons), idle, idle_of_echo, crowd, notes)


class _Steps:
    def __init__(self, progress: ReportProgress, each: float) -> None:
        self._progress, self._each, self._done = progress, each, 0.0

    def step(self, name: str) -> None:
        self._done += self._each
        self._progress(self._done, name)


async def _compare(
    servers: tuple[BenchServer, BenchServer, BenchServer], pair: tuple[int, int], rounds: int, steps: _Steps
) -> tuple[Comparison, Comparison]:
    connections, number = pair
    door, bare, bare_http = servers
    contestants: tuple[tuple[BenchServer, CallerType], ...] = (
        (door, WebSocketCaller),
        (bare, WebSocketCaller),
        (door, HttpCaller),
        (bare_http, HttpCaller),
    )
    timed: tuple[list[Batch], ...] = ([], [], [], [])
    for _ in range(rounds):
        for (server, kind), batches in zip(contestants, timed, strict=True):
            batches.append(await _batch(server, kind, connections, number))
            steps.step(f"calls in turn, {connections} at once")
    by_socket, echo, by_http, answer = timed
    return (
        _comparison(CALL_WEBSOCKET, ECHO, connections, by_socket, echo),
        _comparison(CALL_HTTP, ANSWER, connections, by_http, answer),
    )


def _comparison(name: str, beside: str, connections: int, ours: Sequence[Batch], bare: Sequence[Batch]) -> Comparison:
    def of(figure: Callable[[Batch], float]) -> float:
        return ratio([figure(each) for each in ours], [figure(each) for each in bare])

    exai: Figures = figures_of(ours)
    return Comparison(
        name,
        beside,
        connections,
        exai,
        figures_of(bare),
        throughput_ratio=of(lambda each: each.ops_s),
        latency_ratio=of(lambda each: each.p50_ms),
        cpu_ratio=of(lambda each: each.cpu_us),
    )


async def _batch(server: BenchServer, kind: CallerType, connections: int, number: int) -> Batch:
    async with open_callers(kind, server.port, connections, _message(_CALL, "tools/call"), _hello(kind)) as callers:
        await call_all(callers, min(WARM_UP_CALLS, number))
        before_s = await server.cpu_s()
        latencies, _, took_s = await call_all(callers, number)
        cpu_s = await server.cpu_s() - before_s
    return batch_of(latencies, took_s, cpu_s)


async def _crowd(door: BenchServer, plan: DoorPlan) -> Crowd:
    kind = WebSocketCaller
    async with open_callers(kind, door.port, plan.crowd, _message(_CALL, "tools/call"), _hello(kind)) as callers:
        await call_all(callers, min(WARM_UP_CALLS, plan.crowd_calls))
        latencies, shares, took_s = await call_all(callers, plan.crowd_calls)
    figures = batch_of(latencies, took_s, 0.0)
    fair = plan.crowd_calls / plan.crowd
    return Crowd(plan.crowd, figures.ops_s, figures.p50_ms, figures.p99_ms, min(shares) / fair, max(shares) / fair)


async def _idle(server: BenchServer, number: int, settling_s: float, seconds: float) -> Idle:
    before_bytes = await server.memory_bytes()
    kind = WebSocketCaller
    async with open_callers(kind, server.port, number, _message(_CALL, "tools/call"), _hello(kind)):
        await asyncio.sleep(settling_s)
        after_bytes = await server.memory_bytes()
        opened_s = await server.cpu_s()
        await asyncio.sleep(seconds)
        cpu_s = await server.cpu_s() - opened_s
    grown = None if before_bytes is None or after_bytes is None else (after_bytes - before_bytes) / number
    return Idle(number, seconds, grown, cpu_s / seconds)


def _hello(kind: CallerType) -> bytes | None:
    return _message(_HELLO, "initialize") if kind is WebSocketCaller else None


def _message(params: object, method: str) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
