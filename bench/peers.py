"""EXAI beside other stores of conversations: the same work, on the same servers, in turn, in one run.

    python bench/peers.py --python .venv/peers/bin/python        (`make bench-peers`)

Load is the newest 50 messages, append one question and one answer, full both one after the other. The other stores run
in a process and an environment of their own; every contestant is timed by `exai.bench.batch`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import uvloop

from bench.lines import WorkerProcess, open_worker
from exai.bench.batch import Batch, Figures, Run, figures_of, ratio, run_batch
from exai.bench.cloud import CLOUD_MS, far_database
from exai.bench.contestants import Data, open_contestants, seed
from exai.bench.operations import Operations
from exai.bench.plan import FAR_MS, FULL, QUICK, Plan, Texts
from exai.bench.report import CLEAR, bar, columns
from exai.bench.run import machine
from exai.bench.servers import ServerAddresses, open_servers, through_wire
from exai.cli.command import OBJECTS_PER_COLLECTION
from exai.db.driver.address import parse_address
from exai.logs import configure_logging
from exai.settings.load import LogSettings, load_settings

EXAI = "EXAI"
OPERATIONS = ("load", "append", "full")
NOT_ON_DISK = ("OpenAI Agents RedisSession", "LlamaIndex Redis")

Target = tuple[str, int, float, str, float]

TARGETS = (
    # operation, callers, latency in ms, against whom, at least so many times as fast
    ("load", 16, 0.0, "durable", 8.0),
    ("append", 16, 0.0, "durable", 1.1),
    ("full", 16, 0.0, "durable", 4.0),
    ("full", 16, 0.0, "not on disk", 1.0),
    ("append", 16, FAR_MS, "durable", 3.0),
    ("full", 16, FAR_MS, "durable", 5.0),
)

CLOUD_TARGETS = (
    ("load", 16, CLOUD_MS, "durable", 30.0),
    ("append", 16, CLOUD_MS, "durable", 2.7),
    ("full", 16, CLOUD_MS, "durable", 5.0),
)


@dataclass(frozen=True)
class Cell:
    """One contestant in one discipline; `exai_ratio` is EXAI's throughput over its own."""

    store: str
    operation: str
    callers: int
    latency_ms: float
    figures: Figures
    exai_ratio: float


class Peers:
    """The process with the other stores; `names` are theirs."""

    def __init__(self, worker: WorkerProcess) -> None:
        self.ask, self.names = worker.ask, worker.first


@asynccontextmanager
async def open_peers(python: str, servers: ServerAddresses, plan: Plan) -> AsyncIterator[Peers]:
    """Start the other stores at these addresses."""
    asked = {"servers": places(servers), "conversations": plan.conversations, "message_bytes": plan.message_bytes}
    async with open_worker(python, ["bench/stores.py"], asked) as worker:
        yield Peers(worker)


def places(servers: ServerAddresses) -> dict[str, Any]:
    """Return the addresses as `bench.places.Servers` has them."""
    address = parse_address(servers.postgres_url)
    host, port = address.hosts[0]
    return {
        "host": host,
        "port": port,
        "user": address.user or "",
        "password": address.password or "",
        "database": address.database or "",
        "redis_url": servers.redis_url,
    }


def doing(ours: Operations, operation: str) -> Run:
    """EXAI's operation of that name."""
    return {"load": ours.hit, "append": ours.append, "full": ours.full}[operation]


@asynccontextmanager
async def open_all(
    python: str, servers: ServerAddresses, plan: Plan, data: Data, latency_ms: float
) -> AsyncIterator[tuple[Operations, Peers, Any]]:
    """Open every contestant the same way: direct, or through the proxy. The third value counts, when there is one."""
    async with AsyncExitStack() as stack:
        wire = None
        if latency_ms >= 0:
            servers, wire = await stack.enter_async_context(through_wire(servers, latency_ms))
        contestants = await stack.enter_async_context(open_contestants(servers, plan.messages))
        operations = Operations(contestants, data, Texts(plan.message_bytes))
        await operations.warm()
        yield operations, await stack.enter_async_context(open_peers(python, servers, plan)), wire


async def race(
    ours: Operations, peers: Peers, plan: Plan, latency_ms: float, operations: tuple[tuple[int, int], ...]
) -> list[Cell]:
    """Time everybody in everything, in turn within each round."""
    cells: list[Cell] = []
    for operation in OPERATIONS:
        for callers, number in operations:
            timed: dict[str, list[Batch]] = {name: [] for name in (EXAI, *peers.names)}
            for round_ in range(plan.rounds + 1):
                for name, batches in timed.items():
                    progress(f"{operation}, {callers} at once, round {round_}: {name}")
                    many = number if round_ else callers
                    if name == EXAI:
                        batch = await run_batch(doing(ours, operation), callers, many)
                        await ours.settle()
                    else:
                        asked = {"store": name, "operation": operation, "callers": callers, "number": many}
                        batch = Batch(**await peers.ask(do="batch", **asked))
                    if round_:
                        batches.append(batch)
            exai = [each.ops_s for each in timed[EXAI]]
            cells += [
                Cell(name, operation, callers, latency_ms, figures_of(batches), ratio(exai, [b.ops_s for b in batches]))
                for name, batches in timed.items()
            ]
    return cells


async def count(ours: Operations, peers: Peers, wire: Any) -> dict[str, dict[str, tuple[int, ...]]]:
    """Statements, their round trips, commands and theirs, of each operation of each store."""
    costs: dict[str, dict[str, tuple[int, ...]]] = {name: {} for name in (EXAI, *peers.names)}
    for operation in OPERATIONS:
        for name, cost in costs.items():
            for _ in range(2):
                # The first time may prepare, connect or load; the second is what every later one costs.
                await wire.take_counts()
                if name == EXAI:
                    await doing(ours, operation)(1)
                else:
                    await peers.ask(do="once", store=name, operation=operation)
            seen = await wire.take_counts()
            database, cache = seen["postgres"], seen["redis"]
            cost[operation] = (database.requests, database.round_trips, cache.requests, cache.round_trips)
    return costs


def progress(text: str, share: float | None = None) -> None:
    """Show on a terminal what goes on."""
    if sys.stderr.isatty():
        sys.stderr.write(CLEAR + (text if share is None else bar(share, text)))
        sys.stderr.flush()


async def bench(options: argparse.Namespace) -> dict[str, Any]:
    """Run everything; return what was seen."""
    plan = replace(QUICK if options.quick else FULL, rounds=1 if options.quick else 5)
    near = ((1, 8), (16, 32)) if options.quick else ((1, 100), (16, 320))
    far = ((1, 4), (16, 16)) if options.quick else ((1, 30), (16, 160))
    async with open_servers(load_settings({}, None), here=False) as servers:
        async with open_contestants(servers, plan.messages) as contestants:
            data = await seed(contestants.app, servers, plan, Texts(plan.message_bytes))
        async with open_peers(options.python, servers, plan) as peers:
            for name in peers.names:
                progress(f"making conversations: {name}")
                await peers.ask(do="seed", store=name, messages=plan.messages)
        async with open_all(options.python, servers, plan, data, 0.0) as (ours, peers, wire):
            costs = await count(ours, peers, wire)
        if options.cloud:
            cloud_plan = replace(plan, rounds=min(plan.rounds, 3))
            async with (
                far_database(servers, CLOUD_MS) as cloud,
                open_all(options.python, cloud, plan, data, -1.0) as (ours, peers, _),
            ):
                cells = await race(ours, peers, cloud_plan, CLOUD_MS, far)
            return found(plan, costs, cells, CLOUD_TARGETS)
        async with open_all(options.python, servers, plan, data, -1.0) as (ours, peers, _):
            cells = await race(ours, peers, plan, 0.0, near)
        async with open_all(options.python, servers, plan, data, FAR_MS) as (ours, peers, _):
            cells += await race(ours, peers, replace(plan, rounds=min(plan.rounds, 3)), FAR_MS, far)
    return found(plan, costs, cells, TARGETS)


def found(plan: Plan, costs: dict[str, Any], cells: list[Cell], targets: Sequence[Target]) -> dict[str, Any]:
    """Everything that was seen, with plain keys."""
    progress("")
    seen = {"machine": machine(), "plan": asdict(plan), "costs": costs, "cells": cells}
    return {**seen, "targets": verdicts(cells, targets)}


def verdicts(cells: list[Cell], targets: Sequence[Target]) -> list[dict[str, Any]]:
    """Each target with the peer that decides it."""
    judged = []
    for operation, callers, latency_ms, against, bound in targets:
        rivals = [
            each
            for each in cells
            if (each.operation, each.callers, each.latency_ms) == (operation, callers, latency_ms)
            and each.store != EXAI
            and (each.store in NOT_ON_DISK) == (against == "not on disk")
        ]
        best = max(rivals, key=lambda each: each.figures.ops_s)
        judged.append(
            {
                "operation": operation,
                "callers": callers,
                "latency_ms": latency_ms,
                "against": f"best {against}: {best.store}",
                "bound": bound,
                "seen": best.exai_ratio,
                "verdict": "met" if best.exai_ratio >= bound else "missed",
            }
        )
    return judged


def as_text(seen: dict[str, Any]) -> str:
    """Tables for people."""
    head = ["on the wire, one operation: statements (trips) + commands (trips)", *OPERATIONS]
    rows = [[name, *(shown(cost[each]) for each in OPERATIONS)] for name, cost in seen["costs"].items()]
    lines = [f"EXAI beside other stores on {seen['machine']}", "", *columns([head, *rows])]
    for latency_ms in sorted({each.latency_ms for each in seen["cells"]}):
        title = f"{latency_ms:g} ms away each way" if latency_ms else "near"
        rows = [["operation", "at once", "store", "ops/s", "p50 ms", "p99 ms", "CPU us", "EXAI is", "noise"]]
        for each in seen["cells"]:
            if each.latency_ms == latency_ms:
                figures = each.figures
                speeds = [f"{figures.ops_s:,.0f}", f"{figures.p50_ms:.2f}", f"{figures.p99_ms:.2f}"]
                costs = [f"{figures.cpu_us:,.0f}", f"{each.exai_ratio:.2f} x", f"{figures.noise:.0%}"]
                rows.append([each.operation, str(each.callers), each.store, *speeds, *costs])
        lines += ["", title, *columns(rows, texts=(0, 2))]
    rows = [["target at 16 callers", "bound", "seen", ""]]
    for target in seen["targets"]:
        where = f", {target['latency_ms']:g} ms away" if target["latency_ms"] else ""
        promise = f"{target['operation']}{where}, times the {target['against']}"
        rows.append([promise, f">= {target['bound']:g}", f"{target['seen']:.2f}", target["verdict"]])
    return "\n".join([*lines, "", *columns(rows, texts=(0, 3))])


def shown(cost: tuple[int, ...]) -> str:
    """One cost in one cell."""
    statements, database_trips, commands, cache_trips = cost
    parts = [f"{statements} ({database_trips})"] if statements or database_trips else []
    parts += [f"{commands} ({cache_trips})"] if commands else []
    return " + ".join(parts)


def plain(value: Any) -> Any:
    """What JSON cannot write by itself."""
    return asdict(value)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="the interpreter of the other stores' environment")
    parser.add_argument("--quick", action="store_true", help="little data and one round, to see that everything runs")
    parser.add_argument("--cloud", action="store_true", help="the database 10 ms away, Redis on this host")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    configure_logging(LogSettings(level="error"))
    gc.set_threshold(OBJECTS_PER_COLLECTION)  # as `exai serve` runs
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        seen = runner.run(bench(options))
    print(json.dumps(seen, default=plain, indent=2) if options.json else as_text(seen))


if __name__ == "__main__":
    main()
