"""Time batches of an operation and of its lower bound alternately, and count the cost of one operation on the wire.

Invariant: the contestants alternate within each round, so that other load on the machine affects both, and a ratio is
the median of the ratios of rounds, never a ratio of figures measured minutes apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from exai.bench.batch import Batch, Figures, figures_of, ratio, run_batch
from exai.bench.operations import Operation, Pair
from exai.bench.proxy.counting import Count
from exai.bench.proxy.wire import LatencyProxy
from exai.errors import StartupError

COUNT_TRIES: Final = 5
"""Attempts at a cache hit, which fails if the machine was blocked for longer than the staleness bound."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """An operation and its lower bound at one number of callers; ratios are those of the operation to the bound."""

    operation: str
    floor: str
    callers: int
    exai: Figures
    bare: Figures
    throughput_ratio: float
    latency_ratio: float
    cpu_ratio: float


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of one operation on the wire, the maximum over its runs; None for a server that is not used."""

    operation: str
    statements: int
    database_round_trips: int
    commands: int | None
    cache_round_trips: int | None


async def compare(pair: Pair, callers: int, number: int, rounds: int, on_batch: Callable[[], None]) -> Comparison:
    """Run operation and lower bound alternately, `number` of each per round."""
    for contestant in (pair.operation, pair.floor):
        # A warm-up with the same number of callers opens the connections and loads lazily loaded code.
        await _batch(contestant, callers, callers)
    timed: tuple[list[Batch], list[Batch]] = ([], [])
    for _ in range(rounds):
        for contestant, batches in zip((pair.operation, pair.floor), timed, strict=True):
            batches.append(await _batch(contestant, callers, number))
            on_batch()
    exai, bare = timed
    return Comparison(
        pair.operation.name,
        pair.floor.name,
        callers,
        figures_of(exai),
        figures_of(bare),
        throughput_ratio=ratio([each.ops_s for each in exai], [each.ops_s for each in bare]),
        latency_ratio=ratio([each.p50_ms for each in exai], [each.p50_ms for each in bare]),
        cpu_ratio=ratio([each.cpu_us for each in exai], [each.cpu_us for each in bare]),
    )


async def _batch(operation: Operation, callers: int, number: int) -> Batch:
    await operation.prepare()
    batch = await run_batch(operation.run, callers, number)
    await operation.settle()
    return batch


async def count(operation: Operation, wire: LatencyProxy, number: int) -> Cost:
    """Run the operation sequentially and return its cost on the wire. Raises `StartupError`."""
    await operation.prepare()
    seen = [await _count_one(operation, wire, each) for each in range(number)]
    await operation.settle()
    statements, database_trips, commands, cache_trips = (max(column) for column in zip(*seen, strict=True))
    has_cache = "redis" in wire.ports
    return Cost(
        operation.name,
        statements,
        database_trips,
        commands if has_cache else None,
        cache_trips if has_cache else None,
    )


async def _count_one(operation: Operation, wire: LatencyProxy, number: int) -> tuple[int, int, int, int]:
    for _ in range(COUNT_TRIES):
        await wire.take_counts()
        as_named = await operation.run(number)
        await operation.finish()
        counts = await wire.take_counts()
        if as_named:
            database, cache = counts["postgres"], counts.get("redis", Count())
            return database.requests, database.round_trips, cache.requests, cache.round_trips
        await operation.prepare()
    raise StartupError(
        "bench", f"{operation.name} never took the path that it measures", "Run it on a machine with less other work"
    )
