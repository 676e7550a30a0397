"""Redis and the network to it fail: no request fails, and no page is older than promised.

What the cache itself does in each case is proved in `tests/integration/cache`; these go through whole applications.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from exai.conversations import ChatRequest
from exai.models import LOCAL_OWNER, ContinuationId
from tests.fault.service import NO_PASS_S, Servers, Service, converges, servers
from tests.support.valkey import Valkey
from tests.support.waiting import wait_until

READERS = 67
CALLS = 30


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    """A Valkey of this test's own, without any files."""
    with Valkey() as server:
        yield server


@pytest.fixture
async def own(postgres_url: str, valkey: Valkey, tmp_path: Path) -> AsyncIterator[Servers]:
    """Applications on that Valkey."""
    async with servers(postgres_url, valkey.url, tmp_path) as opened:
        yield opened


async def test_reader_that_was_slow_stores_nothing_old(rig: Servers) -> None:
    """The race that a cache loses: a page was read before a write, and comes to be stored after it."""
    writer, reader = await rig.open(), await rig.open()
    name = (await writer.append(None, "one")).continuation_id
    read = reader.database.hold_replies_from(b"read_page_v1")
    slow = asyncio.create_task(reader.contents(name))
    await read.wait()
    await wait_until(lambda: reader.database.round_trips > 0)
    await writer.append(name, "two")
    reader.database.mode = "pass"
    assert (await slow)[0] == "one"
    for service in (reader, writer, reader):
        assert await service.contents(name) == ["one", "two"]


async def test_writer_cut_off_from_redis_writes_on_and_the_others_are_late_for_the_bound_only(rig: Servers) -> None:
    """Writes are acknowledged and visible to the writer's readers at once, to other daemons within the bound."""
    writer, reader = await rig.open(), await rig.open()
    name = (await writer.append(None, "one")).continuation_id
    await reader.contents(name)
    for mode in ("stall", "reset"):
        writer.cache.mode = mode  # type: ignore[assignment]
        await writer.append(name, mode)
        answer = await writer.app.chat.run(ChatRequest(LOCAL_OWNER, f"{mode}?", continuation_id=name))
        seen = await writer.contents(name)
        assert seen[-3:] == [mode, f"{mode}?", answer.content]
        await converges(reader, name, seen)
    writer.cache.mode = "pass"
    assert await writer.contents(name) == seen


async def test_redis_that_restarts_empty_causes_no_error(own: Servers, valkey: Valkey) -> None:
    """Reads, writes and turns go on; with Redis back the pages are cached again, without a restart of anything."""
    services = [await own.open(), await own.open()]
    name = (await services[0].append(None, "one")).continuation_id
    await services[1].contents(name)
    valkey.kill()
    expected = ["one"]
    for number, service in enumerate(services * 3):
        await service.append(name, f"{number}")
        expected.append(f"{number}")
        for each in services:
            assert await each.contents(name) == expected
    valkey.start()
    for service in services:
        await cached_again(service, name, expected)


async def cached_again(service: Service, name: ContinuationId, expected: list[str]) -> None:
    """Read, and find it right, until it comes from the cache; the breaker may look again after some seconds only."""
    async with asyncio.timeout(60):
        while (page := await service.read(name)).source != "cache":
            assert [message.content for message in page.messages] == expected
            await asyncio.sleep(0.05)
    assert [message.content for message in page.messages] == expected


async def test_black_hole_costs_a_few_calls_their_limit_and_the_rest_nothing(rig: Servers) -> None:
    """After a handful of timeouts Redis is not even asked; every answer is right and comes from the database."""
    service = await rig.open(reconcile_interval_s=NO_PASS_S, max_staleness_s=60)
    name = (await service.append(None, "one")).continuation_id
    service.cache.mode = "stall"
    for _ in range(CALLS):
        assert await service.contents(name) == ["one"]
    asked = service.count("cache_calls_total", script="read", outcome="down")
    assert asked == CALLS
    assert service.count("breaker_calls_total", breaker="redis", outcome="failure") <= 5
    assert service.count("breaker_calls_total", breaker="redis", outcome="refused") >= CALLS - 5
    assert service.count("db_statements_total", statement="read_page") == CALLS


async def test_primary_that_becomes_a_replica_costs_reads_and_writes_nothing(own: Servers, valkey: Valkey) -> None:
    """READONLY is not reported to callers; after the promotion pages are cached again."""
    service = await own.open()
    name = (await service.append(None, "one")).continuation_id
    await service.contents(name)
    valkey.do("REPLICAOF", "127.0.0.1", "1")
    await service.append(name, "two")
    assert await service.contents(name) == ["one", "two"]
    await service.app.chat.run(ChatRequest(LOCAL_OWNER, "three", continuation_id=name))
    expected = await service.contents(name)
    assert expected[:3] == ["one", "two", "three"]
    valkey.do("REPLICAOF", "NO", "ONE")
    await cached_again(service, name, expected)


async def test_concurrent_reads_of_a_cold_conversation_share_database_reads(rig: Servers) -> None:
    """Three daemons with two hundred readers between them: at most one read per daemon and lease."""
    services = [await rig.open(reconcile_interval_s=NO_PASS_S, max_staleness_s=60) for _ in range(3)]
    name = (await services[0].append(None, "one")).continuation_id
    pages = await asyncio.gather(*(service.contents(name) for service in services for _ in range(READERS)))
    assert pages == [["one"]] * (3 * READERS)
    assert 1 <= sum(service.count("db_statements_total", statement="read_page") for service in services) <= 3


async def test_reader_who_gives_up_harms_no_other(rig: Servers) -> None:
    """Half of the callers are cancelled at every moment of a call; the rest get their own pages and no others."""
    service = await rig.open()
    names = [(await service.append(None, f"{number}")).continuation_id for number in range(8)]
    for turns in range(12):
        tasks = [asyncio.create_task(service.contents(name)) for name in names * 2]
        for _ in range(turns):
            await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert results[1::2] == [[f"{number % 8}"] for number in range(16)][1::2]


async def test_page_of_fifty_megabytes_is_answered_and_not_cached(rig: Servers) -> None:
    """Larger than an entry may be, and than an answer: each page is one of the database, and all are there."""
    service = await rig.open()
    text = "x" * 1_000_000
    name = (await service.append(None, *(text for _ in range(15)))).continuation_id
    for size in (15, 15, 5):
        await service.append(name, *(text for _ in range(size)))
    for _ in range(2):
        page = await service.read(name)
        assert (page.source, len(page.messages)) == ("database", 2)
        await service.app.cache.wait_settled()
        seqs = [message.seq for message in page.messages]
        while page.next_before_seq is not None:
            page = await service.conversations.read(LOCAL_OWNER, name, before_seq=page.next_before_seq)
            seqs = [message.seq for message in page.messages] + seqs
        assert seqs == list(range(1, 51))
    assert service.count("cache_fills_total", result="unfit") == 2
