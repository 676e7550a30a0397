"""A complete run of `exai bench`: servers, data, counting, timing and removal of the data.

Invariant: a run which ends, well or badly, has removed its rows, its tables and its cached pages.
"""

from __future__ import annotations

import os
import platform
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from exai.bench.contestants import UNSAMPLED, Data, open_contestants, seed
from exai.bench.floors.postgres import remove_all
from exai.bench.measure import Comparison, Cost, compare, count
from exai.bench.operations import Absent, Operations, Pair
from exai.bench.plan import FAR_MS, Plan, Texts
from exai.bench.servers import ServerAddresses, open_servers, through_wire
from exai.errors import ConfigError
from exai.settings.load import load_settings

ReportProgress = Callable[[float, str], None]
"""Receives the share that is done and the name of the next step."""


@dataclass(frozen=True, slots=True)
class Options:
    """Options of the command line."""

    plan: Plan
    here: bool = False
    latency_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class LatencySection:
    """Operations compared with their lower bounds at one latency each way."""

    latency_ms: float
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """The results of a run. `uncounted` is the reason if round trips could not be counted.

    `indexing_us` is what an append puts off: the time of the statements that index a message's words, per message.
    """

    plan: Plan
    servers: str
    machine: str
    costs: tuple[Cost, ...]
    floor_costs: tuple[Cost, ...]
    uncounted: str | None
    sections: tuple[LatencySection, ...]
    absent: tuple[Absent, ...]
    indexing_us: float


async def run_bench(options: Options, progress: ReportProgress) -> Report:
    """Run all measurements. Raises as `open_app`, and `ConfigError` for servers that cannot be measured."""
    plan, texts = options.plan, Texts(options.plan.message_bytes)
    async with open_servers(load_settings(), here=options.here) as servers:
        await remove_all(servers.postgres_url)
        try:
            return await _measure(options, servers, plan, texts, progress)
        finally:
            await remove_all(servers.postgres_url)


async def _measure(
    options: Options, servers: ServerAddresses, plan: Plan, texts: Texts, progress: ReportProgress
) -> Report:
    progress(0.0, "making conversations")
    async with open_contestants(servers, plan.messages) as contestants:
        data = await seed(contestants.app, servers, plan, texts)
    run = _Run(plan, texts, data, servers, progress)
    costs, floor_costs, uncounted = await run.count_all()
    near, absent = await run.compare_all(options.latency_ms, plan.operations, Operations.all)
    sections = [near]
    if options.latency_ms == 0 and uncounted is None:
        far, _ = await run.compare_all(FAR_MS, ((1, plan.far_operations),), Operations.far)
        sections.append(far)
    progress(1.0, "done")
    return Report(
        plan, servers.shown, machine(), costs, floor_costs, uncounted, tuple(sections), absent, run.indexing_us
    )


def machine() -> str:
    """Describe the machine and its load, on which absolute figures depend more than ratios."""
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} CPUs{load}"


class _Run:
    def __init__(
        self, plan: Plan, texts: Texts, data: Data, servers: ServerAddresses, progress: ReportProgress
    ) -> None:
        self._plan, self._texts, self._data, self._servers, self._progress = plan, texts, data, servers, progress
        self._floor_seq = plan.messages
        self._done = 0
        self._indexed, self._indexing_s = 0.0, 0.0

    @property
    def indexing_us(self) -> float:
        """Time of the statements that index a message's words; near servers only."""
        return self._indexing_s / self._indexed * 1_000_000 if self._indexed else 0.0

    async def count_all(self) -> tuple[tuple[Cost, ...], tuple[Cost, ...], str | None]:
        """Count on the wire, one caller, one operation at a time."""
        self._progress(0.02, "counting round trips")
        try:
            async with through_wire(self._servers, 0.0) as (servers, wire), self._open(servers, counting=True) as ours:
                pairs = [each for each in ours.all() if isinstance(each, Pair)]
                # First uses cost more: connecting, preparing, loading a script.
                for pair in pairs:
                    for operation in (pair.operation, pair.floor):
                        await operation.prepare()
                        await operation.run(0)
                costs = [await count(pair.operation, wire, self._plan.counted) for pair in pairs]
                floor_costs = [await count(pair.floor, wire, self._plan.counted) for pair in pairs]
        except ConfigError as error:
            return (), (), str(error)
        return tuple(costs), tuple(floor_costs), None

    async def compare_all(
        self,
        latency_ms: float,
        operations: tuple[tuple[int, int], ...],
        chosen: Callable[[Operations], tuple[Pair | Absent, ...]],
    ) -> tuple[LatencySection, tuple[Absent, ...]]:
        """Compare the chosen operations at each number of callers."""
        comparisons: list[Comparison] = []
        async with self._way(latency_ms) as servers, self._open(servers, indexing=latency_ms == 0) as ours:
            listed = chosen(ours)
            pairs = [each for each in listed if isinstance(each, Pair)]
            total = len(pairs) * len(operations) * self._plan.rounds * 2
            for pair in pairs:
                for callers, number in operations:
                    name = f"{pair.operation.name}, {callers} at once"

                    def on_batch(name: str = name) -> None:
                        self._done += 1
                        self._progress(min(0.05 + 0.9 * self._done / total, 0.98), name)

                    comparisons.append(
                        await compare(pair, callers, self._number(pair, callers, number), self._plan.rounds, on_batch)
                    )
        return LatencySection(latency_ms, tuple(comparisons)), tuple(
            each for each in listed if isinstance(each, Absent)
        )

    def _number(self, pair: Pair, callers: int, number: int) -> int:
        if not pair.operation.once:
            return number
        # A multiple of the callers, so that none of them idles at the end of a batch.
        whole = self._plan.conversations // callers * callers or self._plan.conversations
        return min(number, whole)

    @asynccontextmanager
    async def _way(self, latency_ms: float) -> AsyncIterator[ServerAddresses]:
        if latency_ms == 0:
            yield self._servers
            return
        async with through_wire(self._servers, latency_ms) as (servers, _):
            yield servers

    @asynccontextmanager
    async def _open(
        self, servers: ServerAddresses, *, counting: bool = False, indexing: bool = False
    ) -> AsyncIterator[Operations]:
        async with open_contestants(servers, self._floor_seq, UNSAMPLED if counting else None) as contestants:
            # Rows of earlier contestants keep their numbers; the next ones start far above them.
            self._floor_seq += 1_000_000
            operations = Operations(contestants, self._data, self._texts)
            await operations.prepare()
            try:
                yield operations
                if indexing:
                    recorder = contestants.app.recorder
                    self._indexed += recorder.value("messages_indexed_total")
                    self._indexing_s += recorder.value("db_statement_seconds", statement="index_messages")
            finally:
                await operations.clean()
