"""The queue of stored requests: who is claimed when, by whom, and what a claim may still do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from exai.db.driver.address import parse_address
from exai.db.driver.pool import Database, OneTrip
from exai.db.listening import listen
from exai.db.requests import ClaimedRequest, RequestOutcome, RequestProgress, RequestRepository
from tests.support.database import opened
from tests.support.migrations import session

LEASE_S = 60.0


@pytest.fixture
def queue(database: Database) -> RequestRepository:
    return RequestRepository(database)


@pytest.fixture
async def sql(postgres_url: str) -> AsyncIterator[OneTrip]:
    async with session(postgres_url) as connection:
        yield connection


async def store(sql: OneTrip, *owners: str) -> None:
    """Store requests, each a second younger than the one before."""
    await sql.execute(
        "insert into requests (owner, tool, arguments, created_at)"
        " select o, 'chat', jsonb_build_object('n', i), now() - interval '1 hour' + i * interval '1 second'"
        " from unnest($1::text[]) with ordinality u(o, i)",
        list(owners),
    )


async def claimed(queue: RequestRepository, limit: int) -> list[ClaimedRequest]:
    found = await queue.claim(limit, lease_s=LEASE_S)
    return sorted(found.claimed, key=lambda each: json.loads(each.arguments)["n"])


async def test_owners_take_turns(queue: RequestRepository, sql: OneTrip) -> None:
    """One that has stored many, and has some that run, does not keep the others waiting."""
    await store(sql, *"aaaaaaaa", *"bb", "c")
    assert [each.owner for each in await claimed(queue, 3)] == ["a", "b", "c"]
    assert [each.owner for each in await claimed(queue, 3)] == ["a", "a", "b"]
    left = await queue.claim(2, lease_s=LEASE_S)
    assert ([each.owner for each in left.claimed], left.waiting) == (["a", "a"], 3)
    assert 3_500 < left.oldest_s < 3_700


async def test_claims_at_once_are_of_different_requests(queue: RequestRepository, sql: OneTrip) -> None:
    """A claim passes over rows that another one holds."""
    await store(sql, *("a", "b", "c", "d") * 10)
    found = await asyncio.gather(*(queue.claim(8, lease_s=LEASE_S) for _ in range(8)))
    ids = [each.id for one in found for each in one.claimed]
    assert len(ids) == len(set(ids)) == 40


async def test_a_request_is_claimed_again_when_its_lease_has_expired(queue: RequestRepository, sql: OneTrip) -> None:
    """The first claim can then no longer change it."""
    await store(sql, "a")
    [first] = await claimed(queue, 5)
    assert await claimed(queue, 5) == []
    assert await queue.touch([RequestProgress(first, "so far", "half")], lease_s=0.0) == {first.id}
    [second] = await claimed(queue, 5)
    assert (second.id, second.attempt, json.loads(second.arguments)) == (first.id, 2, {"n": 1})
    assert await queue.touch([RequestProgress(first, "late", None)], lease_s=LEASE_S) == frozenset()
    assert not await queue.finish(first, RequestOutcome("done", "late"))
    assert await queue.finish(second, RequestOutcome("done", "in time", {"a": "b\x00c"}))
    assert await queue.finish(second, RequestOutcome("done", "in time"))
    row = await sql.fetchrow("select state, answer, result, partial, progress from requests")
    assert row is not None
    assert tuple(row) == ("done", "in time", '{"a": "b\N{REPLACEMENT CHARACTER}c"}', None, None)


async def test_a_released_request_waits_for_its_time(queue: RequestRepository, sql: OneTrip) -> None:
    """Its attempt counts only if it was one."""
    await store(sql, "a")
    [first] = await claimed(queue, 5)
    await queue.release(first, after_s=60.0, counts=True)
    assert await claimed(queue, 5) == []
    await sql.execute("update requests set not_before = now()")
    [second] = await claimed(queue, 5)
    await queue.release(second, after_s=0.0, counts=False)
    [third] = await claimed(queue, 5)
    assert (first.attempt, second.attempt, third.attempt) == (1, 2, 2)


async def test_a_cancelled_request_is_not_touched(queue: RequestRepository, sql: OneTrip) -> None:
    """Its daemon learns of it when it reports progress."""
    await store(sql, "a")
    [request] = await claimed(queue, 5)
    await sql.execute("update requests set state = 'cancelled'")
    assert await queue.touch([RequestProgress(request, "x", None)], lease_s=LEASE_S) == frozenset()
    assert not await queue.finish(request, RequestOutcome("done", "x"))
    await queue.release(request, after_s=0.0, counts=False)
    assert await sql.fetchval("select state from requests") == "cancelled"


async def test_requests_that_were_read_or_are_old_are_removed(queue: RequestRepository, sql: OneTrip) -> None:
    """Never one that runs."""
    await store(sql, *"abcd")
    await sql.execute("update requests set state = 'done', finished_at = now(), read_at = now() where owner = 'a'")
    # The trigger sets the time of reading.
    await sql.execute("alter table requests disable trigger exai_note_request")
    await sql.execute("update requests set read_at = now() - interval '2 days' where owner = 'a'")
    await sql.execute("update requests set created_at = now() - interval '40 days' where owner in ('b', 'c')")
    await sql.execute(
        "update requests set state = 'running', claimed_by = gen_random_uuid(), lease_until = now() where owner = 'c'"
    )
    assert await queue.prune(read_days=1.0, keep_days=30.0) == 2
    assert [row[0] for row in await sql.fetch("select owner from requests order by 1")] == ["c", "d"]


@pytest.mark.direct
async def test_progress_rewrites_no_index(postgres_url: str, sql: OneTrip) -> None:
    """A growing answer is stored every second."""
    await store(sql, "a")
    async with opened(postgres_url) as claiming:
        [request] = await claimed(RequestRepository(claiming), 5)
    before = await counted(sql, 1)
    async with opened(postgres_url) as database:
        queue = RequestRepository(database)
        for number in range(10):
            await queue.touch([RequestProgress(request, f"{number}", "x" * number)], lease_s=LEASE_S)
    found = await counted(sql, before[0] + 10)
    assert found[1] - before[1] >= 9


async def counted(sql: OneTrip, least: int) -> tuple[int, int]:
    """Wait for so many updates: a session that ends reports its counts, an idle one after ten seconds."""
    async with asyncio.timeout(20):
        while (found := await updates(sql))[0] < least:
            await asyncio.sleep(0.01)
    return found


async def updates(sql: OneTrip) -> tuple[int, int]:
    await sql.fetchval("select pg_stat_clear_snapshot()")
    row = await sql.fetchrow("select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relname = 'requests'")
    assert row is not None
    return row[0], row[1]


@pytest.mark.direct
async def test_a_listener_is_woken_by_new_and_cancelled_requests(postgres_url: str, sql: OneTrip) -> None:
    """On a session of its own, and once after each connection, for what was sent before."""
    woken = asyncio.Queue[None]()
    listening = asyncio.create_task(
        listen(parse_address(postgres_url), "exai_requests", lambda: woken.put_nowait(None))
    )
    try:
        async with asyncio.timeout(20):
            await woken.get()
            await store(sql, "a", "b")
            await woken.get()
            await sql.execute("update requests set state = 'cancelled' where owner = 'a'")
            await woken.get()
            await sql.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where pid <> pg_backend_pid() and datname = current_database() and query ilike 'listen%'"
            )
            await woken.get()
            assert woken.empty()
    finally:
        listening.cancel()
        await asyncio.wait({listening})
