"""Postgres is cut while events are recorded: no request waits for the history, nothing is lost, nothing is doubled."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, date, datetime, timedelta

from exai.conversations import ChatRequest
from exai.db.history import HistoryQuery, HistoryRepository, Removed
from exai.errors import DatabaseError
from exai.models import LOCAL_OWNER
from exai.monitoring.events import EventRecorder
from exai.monitoring.flushing import Flusher
from exai.monitoring.metrics import MetricsRecorder, Sums
from exai.monitoring.upkeep import Upkeep
from tests.fault.service import NO_PASS_S, POOL_SIZE, Servers, Service
from tests.support.database import opened
from tests.support.migrations import run, session

READS = 50
READS_WITHOUT = 8
"""Each of them waits for its retries."""


@asynccontextmanager
async def in_use(url: str, day: date) -> AsyncIterator[None]:
    async with session(url) as connection, connection.transaction():
        await connection.execute(f"lock table monitoring.metrics_raw_{day:%Y%m%d} in access share mode")
        yield


async def make_partition(url: str, day: date) -> None:
    name = f"monitoring.metrics_raw_{day:%Y%m%d}"
    bounds = f"from ('{day} 00:00+00') to ('{day + timedelta(days=1)} 00:00+00')"
    await run(
        url,
        f"create table {name} partition of monitoring.metrics_raw for values {bounds}",
        f"insert into {name} (type, \"timestamp\") values ('a', '{day} 12:00+00')",
    )


def flusher_of(service: Service) -> Flusher:
    app = service.app
    app.events.open()
    return Flusher(app.events, app.history.store, app.recorder, source="test", rand=lambda: 0.0)


async def stored(service: Service, metric: str) -> int:
    now = datetime.now(UTC)
    asked = HistoryQuery(metric, now - timedelta(hours=1), now + timedelta(hours=1), 60)
    return sum(point.count for point in await service.app.history.read(asked))


async def test_no_request_waits_for_a_flush_that_hangs(rig: Servers) -> None:
    """Cached reads need neither the database nor the flusher: all of them end while its statement hangs."""
    # Without passes of its own, whose statements would hang, too.
    database = {"index_pause_s": NO_PASS_S}
    service = await rig.open(database=database, reconcile_interval_s=NO_PASS_S, max_staleness_s=60)
    name = (await service.append(None, "one")).continuation_id
    while (await service.read(name)).source != "cache":
        await asyncio.sleep(0.05)
    flusher = flusher_of(service)
    before = service.count("cache_reads_total")
    service.app.events.health_change("cache", "ok", "down", "")
    service.database.mode = "stall"
    flush = asyncio.create_task(flusher.tick())
    for _ in range(READS):
        assert (await service.read(name)).source == "cache"
    assert not flush.done()
    assert service.app.database.usage()[0] == 1 < POOL_SIZE
    service.database.mode = "pass"
    await flush
    while not await flusher.tick():
        await asyncio.sleep(0.05)
    assert await stored(service, "cache_read") == service.count("cache_reads_total") - before == READS


async def test_what_happens_without_the_database_is_stored_when_it_is_back(rig: Servers) -> None:
    """Chats before and after, cached reads all the time; a batch whose reply was lost is stored once."""
    service = await rig.open()
    flusher = flusher_of(service)
    name = (await service.app.chat.run(ChatRequest(LOCAL_OWNER, "a question"))).continuation_id
    lost = service.database.drop_reply_to(b"aggregate_metrics")
    await flusher.tick()
    assert lost.done()
    service.database.mode = "reset"
    for _ in range(READS_WITHOUT):
        with suppress(DatabaseError):
            await service.read(name)
        await flusher.tick()
    service.database.mode = "pass"
    while not await flusher.tick():
        await asyncio.sleep(0.05)
    await service.app.chat.run(ChatRequest(LOCAL_OWNER, "another", continuation_id=name))
    assert await flusher.tick()
    assert await stored(service, "turn") == 2
    assert await stored(service, "provider_call") == 2
    assert await stored(service, "cache_read") == service.count("cache_reads_total")
    assert service.count("recorder_dropped_total") == 0
    assert service.count("recorder_queue") == 0


async def test_chats_go_on_while_the_tables_of_metrics_are_blocked(rig: Servers) -> None:
    """The flush waits at most for the time limit of a statement, on one connection; afterwards all is stored once."""
    service = await rig.open(database={"statement_timeout_s": 1.0})
    flusher = flusher_of(service)
    service.app.events.health_change("cache", "ok", "down", "")
    async with session(rig.postgres_url) as other, other.transaction():
        await other.execute("lock table monitoring.metrics_raw, monitoring.metrics_1min in access exclusive mode")
        flush = asyncio.create_task(flusher.tick())
        for number in range(3):
            await service.app.chat.run(ChatRequest(LOCAL_OWNER, f"question {number}"))
        assert not await flush
        assert service.count("recorder_flushes_total", outcome="failed") == 1
    while not await flusher.tick():
        await asyncio.sleep(0.05)
    assert await stored(service, "turn") == 3
    assert await stored(service, "health_change") == 1
    assert service.count("recorder_dropped_total") == 0


async def test_drops_above_the_bound_are_what_is_missing(rig: Servers) -> None:
    """Stored and dropped together are what happened."""
    service = await rig.open()
    events = EventRecorder(service.app.recorder, capacity=100)
    events.open()
    flusher = Flusher(events, service.app.history.store, service.app.recorder, source="test", rand=lambda: 0.0)
    service.database.mode = "reset"
    for number in range(1_000):
        events.health_change("cache", "down", "ok", str(number))
    assert not await flusher.tick()
    assert service.count("recorder_queue") == 100
    service.database.mode = "pass"
    while not await flusher.tick():
        await asyncio.sleep(0.05)
    assert await stored(service, "health_change") == 100
    assert service.count("recorder_dropped_total", type="health_change") == 900


async def test_a_day_of_events_is_summed_up_exactly(postgres_url: str) -> None:
    """24 simulated hours with a flush every five minutes, and one hour without: each minute and hour is true."""
    begin = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=25)
    clock, source = begin.timestamp(), random.Random(1)
    truth: dict[int, list[float]] = {}
    async with opened(postgres_url) as database:
        history = HistoryRepository(database)
        events = EventRecorder(MetricsRecorder(), now=lambda: clock)
        events.open()
        flusher = Flusher(events, history.store, MetricsRecorder(), source="test", clock=lambda: clock)
        for minute in range(24 * 60):
            for second in sorted(source.sample(range(60), source.randrange(1, 4))):
                clock = begin.timestamp() + minute * 60 + second
                value = source.expovariate(2)
                truth.setdefault(minute, []).append(value)
                events.tool_calls("chat", "ok", Sums(1, value, [1]))
            if minute % 5 == 4 and minute // 60 != 7:
                assert await flusher.tick()
        day = {"since": begin, "until": begin + timedelta(hours=24)}
        minutes = await history.read(HistoryQuery("tool_call", step_s=60, **day))
        hours = await history.read(HistoryQuery("tool_call", step_s=3_600, **day))
    assert [(point.at, point.count) for point in minutes] == [
        (begin + timedelta(minutes=minute), len(values)) for minute, values in sorted(truth.items())
    ]
    for point in minutes:
        assert point.sum is not None
        assert abs(point.sum - sum(truth[(point.at - begin) // timedelta(minutes=1)])) < 1e-9
    assert sum(point.count for point in hours) == sum(map(len, truth.values()))
    assert len(hours) == 24


async def test_upkeep_drops_partitions_and_makes_new_ones(postgres_url: str) -> None:
    """One daemon at a time, through any pooler; a partition that is in use is left for the next run."""
    old = datetime.now(UTC).date() - timedelta(days=9)
    async with opened(postgres_url) as database, opened(postgres_url) as other:
        metrics = MetricsRecorder()
        await make_partition(postgres_url, old)
        await asyncio.gather(*(Upkeep(HistoryRepository(each), metrics).work() for each in (database, other)))
        assert metrics.value("metrics_removed_total", table="partitions") == 1
        assert metrics.value("metrics_expired_rows", table="partitions") == 0
        await make_partition(postgres_url, old)
        async with in_use(postgres_url, old):
            found = await HistoryRepository(database).apply_retention()
        assert found[0] == Removed("partitions", 0, 1)
        await Upkeep(HistoryRepository(database), metrics).work()
        assert metrics.value("metrics_removed_total", table="partitions") == 2
