"""Upkeep of the metrics' tables: in a budget, again every hour, and never at the cost of the daemon."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from exai.errors import DatabaseUnavailable
from exai.monitoring.metrics import MetricsRecorder
from exai.monitoring.upkeep import BUDGET_S, FIRST_PAUSE_S, PAUSE_S, Upkeep


@dataclass
class Removed:
    what: str
    removed: int
    remaining: int


@dataclass
class Tables:
    expired: int = 0
    per_run: int = 10
    is_taken: bool = False
    runs: int = 0
    faults: list[Exception] = field(default_factory=list)

    async def create_partitions(self) -> int:
        if self.faults:
            raise self.faults.pop(0)
        return 1

    async def apply_retention(self) -> list[Removed]:
        self.runs += 1
        if self.is_taken:
            return []
        removed = min(self.per_run, self.expired)
        self.expired -= removed
        return [Removed("metrics_1min", removed, self.expired), Removed("partitions", 0, 2)]


class Time:
    def __init__(self, pauses: int = 1_000_000) -> None:
        self.at, self.slept, self.pauses = 0.0, list[float](), pauses

    def __call__(self) -> float:
        self.at += 1
        return self.at

    async def sleep(self, seconds: float) -> None:
        if len(self.slept) == self.pauses:
            raise asyncio.CancelledError
        self.slept.append(seconds)


def upkeep(tables: Tables, metrics: MetricsRecorder, time: Time) -> Upkeep:
    return Upkeep(tables, metrics, clock=time, sleep=time.sleep, rand=lambda: 0.5)


async def test_it_works_until_nothing_is_left() -> None:
    """What stays because others lock it is left to the next run, and shown."""
    tables, metrics = Tables(expired=35), MetricsRecorder()
    await upkeep(tables, metrics, Time()).work()
    assert (tables.runs, tables.expired) == (4, 0)
    assert metrics.value("metrics_removed_total", table="metrics_1min") == 35
    assert metrics.value("metrics_expired_rows", table="metrics_1min") == 0
    assert metrics.value("metrics_expired_rows", table="partitions") == 2


async def test_it_stops_at_the_budget_and_shows_what_is_left() -> None:
    """A table that has grown for months is worked off over several hours."""
    tables, metrics = Tables(expired=100_000), MetricsRecorder()
    await upkeep(tables, metrics, Time()).work()
    assert tables.runs <= BUDGET_S + 1
    assert metrics.value("metrics_expired_rows", table="metrics_1min") == tables.expired > 0


async def test_a_daemon_that_finds_another_at_work_leaves_it_alone() -> None:
    """It does not wait."""
    tables = Tables(expired=100, is_taken=True)
    await upkeep(tables, MetricsRecorder(), Time()).work()
    assert tables.runs == 1


async def test_it_comes_again_every_hour_also_after_a_failure() -> None:
    """A failure is counted."""
    tables, metrics = Tables(faults=[DatabaseUnavailable("postgres", "is away", "Start it")]), MetricsRecorder()
    time = Time(pauses=3)
    with pytest.raises(asyncio.CancelledError):
        await upkeep(tables, metrics, time).run()
    assert time.slept == [FIRST_PAUSE_S, PAUSE_S, PAUSE_S]
    assert metrics.value("metrics_upkeep_failed_total") == 1
    assert tables.runs == 2
