"""Creates the partitions of the coming days and removes expired metrics, in every daemon, one at a time.

The database's functions take a lock of their transaction, so it also holds behind a transaction pooler; a daemon that
finds it taken leaves the work to the other one. Invariant: a run ends within its budget and one statement.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

import structlog

from exai.errors import ExaiError
from exai.models import Recorder
from exai.resilience import Clock, Random

FIRST_PAUSE_S: Final = 30.0
PAUSE_S: Final = 3_600.0
JITTER: Final = 0.2
BUDGET_S: Final = 10.0
REST_S: Final = 0.2
"""Pause between two statements of one run, for other users of the tables."""

log = structlog.get_logger(__name__)


class RemovedRows(Protocol):
    """The numbers of rows that one statement has removed from a table, and of expired rows that remain."""

    @property
    def what(self) -> str:
        """The table."""

    @property
    def removed(self) -> int:
        """Rows, or partitions."""

    @property
    def remaining(self) -> int:
        """Rows, or partitions."""


class MetricsTables(Protocol):
    """The tables of the history."""

    def create_partitions(self) -> Awaitable[int]:
        """Create the partitions of the coming days; returns how many were missing."""

    def apply_retention(self) -> Awaitable[Sequence[RemovedRows]]:
        """Remove a limited number of expired rows; returns nothing if another daemon does it now."""


class Upkeep:
    """One per daemon."""

    def __init__(
        self,
        tables: MetricsTables,
        recorder: Recorder,
        *,
        clock: Clock = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rand: Random = random.random,
    ) -> None:
        self._tables, self._recorder = tables, recorder
        self._clock, self._sleep, self._rand = clock, sleep, rand

    async def run(self) -> None:
        """Work soon after the start and then every hour, until cancelled."""
        pause_s = FIRST_PAUSE_S
        while True:
            await self._sleep(pause_s * (1 + JITTER * (2 * self._rand() - 1)))
            pause_s = PAUSE_S
            try:
                await self.work()
            except ExaiError as error:
                log.warning("metrics_upkeep_failed", reason=str(error))
                self._recorder.count("metrics_upkeep_failed_total")

    async def work(self) -> None:
        """Create partitions, and remove expired rows until none is left or the budget is used up."""
        end = self._clock() + BUDGET_S
        self._recorder.count("metrics_partitions_created_total", await self._tables.create_partitions())
        while True:
            found = await self._tables.apply_retention()
            for each in found:
                self._recorder.count("metrics_removed_total", each.removed, table=each.what)
                self._recorder.gauge("metrics_expired_rows", each.remaining, table=each.what)
            is_left = any(each.remaining and each.removed for each in found)
            if not is_left or self._clock() >= end:
                return
            await self._sleep(REST_S)
