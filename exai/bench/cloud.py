"""`exai bench --cloud`: operations at several callers, with the database far away and Redis on the daemon's own host.

Invariant: numbers of callers alternate within each round, and a ratio to one caller is the median of the ratios of
rounds. So it shows the cost of concurrency, independently of other load on the machine.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from exai import __version__
from exai.bench.batch import Batch, Figures, figures_of, ratio, run_batch
from exai.bench.contestants import open_contestants, seed
from exai.bench.floors.postgres import remove_all
from exai.bench.operations import APPEND, FULL, HIT, Operation, Operations
from exai.bench.plan import FULL as FULL_PLAN
from exai.bench.plan import QUICK as QUICK_PLAN
from exai.bench.plan import Plan, Texts
from exai.bench.report import Target, columns, target_lines
from exai.bench.run import ReportProgress, machine
from exai.bench.servers import ServerAddresses, open_servers, through_wire
from exai.settings.load import load_settings

CLOUD_MS: Final = 10.0
"""Latency of the database each way: another provider's data centre in the same part of the world."""

BOUNDS: Final = {APPEND: 1.15, FULL: 1.25}
"""Maximum ratio of an operation's median latency at several callers to that of one caller."""

FULL_CLOUD: Final = replace(FULL_PLAN, operations=((1, 40), (16, 160), (64, 640)))
QUICK_CLOUD: Final = replace(QUICK_PLAN, operations=((1, 4), (16, 16), (64, 64)))


@dataclass(frozen=True, slots=True)
class ConcurrentFigures:
    """An operation with that many callers at once; `latency_ratio` is its median over that of one caller."""

    operation: str
    callers: int
    figures: Figures
    latency_ratio: float


@dataclass(frozen=True, slots=True)
class CloudReport:
    """The results of a run."""

    plan: Plan
    latency_ms: float
    servers: str
    machine: str
    concurrent: tuple[ConcurrentFigures, ...]


@asynccontextmanager
async def far_database(servers: ServerAddresses, latency_ms: float) -> AsyncIterator[ServerAddresses]:
    """Add `latency_ms` each way to the database; Redis is unchanged. Raises as `through_wire`."""
    async with through_wire(replace(servers, redis_url=None), latency_ms) as (far, _):
        yield replace(far, redis_url=servers.redis_url)


async def run_cloud(plan: Plan, *, here: bool, latency_ms: float, progress: ReportProgress) -> CloudReport:
    """Run all measurements. Raises as `exai.bench.run.run_bench`."""
    texts = Texts(plan.message_bytes)
    async with open_servers(load_settings(), here=here) as servers:
        await remove_all(servers.postgres_url)
        try:
            progress(0.0, "making conversations")
            async with open_contestants(servers, plan.messages) as contestants:
                data = await seed(contestants.app, servers, plan, texts)
            async with (
                far_database(servers, latency_ms) as far,
                open_contestants(far, plan.messages + 1_000_000) as contestants,
            ):
                ours = Operations(contestants, data, texts)
                concurrent = await _measure(ours, plan, progress)
                await ours.clean()
        finally:
            await remove_all(servers.postgres_url)
    progress(1.0, "done")
    return CloudReport(plan, latency_ms, servers.shown, machine(), concurrent)


async def _measure(ours: Operations, plan: Plan, progress: ReportProgress) -> tuple[ConcurrentFigures, ...]:
    listed = (
        Operation(HIT, ours.hit, ours.warm),
        Operation(APPEND, ours.append, ours.warm, settle=ours.settle),
        Operation(FULL, ours.full, ours.warm, settle=ours.settle),
    )
    concurrent: list[ConcurrentFigures] = []
    for place, operation in enumerate(listed):
        timed: dict[int, list[Batch]] = {callers: [] for callers, _ in plan.operations}
        for round_ in range(plan.rounds + 1):
            progress(0.05 + 0.9 * (place + round_ / (plan.rounds + 1)) / len(listed), operation.name)
            for callers, number in plan.operations:
                await operation.prepare()
                # The first round opens connections and loads scripts.
                batch = await run_batch(operation.run, callers, number if round_ else callers)
                await operation.settle()
                if round_:
                    timed[callers].append(batch)
        one = [each.p50_ms for each in timed[min(timed)]]
        concurrent += [
            ConcurrentFigures(
                operation.name, callers, figures_of(batches), ratio([each.p50_ms for each in batches], one)
            )
            for callers, batches in timed.items()
        ]
    return tuple(concurrent)


def targets(report: CloudReport) -> tuple[Target, ...]:
    """Return every target with the measured value."""
    return tuple(
        Target(f"{each.operation}, {each.callers} at once: median of one caller", bound, "most", each.latency_ratio)
        for each in report.concurrent
        if each.callers > 1 and (bound := BOUNDS.get(each.operation)) is not None
    )


def as_json(report: CloudReport) -> dict[str, Any]:
    """Return the report as plain values."""
    verdicts = [{**asdict(each), "verdict": each.verdict} for each in targets(report)]
    return {"version": __version__, **asdict(report), "targets": verdicts}


def as_text(report: CloudReport) -> str:
    """Return a table of times and one of targets."""
    rows: list[tuple[str, ...]] = [
        ("operation", "at once", "ops/s", "p50 ms", "p99 ms", "CPU us", "one caller", "noise")
    ]
    for each in report.concurrent:
        figures = each.figures
        speeds = (f"{figures.ops_s:,.0f}", f"{figures.p50_ms:.2f}", f"{figures.p99_ms:.2f}", f"{figures.cpu_us:,.0f}")
        rows.append((each.operation, str(each.callers), *speeds, f"{each.latency_ratio:.2f} x", f"{figures.noise:.0%}"))
    return "\n".join(
        [
            f"EXAI {__version__} on {report.machine}",
            f"servers: {report.servers}",
            f"database {report.latency_ms:g} ms away each way, Redis on this host; {report.plan.rounds} rounds in turn",
            "",
            *columns(rows),
            "",
            *target_lines(targets(report)),
        ]
    )
