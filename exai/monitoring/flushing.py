"""Sends recorded events to the database in batches, one statement each.

Invariant: nothing waits for this. A batch keeps its id until its outcome is known, so a repetition after a lost reply
stores nothing twice; a failure of any kind is counted and retried, and never ends the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol

import structlog

from exai.background import running
from exai.errors import DatabaseError, DeadlineExceeded, ShuttingDown
from exai.models import Recorder
from exai.monitoring.events import EventItem, EventRecorder, encode
from exai.resilience import Breaker, BreakerOpen, Clock, Random, backoff_s, with_deadline

FLUSH_PAUSE_S: Final = 5.0
BATCH_ITEMS: Final = 1_000
FLUSH_LIMIT_S: Final = 10.0
LAST_FLUSH_S: Final = 2.0
"""Time for the last flush, at the shutdown."""

RETRY_BASE_S: Final = 1.0
RETRY_CAP_S: Final = 30.0
MAX_POSTPONED: Final = 6
"""How often in a row a flush is left out because requests use every connection."""


log = structlog.get_logger(__name__)


class StoreAnswer(Protocol):
    """The database's answer to a batch."""

    @property
    def status(self) -> str:
        """One of stored, duplicate, refused, failed."""

    @property
    def error(self) -> str | None:
        """The reason of the last two."""


StoreEvents = Callable[[bytes, str, str], Awaitable[StoreAnswer]]
"""Stores a JSON array of metrics, given the id of the batch and its source."""


class _NotStored(Exception):
    """The database has refused a batch for a reason that may pass."""


@dataclass(frozen=True, slots=True)
class _Batch:
    items: list[EventItem]
    body: bytes
    id: str = field(default_factory=lambda: str(uuid.uuid4()))

    @property
    def events(self) -> int:
        return sum(item.count for item in self.items)


class Flusher:
    """Empties an `EventRecorder`. `has_room` returns whether a connection is free."""

    def __init__(
        self,
        events: EventRecorder,
        store: StoreEvents,
        recorder: Recorder,
        *,
        source: str,
        has_room: Callable[[], bool] = lambda: True,
        clock: Clock | None = None,
        rand: Random = random.random,
    ) -> None:
        self._events, self._store, self._recorder = events, store, recorder
        self._source, self._has_room = source, has_room
        self._clock = clock or asyncio.get_running_loop().time
        self._rand = rand
        failures = (DatabaseError, DeadlineExceeded, TimeoutError, _NotStored)
        self._breaker = Breaker("recorder", recorder=recorder, failures=failures, clock=self._clock, rand=rand)
        self._batch: _Batch | None = None
        self._failures = self._postponed = 0
        self._not_before = 0.0

    async def run(self) -> None:
        """Collect and flush every `FLUSH_PAUSE_S`, or when many items wait, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_PAUSE_S):
                    await self._events.filled.wait()
            if not await self.tick():
                await asyncio.sleep(FLUSH_PAUSE_S)

    async def tick(self) -> bool:
        """Collect events and flush them if due. Returns False if it has to wait longer.

        That is after a failure, and while requests use every connection.
        """
        try:
            self._events.collect()
        except Exception:
            # A defect must not end the daemon, as that of any other background task would.
            log.exception("events_not_collected")
            self._recorder.count("recorder_defects_total")
        if self._batch is None and not self._events.is_due:
            return True
        if self._clock() < self._not_before:
            return False
        if not self._has_room() and self._postponed < MAX_POSTPONED:
            self._postponed += 1
            return False
        self._postponed = 0
        return await self.flush(FLUSH_LIMIT_S)

    async def flush(self, limit_s: float) -> bool:
        """Send everything that waits; returns whether nothing is left."""
        while self._batch is not None or len(self._events):
            if self._batch is None:
                items = self._events.take(BATCH_ITEMS)
                self._batch = _Batch(items, encode(items))
            try:
                async with self._breaker.attempt(), asyncio.timeout(limit_s):
                    await self._send(self._batch, limit_s)
            except BreakerOpen as refused:
                self._not_before = self._clock() + refused.retry_after_s
                return False
            except (DatabaseError, DeadlineExceeded, ShuttingDown, TimeoutError, _NotStored) as error:
                self._note_failure(error)
                return False
            except Exception:
                # A defect of this code or of the data: sending the batch again would fail again.
                log.exception("history_batch_dropped", events=self._batch.events)
                self._end(stored=False)
        return True

    async def _send(self, batch: _Batch, limit_s: float) -> None:
        started = self._clock()
        with with_deadline(limit_s):
            answer = await self._store(batch.body, batch.id, self._source)
        self._recorder.observe("recorder_flush_seconds", self._clock() - started)
        if answer.status == "failed":
            raise _NotStored(answer.error)
        if answer.status == "refused":
            log.error("history_batch_refused", events=batch.events, reason=answer.error)
        elif self._failures:
            log.info("history_is_stored_again", after_failures=self._failures)
        self._failures = 0
        self._end(stored=answer.status != "refused")

    def _end(self, *, stored: bool) -> None:
        batch, self._batch = self._batch, None
        assert batch is not None  # noqa: S101 - ends the batch that is being sent
        if stored:
            self._recorder.count("recorder_events_total", batch.events, outcome="stored")
        else:
            for item in batch.items:
                self._events.count_dropped(item)
        self._recorder.count("recorder_flushes_total", outcome="stored" if stored else "dropped")
        self._events.settle(batch.items)

    def give_up(self) -> None:
        """Count the remaining events as dropped, at the end of the process."""
        left = [*(self._batch.items if self._batch else ()), *self._events.take(len(self._events))]
        for item in left:
            self._events.count_dropped(item)
        if left:
            log.warning("history_lost_at_the_end", events=sum(item.count for item in left))

    def _note_failure(self, error: Exception) -> None:
        self._failures += 1
        self._not_before = self._clock() + backoff_s(self._failures, RETRY_BASE_S, RETRY_CAP_S, rand=self._rand)
        self._recorder.count("recorder_flushes_total", outcome="failed")
        if self._failures == 1:
            log.warning("history_not_stored", reason=str(error) or type(error).__name__, waiting=len(self._events))


@asynccontextmanager
async def open_history(
    events: EventRecorder, store: StoreEvents, recorder: Recorder, *, source: str, has_room: Callable[[], bool]
) -> AsyncIterator[Flusher]:
    """Record and flush events until the block ends, then flush the remaining ones within `LAST_FLUSH_S`."""
    flusher = Flusher(events, store, recorder, source=source, has_room=has_room)
    events.open()
    try:
        async with running("history", flusher.run()):
            yield flusher
    finally:
        events.collect()
        events.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_FLUSH_S):
                await flusher.flush(LAST_FLUSH_S)
        flusher.give_up()
