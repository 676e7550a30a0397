"""Deletes conversations whose time has come, in every daemon; rows that another daemon works on are skipped.

Invariant: a run consists of bounded statements, and its failure is a line of the log and a counter.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from exai.conversations.maintenance import Maintenance
from exai.errors import ExaiError
from exai.models import Recorder
from exai.resilience import Random

FIRST_PAUSE_S: Final = 60.0
PAUSE_S: Final = 600.0
JITTER: Final = 0.2

log = structlog.get_logger(__name__)


class Retention:
    """One per daemon."""

    def __init__(
        self,
        maintenance: Maintenance,
        recorder: Recorder,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rand: Random = random.random,
    ) -> None:
        self._maintenance, self._recorder = maintenance, recorder
        self._sleep, self._rand = sleep, rand

    async def run(self) -> None:
        """Work soon after the start and then every ten minutes, until cancelled."""
        pause_s = FIRST_PAUSE_S
        while True:
            await self._sleep(pause_s * (1 + JITTER * (2 * self._rand() - 1)))
            pause_s = PAUSE_S
            try:
                await self.work()
            except ExaiError as error:
                log.warning("retention_failed", reason=str(error))
                self._recorder.count("retention_failed_total")

    async def work(self) -> None:
        """Delete what has expired, and remove what was deleted by that a week ago."""
        marked, removed = await self._maintenance.retain()
        self._recorder.count("retention_expired_total", marked)
        self._recorder.count("retention_removed_total", removed)
        if marked or removed:
            log.info("retention", expired=marked, removed=removed)
