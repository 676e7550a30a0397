"""Indexes the words of stored messages after their callers were answered, many at a time.

The invariant is that no answer depends on it: searches look through what is not indexed yet themselves. It only keeps
that little, and stays out of the way of requests: its statements are short, as long as each took it does nothing
afterwards, and it does not take the last free connection while another may become free.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

import structlog

from exai.db.search import PORTION, Indexed, SearchRepository
from exai.errors import ExaiError
from exai.models import Recorder
from exai.resilience import backoff_s

IDLE_S: Final = 60.0
"""Between two looks at what others have stored, while nothing is stored or searched from here."""

PORTION_S: Final = 1.0
"""What a statement should take at most: of long messages there are fewer in one. Much less would be reached on a busy
machine with short ones too, and fewer at once take longer each."""

MANY: Final = 10 * PORTION
"""With more than this waiting it does not pause any longer: searches look through all of it."""

ROOM_S: Final = 0.02
ROOM_TRIES: Final = 25
BUSY_S: Final = 0.05
RETRY_CAP_S: Final = 60.0

log = structlog.get_logger(__name__)


class Indexing:
    """Keeps the index of words up to date with what is stored. `wanted` is set by whoever stores or searches."""

    def __init__(
        self, repository: SearchRepository, wanted: asyncio.Event, recorder: Recorder, *, pause_s: float
    ) -> None:
        self._repository, self._wanted, self._recorder, self._pause_s = repository, wanted, recorder, pause_s
        self._portion = PORTION
        self._failures = 0

    async def keep(self) -> None:
        """Index by and by what this daemon stores, and every minute what others did, until cancelled."""
        while True:
            # What follows within the pause is indexed in the same statement.
            await asyncio.sleep(self._pause_s)
            self._wanted.clear()
            try:
                await self._work_off()
            except Exception as error:
                self._failures += 1
                self._recorder.count("indexing_failed_total")
                if self._failures == 1:
                    log.warning("indexing_failed", error=str(error), exc_info=not isinstance(error, ExaiError))
                await asyncio.sleep(backoff_s(self._failures, 2 * self._pause_s, RETRY_CAP_S))
            else:
                await self._wait()

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(IDLE_S):
                await self._wanted.wait()
        except TimeoutError:
            pass

    async def _work_off(self) -> None:
        """Index until less than a whole portion is left, or another daemon is at it; the rest is for the next time.

        Whoever ran after the last message while more are stored would index them one by one, which takes much longer.
        """
        while True:
            await self._wait_for_room()
            found, took_s = await self._index()
            if not found.indexed or found.left < self._portion:
                if found.left:
                    self._wanted.set()
                return
            if found.left < MANY:
                await asyncio.sleep(took_s)

    async def finish(self) -> None:
        """Index without pauses until nothing is left, whoever does it. Raises a `DatabaseError`."""
        while True:
            found, _ = await self._index()
            if not found.left:
                return
            if not found.indexed:
                await asyncio.sleep(BUSY_S)

    async def _index(self) -> tuple[Indexed, float]:
        started = time.perf_counter()
        try:
            found = await self._repository.index(self._portion)
        except ExaiError:
            self._portion = max(self._portion // 4, 1)
            raise
        took_s = time.perf_counter() - started
        self._failures = 0
        if took_s > PORTION_S:
            self._portion = max(self._portion // 2, 1)
        elif took_s < PORTION_S / 4:
            self._portion = min(self._portion * 2, PORTION)
        self._recorder.count("messages_indexed_total", found.indexed)
        self._recorder.gauge("messages_unindexed", found.left)
        return found, took_s

    async def _wait_for_room(self) -> None:
        for _ in range(ROOM_TRIES):
            if self._repository.has_room():
                return
            await asyncio.sleep(ROOM_S)
