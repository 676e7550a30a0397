"""Time one batch of an operation: a number of operations shared by a number of concurrent callers.

Invariant: only the standard library is imported, so that other stores are timed by the same code in environments of
their own.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from statistics import median

Run = Callable[[int], Awaitable[bool]]
"""Runs the n-th operation; returns whether it was of the kind that its name states, such as a cache hit."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Throughput, latencies, processor time of this process per operation, and the share that was as named."""

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


async def run_batch(run: Run, callers: int, number: int) -> Batch:
    """Run the operations 0 to `number` - 1 and return their figures."""
    numbers = iter(range(number))
    latencies: list[float] = []
    as_named = 0

    async def call() -> None:
        nonlocal as_named
        for each in numbers:
            started = time.perf_counter()
            done_as_named = await run(each)
            latencies.append(time.perf_counter() - started)
            as_named += done_as_named

    # Garbage of earlier batches must not be collected in this one.
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


def figures_of(batches: Sequence[Batch]) -> Figures:
    """Return the medians of the batches."""
    ops_s = median(each.ops_s for each in batches)
    return Figures(
        ops_s,
        p50_ms=median(each.p50_ms for each in batches),
        p99_ms=median(each.p99_ms for each in batches),
        cpu_us=median(each.cpu_us for each in batches),
        as_named=median(each.as_named for each in batches),
        noise=median(abs(each.ops_s - ops_s) for each in batches) / ops_s,
    )


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median of the rounds' ratios."""
    return median(our / their if their else 0.0 for our, their in zip(ours, theirs, strict=True))
