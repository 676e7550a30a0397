"""The cost of the cache, counted on the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from exai.cache.conversations import ConversationCache
from exai.cache.reconciliation import ChangedRevisions
from exai.cache.records import Miss, PreloadedPage
from tests.integration.cache.conftest import OpenCache
from tests.integration.cache.steps import apply, expect_current, fill, hit, miss
from tests.integration.cache.stored import Stored
from tests.support.counters import Counters
from tests.support.redis_proxy import RedisProxy
from tests.support.valkey import Valkey
from tests.support.waiting import wait_until


@pytest.fixture
async def proxy(valkey: Valkey) -> AsyncIterator[RedisProxy]:
    async with RedisProxy(valkey.address) as between:
        yield between


@pytest.fixture
async def cache(cache_at: OpenCache, proxy: RedisProxy, stored: Stored) -> ConversationCache:
    """Connected, with all scripts known to the server and no reconciliation under way."""
    opened = await cache_at(proxy.url, reconcile_interval_s=3_600)
    await fill(opened, stored)
    await apply(opened, stored, stored.append("one"))
    stored.edit("another")
    await apply(opened, stored, None)
    await opened.release(stored.key, await miss(opened, stored))
    proxy.reset_counters()
    return opened


async def test_hit_is_one_round_trip_and_no_database_read(
    cache: ConversationCache, proxy: RedisProxy, stored: Stored
) -> None:
    """Promise 1."""
    await fill(cache, stored)
    proxy.reset_counters()
    loads = stored.loads
    for number in range(1, 4):
        await expect_current(cache, stored)
        assert (proxy.names(), proxy.round_trips, stored.loads) == (["EVALSHA"] * number, number, loads)


async def test_miss_is_two_round_trips_and_one_database_read(
    cache: ConversationCache, proxy: RedisProxy, stored: Stored
) -> None:
    """Promise 2: READ, the load, FILL."""
    loads = stored.loads
    await fill(cache, stored)
    assert (proxy.names(), proxy.round_trips, stored.loads) == (["EVALSHA"] * 2, 2, loads + 1)


@pytest.mark.parametrize("cached", [True, False])
async def test_change_is_one_round_trip(
    cache: ConversationCache, proxy: RedisProxy, stored: Stored, cached: bool
) -> None:
    """Of any number of messages, cached or not."""
    if cached:
        await fill(cache, stored)
    delta = stored.append(*(f"message {number}" for number in range(200)))
    proxy.reset_counters()
    assert await apply(cache, stored, delta)
    assert (proxy.names(), proxy.round_trips) == (["EVALSHA"], 1)


async def test_chat_turn_is_three_round_trips_and_leaves_the_page_cached(
    cache: ConversationCache, proxy: RedisProxy, stored: Stored
) -> None:
    """READ, one change for the question and one for the answer; here the first stores the page whole."""
    found = await cache.read(stored.key)
    assert isinstance(found, Miss)
    question = stored.append("question")
    await apply(cache, stored, question, preloaded=PreloadedPage(found, tuple(stored.messages), complete=True))
    await apply(cache, stored, stored.append("answer"))
    assert proxy.round_trips == 3
    await expect_current(cache, stored)


async def test_reconciliation_is_two_round_trips_and_one_database_query(
    cache_at: OpenCache, proxy: RedisProxy, recorder: Counters
) -> None:
    """For any number of changed conversations."""
    asked = []

    async def changes(since: str | None) -> ChangedRevisions:
        asked.append(since)
        many = [Stored(name=f"thread {number}") for number in range(500)]
        return ChangedRevisions("100", "epoch-1", [(each.owner, each.name, 7) for each in many])

    await cache_at(proxy.url, changes=changes, reconcile_interval_s=3_600)
    await wait_until(lambda: recorder["cache_reconciliations_total", "generation"] == 1)
    # Each script was unknown to the server, and is sent once more in full.
    assert (proxy.names(), len(asked)) == (["EVALSHA", "EVAL"] * 2, 1)


async def test_only_commands_of_redis_7_0_are_used(cache_at: OpenCache, valkey: Valkey, stored: Stored) -> None:
    """Redis 7, Redis 8 and Valkey all serve."""

    async def changes(_: str | None) -> ChangedRevisions:
        return ChangedRevisions("100", "epoch-1", [(stored.owner, stored.name, 0)])

    valkey.do("CONFIG", "RESETSTAT")
    cache = await cache_at(valkey.url, changes=changes)
    await fill(cache, stored)
    await hit(cache, stored)
    await apply(cache, stored, stored.append("one"))
    await cache.read_uncovered(stored.key)
    await cache.status()
    used = {name.removeprefix("cmdstat_").partition("|")[0] for name in valkey.do("INFO", "commandstats")}
    ours = {"eval", "evalsha", "time", "hmget", "hget", "hset", "set", "get", "del", "hstrlen", "pexpire"}
    assert used - {"config", "info", "client"} <= ours
