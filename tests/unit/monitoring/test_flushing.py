"""The flusher: no event twice or lost below the bound, and no failure that leaves it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import orjson
import pytest

from exai.errors import DatabaseUnavailable
from exai.monitoring.events import EventRecorder
from exai.monitoring.flushing import BATCH_ITEMS, MAX_POSTPONED, Flusher, open_history
from exai.monitoring.metrics import MetricsRecorder, Sums


@dataclass
class Answer:
    status: str = "stored"
    error: str | None = None


@dataclass
class Table:
    """Stores batches by id, as the database does; `faults` are raised first, before or after the batch is stored."""

    batches: dict[str, int] = field(default_factory=dict)
    sent: list[str] = field(default_factory=list)
    faults: list[Exception | Answer] = field(default_factory=list)
    lost_replies: int = 0

    async def store(self, body: bytes, batch_id: str, source: str) -> Answer:
        assert source == "here"
        self.sent.append(batch_id)
        if self.faults:
            fault = self.faults.pop(0)
            if isinstance(fault, Answer):
                return fault
            raise fault
        known = batch_id in self.batches
        self.batches[batch_id] = sum(each["data"]["count"] for each in orjson.loads(body))
        if self.lost_replies:
            self.lost_replies -= 1
            raise DatabaseUnavailable("postgres", "no reply came", "Try again")
        return Answer("duplicate" if known else "stored")

    @property
    def events(self) -> int:
        return sum(self.batches.values())


class Clock:
    at = 0.0

    def __call__(self) -> float:
        return self.at


@dataclass
class Parts:
    metrics: MetricsRecorder
    events: EventRecorder
    table: Table
    clock: Clock
    has_room: list[bool]
    flusher: Flusher

    def happen(self, number: int = 1) -> None:
        for _ in range(number):
            self.events.health_change("cache", "down", "ok", "")


@pytest.fixture
def parts() -> Parts:
    metrics = MetricsRecorder()
    events = EventRecorder(metrics, capacity=3_000)
    events.open()
    table, clock, room = Table(), Clock(), [True]
    flusher = Flusher(
        events,
        table.store,
        metrics,
        source="here",
        has_room=lambda: room[0],
        clock=clock,
        rand=lambda: 0.5,
    )
    return Parts(metrics, events, table, clock, room, flusher)


def away() -> DatabaseUnavailable:
    return DatabaseUnavailable("postgres", "is away", "Start it")


async def test_what_waits_is_sent_in_one_statement(parts: Parts) -> None:
    """And nothing is sent when nothing waits."""
    parts.happen(20)
    parts.events.cache_reads("hit", Sums(500))
    assert await parts.flusher.tick()
    assert await parts.flusher.tick()
    assert (len(parts.table.sent), parts.table.events) == (1, 520)
    assert parts.metrics.value("recorder_events_total", outcome="stored") == 520


async def test_a_batch_whose_reply_was_lost_is_stored_once(parts: Parts) -> None:
    """It keeps its id, and later events go into another batch."""
    parts.table.lost_replies = 1
    parts.happen(3)
    assert not await parts.flusher.tick()
    parts.happen(4)
    parts.clock.at = 60
    assert await parts.flusher.tick()
    assert parts.table.sent[0] == parts.table.sent[1] != parts.table.sent[2]
    assert parts.table.events == 7
    assert parts.metrics.value("recorder_queue") == 0


async def test_an_hour_without_the_database_loses_nothing_below_the_bound(parts: Parts) -> None:
    """The database is asked seldom, and everything is stored when it is back."""
    parts.table.faults = [away() for _ in range(10_000)]
    for _ in range(720):
        parts.happen(4)
        await parts.flusher.tick()
        parts.clock.at += 5
    assert len(parts.table.sent) < 200
    assert parts.metrics.value("recorder_queue") == 2_880
    parts.table.faults.clear()
    parts.clock.at += 120
    assert await parts.flusher.tick()
    assert (parts.table.events, parts.metrics.value("recorder_dropped_total")) == (2_880, 0)
    assert max(parts.table.batches.values()) == BATCH_ITEMS


async def test_drops_above_the_bound_are_counted_exactly(parts: Parts) -> None:
    """What was stored and what was dropped is what happened."""
    parts.table.faults = [away() for _ in range(10_000)]
    for _ in range(100):
        parts.happen(70)
        await parts.flusher.tick()
        parts.clock.at += 5
    assert parts.metrics.value("recorder_queue") == 3_000
    parts.table.faults.clear()
    parts.clock.at += 120
    assert await parts.flusher.tick()
    assert parts.table.events == 3_000
    assert parts.metrics.value("recorder_dropped_total", type="health_change") == 4_000


async def test_a_failure_inside_the_database_is_retried_and_a_refusal_is_not(parts: Parts) -> None:
    """A batch that the database will never take is counted as dropped."""
    parts.table.faults = [Answer("failed", "disk full (53100)"), Answer("refused", "not an array")]
    parts.happen(5)
    assert not await parts.flusher.tick()
    assert not await parts.flusher.tick()
    assert len(parts.table.sent) == 1
    parts.clock.at = 60
    assert await parts.flusher.tick()
    assert parts.metrics.value("recorder_dropped_total", type="health_change") == 5
    assert parts.metrics.value("recorder_queue") == 0


async def test_a_defect_ends_a_batch_and_nothing_else(parts: Parts) -> None:
    """A background task that fails would end the daemon."""
    parts.table.faults = [KeyError("defect")]
    parts.happen(2)
    assert await parts.flusher.tick()
    assert parts.metrics.value("recorder_dropped_total") == 2
    parts.happen()
    assert await parts.flusher.tick()
    assert parts.table.events == 1


async def test_a_defect_of_the_collection_ends_nothing(parts: Parts) -> None:
    """A metric with other labels than expected, for example; what was recorded otherwise is still sent."""
    parts.metrics.observe("provider_seconds", 1.0, unexpected="label")
    parts.happen()
    assert await parts.flusher.tick()
    assert (parts.table.events, parts.metrics.value("recorder_defects_total")) == (1, 1)


async def test_requests_go_first_for_a_while(parts: Parts) -> None:
    """No flush takes the last connection, until it has been left out several times."""
    parts.has_room[0] = False
    parts.happen()
    for _ in range(MAX_POSTPONED):
        assert not await parts.flusher.tick()
    assert not parts.table.sent
    assert await parts.flusher.tick()
    assert parts.table.events == 1


async def test_the_end_flushes_what_is_left() -> None:
    """Also a batch whose statement was interrupted by the end."""
    metrics, table = MetricsRecorder(), Table()
    events = EventRecorder(metrics)
    is_sending = asyncio.Event()
    calls = 0

    async def store(body: bytes, batch_id: str, source: str) -> Answer:
        nonlocal calls
        calls += 1
        answer = await table.store(body, batch_id, source)
        if calls == 1:
            is_sending.set()
            await asyncio.Event().wait()
        return answer

    async with open_history(events, store, metrics, source="here", has_room=lambda: True):
        for _ in range(60):
            events.health_change("cache", "down", "ok", "")
        await is_sending.wait()
        events.cache_reads("hit", Sums(9))
    assert (table.events, len(table.batches), calls) == (69, 2, 3)
    events.cache_reads("hit", Sums(9))
    assert len(events) == 0


async def test_what_cannot_be_flushed_at_the_end_is_counted() -> None:
    """The end does not wait for a database that is away."""
    metrics, table = MetricsRecorder(), Table(faults=[away() for _ in range(9)])
    events = EventRecorder(metrics)
    async with open_history(events, table.store, metrics, source="here", has_room=lambda: True):
        events.health_change("cache", "down", "ok", "")
    assert metrics.value("recorder_dropped_total", type="health_change") == 1
