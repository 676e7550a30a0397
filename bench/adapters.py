"""Each adapter of EXAI beside its framework's own store in Postgres: the same work, on the same servers, in one run.

    python bench/adapters.py --environments .venv/adapters        (`make bench-peers`)

Load reads a session of 50 items, append adds a turn of two, create adds one to a new session. EXAI is in the process of
the program, and at a daemon beside it. The stores take turns within each round; a ratio is EXAI's throughput over the
own store's, the median of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvloop

from bench.lines import WorkerProcess, open_worker
from bench.peers import places, plain, progress, shown
from exai.bench.batch import Batch, Figures, figures_of, ratio
from exai.bench.chat.daemon import open_daemon
from exai.bench.chat.provider import HOST
from exai.bench.cloud import CLOUD_MS, far_database
from exai.bench.contestants import PATIENT, UNSAMPLED
from exai.bench.report import columns
from exai.bench.run import machine
from exai.bench.servers import ServerAddresses, open_servers, through_wire
from exai.logs import configure_logging
from exai.settings.load import LogSettings, load_settings

OWN, PROCESS, DAEMON = "own", "process", "daemon"
TITLES = {PROCESS: "EXAI in the process", DAEMON: "EXAI at a daemon"}
OPERATIONS = ("load", "append", "create")
BEGIN, END = "<!-- measured -->", "<!-- end -->"


@dataclass(frozen=True)
class Framework:
    """A framework with a store of its own in SQL; `module` is that of `bench.frameworks`."""

    title: str
    own: str
    module: str


FRAMEWORKS = {
    "openai-agents": Framework("OpenAI Agents SDK", "SQLAlchemySession", "openai_agents"),
    "adk": Framework("Google ADK", "DatabaseSessionService", "adk"),
    "langgraph": Framework("LangGraph", "AsyncPostgresSaver", "langgraph"),
}
"""By the name of their environment below `--environments`, which has `-newest` appended."""

TARGETS = (
    # operation, latency of the database in ms, at least so many times as fast in the process
    ("load", 0.0, 5.0),
    ("append", 0.0, 1.0),
    ("create", 0.0, 1.0),
    ("load", CLOUD_MS, 3.0),
    ("append", CLOUD_MS, 3.0),
    ("create", CLOUD_MS, 3.0),
)


@dataclass(frozen=True)
class Size:
    """Sizes of a run; `near` and `far` are pairs of callers and operations of a round."""

    sessions: int
    items: int
    message_bytes: int
    rounds: int
    near: tuple[tuple[int, int], ...]
    far: tuple[tuple[int, int], ...]


FULL = Size(32, 50, 800, 5, near=((1, 100), (16, 320)), far=((1, 20), (16, 96)))
QUICK = Size(16, 50, 800, 1, near=((1, 4), (16, 16)), far=((1, 2), (16, 16)))


@dataclass(frozen=True)
class Cell:
    """One store in one discipline; `exai_ratio` is its throughput over the own store's."""

    framework: str
    store: str
    operation: str
    callers: int
    latency_ms: float
    figures: Figures
    exai_ratio: float


@asynccontextmanager
async def open_framework(
    environments: Path, name: str, servers: ServerAddresses, size: Size
) -> AsyncIterator[WorkerProcess]:
    """Start a daemon and the framework's process at these addresses."""
    urls = {"EXAI_DATABASE__URL": servers.postgres_url, "EXAI_CACHE__URL": servers.redis_url or "off"}
    async with open_daemon({**urls, **PATIENT, **UNSAMPLED}) as daemon:
        plan = {
            **asdict(size),
            "run": secrets.token_hex(4),
            "postgres_url": servers.postgres_url,
            "redis_url": servers.redis_url,
            "servers": places(servers),
            "daemon": f"http://{HOST}:{daemon.port}",
            "token": daemon.token,
        }
        program = ["-m", "bench.frameworks.worker", f"bench.frameworks.{FRAMEWORKS[name].module}"]
        python = str(environments / f"{name}-newest" / "bin" / "python")
        async with open_worker(python, program, plan) as worker:
            yield worker


async def race(
    worker: WorkerProcess, name: str, latency_ms: float, plan: tuple[tuple[int, int], ...], rounds: int
) -> list[Cell]:
    """Time every store in every discipline, in turn within each round; the first round is not counted."""
    cells: list[Cell] = []
    for operation in OPERATIONS:
        for callers, number in plan:
            timed: dict[str, list[Batch]] = {store: [] for store in worker.first}
            for round_ in range(rounds + 1):
                for store, batches in timed.items():
                    progress(f"{name}: {operation}, {latency_ms:g} ms, {callers} at once, round {round_}: {store}")
                    asked = {"store": store, "operation": operation, "callers": callers}
                    batch = Batch(**await worker.ask(do="batch", **asked, number=number if round_ else callers))
                    if round_:
                        batches.append(batch)
            own = [each.ops_s for each in timed[OWN]]
            cells += [
                Cell(name, store, operation, callers, latency_ms, figures_of(batches), ratio(speeds(batches), own))
                for store, batches in timed.items()
            ]
    return cells


def speeds(batches: Sequence[Batch]) -> list[float]:
    """Return the throughputs of rounds."""
    return [each.ops_s for each in batches]


async def count(worker: WorkerProcess, wire: Any) -> dict[str, dict[str, tuple[int, ...]]]:
    """Return statements, their round trips, commands and theirs, of each operation of each store."""
    costs: dict[str, dict[str, tuple[int, ...]]] = {store: {} for store in worker.first}
    for operation in OPERATIONS:
        for store, cost in costs.items():
            for _ in range(2):
                # The first time may prepare, connect or load; the second is what every later one costs.
                await wire.take_counts()
                await worker.ask(do="once", store=store, operation=operation)
            seen = await wire.take_counts()
            database, cache = seen["postgres"], seen["redis"]
            cost[operation] = (database.requests, database.round_trips, cache.requests, cache.round_trips)
    return costs


async def bench(options: argparse.Namespace) -> dict[str, Any]:
    """Run everything; return what was seen."""
    size = QUICK if options.quick else FULL
    names = options.only or list(FRAMEWORKS)
    costs: dict[str, Any] = {}
    cells: list[Cell] = []
    async with open_servers(load_settings({}, None), here=False) as servers:
        for name in names:
            async with open_framework(options.environments, name, servers, size) as worker:
                for store in worker.first:
                    progress(f"{name}: making sessions: {store}")
                    await worker.ask(do="seed", store=store)
            async with (
                through_wire(servers, 0.0) as (counted, wire),
                open_framework(options.environments, name, counted, size) as worker,
            ):
                await warm(worker)
                costs[name] = await count(worker, wire)
            async with open_framework(options.environments, name, servers, size) as worker:
                await warm(worker)
                cells += await race(worker, name, 0.0, size.near, size.rounds)
            async with (
                far_database(servers, CLOUD_MS) as far,
                open_framework(options.environments, name, far, size) as worker,
            ):
                await warm(worker)
                cells += await race(worker, name, CLOUD_MS, size.far, min(size.rounds, 3))
    progress("")
    seen = {"machine": machine(), "size": asdict(size), "costs": costs, "cells": cells}
    return {**seen, "targets": verdicts(cells)}


async def warm(worker: WorkerProcess) -> None:
    """Read every session once with each store."""
    for store in worker.first:
        await worker.ask(do="warm", store=store)


def verdicts(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Return each target for each framework and number of callers."""
    return [
        {
            "framework": each.framework,
            "operation": operation,
            "callers": each.callers,
            "latency_ms": latency_ms,
            "bound": bound,
            "seen": each.exai_ratio,
            "verdict": "met" if each.exai_ratio >= bound else "missed",
        }
        for operation, latency_ms, bound in TARGETS
        for each in cells
        if (each.operation, each.latency_ms, each.store) == (operation, latency_ms, PROCESS)
    ]


def as_text(seen: dict[str, Any]) -> str:
    """Tables for people."""
    lines = [f"EXAI's adapters beside the frameworks' own stores on {seen['machine']}"]
    for name, costs in seen["costs"].items():
        framework = FRAMEWORKS[name]
        titles = {OWN: framework.own, **TITLES}
        head = ["on the wire, one operation: statements (trips) + commands (trips)", *OPERATIONS]
        rows = [[titles[store], *(shown(cost[each]) for each in OPERATIONS)] for store, cost in costs.items()]
        lines += ["", f"{framework.title} beside {framework.own}", *columns([head, *rows])]
        rows = [["operation", "ms away", "at once", "store", "ops/s", "p50 ms", "p99 ms", "CPU us", "ratio", "noise"]]
        for each in seen["cells"]:
            if each.framework == name:
                figures = each.figures
                where = [each.operation, f"{each.latency_ms:g}", str(each.callers), titles[each.store]]
                times = [f"{figures.ops_s:,.0f}", f"{figures.p50_ms:.2f}", f"{figures.p99_ms:.2f}"]
                rows.append(
                    [*where, *times, f"{figures.cpu_us:,.0f}", f"{each.exai_ratio:.2f}", f"{figures.noise:.0%}"]
                )
        lines += columns(rows, texts=(0, 3))
    rows = [["target, in the process", "bound", "seen", ""]]
    for target in seen["targets"]:
        where = f"{target['latency_ms']:g} ms away" if target["latency_ms"] else "near"
        promise = f"{target['framework']}: {target['operation']}, {where}, {target['callers']} at once"
        rows.append([promise, f">= {target['bound']:g}", f"{target['seen']:.2f}", target["verdict"]])
    return "\n".join([*lines, "", *columns(rows, texts=(0, 3))])


def as_page(seen: dict[str, Any]) -> str:
    """Return the table of docs/adapters.md."""
    head = ["own store", "operation", "callers", "statements: own, EXAI", "in the process", "at a daemon"]
    head += [f"in the process, {CLOUD_MS:g} ms", f"at a daemon, {CLOUD_MS:g} ms"]
    lines = [f"Measured on {datetime.now(UTC):%Y-%m-%d}, {seen['machine']}.", ""]
    lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    found = {(c.framework, c.store, c.operation, c.callers, c.latency_ms): c.exai_ratio for c in seen["cells"]}
    for name, costs in seen["costs"].items():
        for operation in OPERATIONS:
            for callers in sorted({key[3] for key in found if key[0] == name}):
                statements = f"{costs[OWN][operation][0]}, {costs[PROCESS][operation][0]}"
                ratios = [
                    f"{found[name, store, operation, callers, latency_ms]:.2g}"
                    for latency_ms in (0.0, CLOUD_MS)
                    for store in (PROCESS, DAEMON)
                ]
                cells = [f"`{FRAMEWORKS[name].own}`", operation, str(callers), statements, *ratios]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write(page: Path, table: str) -> None:
    """Put the table between the marks of a page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{page} has no lines {BEGIN} and {END}")
    page.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", required=True, type=Path, help="the directory of the adapters' environments")
    parser.add_argument("--only", action="append", choices=FRAMEWORKS, help="one framework; may be repeated")
    parser.add_argument("--quick", action="store_true", help="little data and one round, to see that everything runs")
    parser.add_argument("--write", type=Path, help="a page, which is given the table between its marks")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    options.environments = options.environments.absolute()
    configure_logging(LogSettings(level="error"))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        seen = runner.run(bench(options))
    print(json.dumps(seen, default=plain, indent=2) if options.json else as_text(seen))
    if options.write is not None:
        write(options.write, as_page(seen))


if __name__ == "__main__":
    sys.exit(main())
