"""Index the words of stored messages in the background, after their callers were answered, in batches.

Requests have precedence: statements are short, after each one the task pauses for as long as the statement took unless
many messages are queued, and it takes the last free connection only if no other becomes free for `ROOM_TRIES * ROOM_S`
seconds.

Invariant: no answer depends on this task, because a search also covers queued messages. The task only keeps their
number small, so that searches stay fast.
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
"""Interval between runs for messages stored by other clients, while this process neither stores nor searches."""

PORTION_S: Final = 1.0
"""Target duration of one statement. A slower statement halves the number of messages in the next one. A much shorter
target would also be exceeded by short messages on a busy machine, and smaller statements cost more per message."""

MANY: Final = 10 * PORTION
"""Number of queued messages above which the task does not pause, because every search has to read all of them."""

ROOM_S: Final = 0.02
ROOM_TRIES: Final = 25
BUSY_S: Final = 0.05
RETRY_CAP_S: Final = 60.0

log = structlog.get_logger(__name__)


class Indexing:
    """Keeps the word index up to date. `wanted` is set by every store and search of this process."""

    def __init__(
        self, repository: SearchRepository, wanted: asyncio.Event, recorder: Recorder, *, pause_s: float
    ) -> None:
        self._repository, self._wanted, self._recorder, self._pause_s = repository, wanted, recorder, pause_s
        self._portion = PORTION
        self._failures = 0

    def request(self) -> None:
        """Index soon: another client of the database may have stored messages, which searches read one by one."""
        self._wanted.set()

    async def run(self) -> None:
        """Index until cancelled: after stores and searches of this process, and at least every `IDLE_S`."""
        while True:
            # Messages stored during the pause share a statement. `wanted` is cleared before the statement, so that a
            # message stored while it runs sets it again.
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
        """Index until less than one portion is queued, or another daemon is indexing; leave the rest to the next run.

        Continuing while messages are being stored would index them in statements of one or few messages each, which
        costs much more per message.
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
        """Index without pauses until the queue is empty, waiting for another daemon's share. Raises `DatabaseError`."""
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
