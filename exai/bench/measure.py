"""Times batches of an operation and its floor in turn, and counts what one operation costs on the wire.

The invariant is that the contestants alternate within each round, so that whatever else the machine does meanwhile
falls on both, and that a ratio is the median of the ratios of rounds, never a ratio of figures minutes apart.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from exai.bench.counting import Count
from exai.bench.operations import Operation, Pair
from exai.bench.wire import Wire
from exai.errors import StartupError

COUNT_TRIES: Final = 5
"""A read is not a hit when the machine stood still for longer than the staleness bound; then it is tried again."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch: throughput, latencies, processor time of this process per operation, and how many were as named."""

    ops_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    as_named: float


@dataclass(frozen=True, slots=True)
class Figures:
    """Medians over the rounds; `noise` is the median deviation from the median throughput, as a share of it."""

    ops_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    as_named: float
    noise: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """An operation and its floor with that many callers at once; ratios are the operation's over the floor's."""

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
    """What one operation costs on the wire, as the largest number seen; None for a server there is none of."""

    operation: str
    statements: int
    database_round_trips: int
    commands: int | None
    cache_round_trips: int | None


async def compare(pair: Pair, callers: int, number: int, rounds: int, on_batch: Callable[[], None]) -> Comparison:
    """Run operation and floor in turn, `number` of each a round."""
    for contestant in (pair.operation, pair.floor):
        # As many callers as later open as many connections, and load what is loaded when first used.
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
        _figures(exai),
        _figures(bare),
        throughput_ratio=_ratio([each.ops_s for each in exai], [each.ops_s for each in bare]),
        latency_ratio=_ratio([each.p50_ms for each in exai], [each.p50_ms for each in bare]),
        cpu_ratio=_ratio([each.cpu_us for each in exai], [each.cpu_us for each in bare]),
    )


async def _batch(operation: Operation, callers: int, number: int) -> Batch:
    await operation.prepare()
    numbers = iter(range(number))
    latencies: list[float] = []
    as_named = 0

    async def call() -> None:
        nonlocal as_named
        for each in numbers:
            started = time.perf_counter()
            done_as_named = await operation.run(each)
            latencies.append(time.perf_counter() - started)
            as_named += done_as_named

    # What earlier batches left to collect is not this one's cost.
    gc.collect()
    cpu_s, started = time.process_time(), time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(call())
    took_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_s
    latencies.sort()
    return Batch(
        ops_s=number / took_s,
        p50_ms=latencies[number // 2] * 1_000,
        p99_ms=latencies[number * 99 // 100] * 1_000,
        cpu_us=cpu_s / number * 1_000_000,
        as_named=as_named / number,
    )


def _figures(batches: Sequence[Batch]) -> Figures:
    ops_s = median(each.ops_s for each in batches)
    return Figures(
        ops_s,
        p50_ms=median(each.p50_ms for each in batches),
        p99_ms=median(each.p99_ms for each in batches),
        cpu_us=median(each.cpu_us for each in batches),
        as_named=median(each.as_named for each in batches),
        noise=median(abs(each.ops_s - ops_s) for each in batches) / ops_s,
    )


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return median(our / their if their else 0.0 for our, their in zip(ours, theirs, strict=True))


async def count(operation: Operation, wire: Wire, number: int) -> Cost:
    """Do the operation one by one and return what it cost on the wire. Raises `StartupError`."""
    await operation.prepare()
    seen = [await _count_one(operation, wire, each) for each in range(number)]
    statements, database_trips, commands, cache_trips = (max(column) for column in zip(*seen, strict=True))
    has_cache = "redis" in wire.ports
    return Cost(
        operation.name,
        statements,
        database_trips,
        commands if has_cache else None,
        cache_trips if has_cache else None,
    )


async def _count_one(operation: Operation, wire: Wire, number: int) -> tuple[int, int, int, int]:
    for _ in range(COUNT_TRIES):
        await wire.take_counts()
        as_named = await operation.run(number)
        counts = await wire.take_counts()
        if as_named:
            database, cache = counts["postgres"], counts.get("redis", Count())
            return database.requests, database.round_trips, cache.requests, cache.round_trips
        await operation.prepare()
    raise StartupError(
        "bench", f"{operation.name} was never what its name says", "Run it on a machine with less other work"
    )
