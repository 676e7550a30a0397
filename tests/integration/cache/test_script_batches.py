"""Concurrent applies share one command, and each receives its own reply."""

from __future__ import annotations

import asyncio

import pytest

from exai.cache.conversations import ConversationCache
from exai.cache.entry import cache_keys
from exai.cache.redis.address import parse_address
from exai.cache.redis.batching import MOST_BYTES, MOST_CALLS, ScriptBatcher
from exai.cache.redis.client import RedisClient
from exai.cache.redis.faults import CacheLost, CacheRefused
from exai.cache.redis.scripts import Script
from exai.cache.redis.topology import open_topology
from exai.models import LOCAL_OWNER, Commit, ContinuationId, ConversationKey
from tests.integration.cache.conftest import OpenCache
from tests.integration.cache.steps import apply, expect_current, fill, miss
from tests.integration.cache.stored import Stored
from tests.support.counters import Counters
from tests.support.redis_proxy import RedisProxy
from tests.support.valkey import Valkey
from tests.support.waiting import WAIT_LIMIT_S, wait_until


@pytest.fixture
async def cache(cache_at: OpenCache, valkey: Valkey) -> ConversationCache:
    return await cache_at(valkey.url)


def conversations(number: int) -> list[Stored]:
    return [Stored(name=ContinuationId(f"thread {each}")) for each in range(number)]


def key_of(stored: Stored) -> str:
    return cache_keys(ConversationKey(LOCAL_OWNER, stored.name), 1).entry


async def fill_all(cache: ConversationCache, each: list[Stored]) -> None:
    for stored in each:
        await fill(cache, stored)


async def append_all(cache: ConversationCache, each: list[Stored], text: str = "x") -> list[bool]:
    return list(await asyncio.gather(*(apply(cache, stored, stored.append(text)) for stored in each)))


def commands(recorder: Counters) -> float:
    return sum(recorder["cache_calls_total", "apply", outcome] for outcome in ("ok", "refused", "down"))


async def test_all_changes_are_applied_in_one_command(cache: ConversationCache, recorder: Counters) -> None:
    each = conversations(MOST_CALLS)
    await fill_all(cache, each)
    assert await append_all(cache, each) == [True] * len(each)
    assert commands(recorder) == 1
    assert recorder["cache_applies_total", "appended"] == len(each)
    for stored in each:
        await expect_current(cache, stored)


async def test_single_change_waits_for_no_other(cache: ConversationCache, recorder: Counters) -> None:
    each = conversations(3)
    await fill_all(cache, each)
    for stored in each:
        assert await apply(cache, stored, stored.append("x"))
    assert commands(recorder) == len(each)


async def test_each_has_an_answer_of_its_own(cache: ConversationCache, recorder: Counters) -> None:
    """What becomes of one entry depends on that entry and on its own change."""
    appended, absent, gap, current, edited = each = conversations(5)
    await fill_all(cache, [appended, gap, current, edited])
    gap.append("never told")
    edited.edit("other words")
    await asyncio.gather(
        apply(cache, appended, appended.append("x")),
        apply(cache, absent, absent.append("x")),
        apply(cache, gap, gap.append("x")),
        apply(cache, current, (), base_revision=0),
        apply(cache, edited, None),
    )
    assert commands(recorder) == 1
    results = {name: recorder["cache_applies_total", name] for name in ("appended", "absent", "removed", "current")}
    assert results == {"appended": 1, "absent": 1, "removed": 2, "current": 1}
    await expect_current(cache, appended)
    for stored in each:
        found, _ = await cache.read_through(stored.key, stored.load)
        assert found.messages == tuple(stored.messages)


async def test_every_lease_is_ended(cache: ConversationCache) -> None:
    """A page that was read before the change is not stored after it."""
    each = conversations(4)
    missed = [(stored, await miss(cache, stored), stored.page()) for stored in each]
    await append_all(cache, each)
    for stored, found, page in missed:
        assert not await cache.fill(stored.key, found, page)


async def test_key_of_another_type_fails_one_change_only(
    cache: ConversationCache, recorder: Counters, valkey: Valkey
) -> None:
    """The server refuses one command; the others are applied, and this process rejects the old entry."""
    each = conversations(5)
    await fill_all(cache, each)
    odd = each[2]
    valkey.do("SET", key_of(odd), "not a hash")
    told = await append_all(cache, each)
    assert told == [True, True, False, True, True]
    assert commands(recorder) == 1 + len(each)
    for stored in (*each[:2], *each[3:]):
        await expect_current(cache, stored)
    found, source = await cache.read_through(odd.key, odd.load)
    assert (found.conversation.revision, source) == (odd.revision, "database")


async def test_answers_and_errors_are_distinguished(valkey: Valkey, recorder: Counters) -> None:
    """An error among the answers is that of one call; too few answers are none."""
    client = RedisClient(open_topology(parse_address(valkey.url), 2.0, recorder), recorder)
    one_fails = ScriptBatcher(client, Script.of("apply", "return {1, redis.error_reply('ODD this one'), 3}"))
    one, two, three = await asyncio.gather(
        *(one_fails.run(0, ("entry", "lease"), ()) for _ in range(3)), return_exceptions=True
    )
    assert (one, three) == (1, 3)
    assert isinstance(two, CacheRefused)
    assert two.reply_code == "ODD"
    too_few = ScriptBatcher(client, Script.of("apply", "return {1}"))
    found = await asyncio.gather(*(too_few.run(0, ("entry", "lease"), ()) for _ in range(2)), return_exceptions=True)
    assert [type(each) for each in found] == [CacheLost] * 2
    await client.close()


async def test_changes_of_one_conversation_may_go_together(cache: ConversationCache, recorder: Counters) -> None:
    """In their order nothing is lost, and in another one the entry is removed."""
    forwards, backwards = each = conversations(2)
    await fill_all(cache, each)
    for stored in each:
        changes = [(stored.append(text), stored.revision, stored.conversation()) for text in ("x", "y")]
        ordered = changes if stored is forwards else changes[::-1]
        before = commands(recorder)
        await asyncio.gather(
            *(
                cache.apply(Commit(conversation, revision - 1, revision, stored.server_epoch, delta))
                for delta, revision, conversation in ordered
            )
        )  # fmt: skip
        assert commands(recorder) == before + 1
    await expect_current(cache, forwards)
    found, source = await cache.read_through(backwards.key, backwards.load)
    assert (found.conversation.revision, source) == (backwards.revision, "database")


@pytest.mark.parametrize("sent", [False, True])
async def test_cancelled_caller_does_not_affect_the_batch(cache_at: OpenCache, valkey: Valkey, sent: bool) -> None:
    """Cancelled before the command is sent, it is left out; afterwards its outcome is unknown."""
    async with RedisProxy(valkey.address) as proxy:
        cache = await cache_at(proxy.url, timeout_s=60.0)
        each = conversations(4)
        await fill_all(cache, each)
        await append_all(cache, each)
        proxy.reset_counters()
        proxy.mode = "stall_down" if sent else "pass"
        tasks = [asyncio.create_task(apply(cache, stored, stored.append("x"))) for stored in each]
        await asyncio.sleep(0)
        if sent:
            await wait_until(lambda: len(proxy.commands) == 1)
        tasks[1].cancel()
        proxy.mode = "pass"
        told = await asyncio.gather(*tasks, return_exceptions=True)
        assert [told[0], *told[2:]] == [True] * 3
        assert isinstance(told[1], asyncio.CancelledError)
        ((_, _, keys, *_),) = proxy.commands
        assert int(keys) == 2 * (len(each) if sent else len(each) - 1)
        for stored in (each[0], *each[2:]):
            await expect_current(cache, stored)
        found, _ = await cache.read_through(ConversationKey(each[1].owner, each[1].name), each[1].load)
        assert found.conversation.revision == each[1].revision


async def test_lost_command_is_noted_for_each(cache_at: OpenCache, valkey: Valkey, recorder: Counters) -> None:
    """The outcome is unknown: this process rejects older entries, and one failure is counted."""
    async with RedisProxy(valkey.address) as proxy:
        cache = await cache_at(proxy.url, timeout_s=0.2)
        each = conversations(4)
        await fill_all(cache, each)
        proxy.mode = "stall_down"
        assert await append_all(cache, each) == [False] * len(each)
        assert commands(recorder) == 1
        assert recorder["breaker_calls_total", "redis", "failure"] == 1
        proxy.mode = "pass"
        for stored in each:
            found, _ = await cache.read_through(stored.key, stored.load)
            assert found.conversation.revision == stored.revision


async def test_many_go_in_several_commands(cache: ConversationCache, recorder: Counters) -> None:
    """The server does nothing else while it works on one."""
    each = conversations(2 * MOST_CALLS + 1)
    await append_all(cache, each)
    assert commands(recorder) == 3


async def test_large_ones_go_in_several_commands(cache: ConversationCache, recorder: Counters) -> None:
    each = conversations(6)
    await append_all(cache, each, "x" * (MOST_BYTES // 3))
    assert commands(recorder) == 3
    await append_all(cache, each, "x" * (2 * MOST_BYTES))
    assert commands(recorder) == 3 + len(each)


@pytest.mark.parametrize("turns", range(2, 6))
async def test_closing_at_any_time_ends_every_wait(cache: ConversationCache, turns: int, recorder: Counters) -> None:
    """Also before the queue was read or its task has run; nothing is sent afterwards."""
    assert cache._applies is not None
    telling = asyncio.create_task(append_all(cache, conversations(3)))
    for _ in range(turns):
        await asyncio.sleep(0)
    await cache._applies.close()
    assert cache._applies.in_flight == 0
    async with asyncio.timeout(WAIT_LIMIT_S):
        assert await telling == [False] * 3
    assert commands(recorder) == 0


async def test_closing_ends_every_waiting_caller(cache_at: OpenCache, valkey: Valkey) -> None:
    async with RedisProxy(valkey.address) as proxy:
        cache = await cache_at(proxy.url, timeout_s=60.0)
        each = conversations(3)
        await fill_all(cache, each)
        proxy.mode = "stall"
        telling = asyncio.create_task(append_all(cache, each))
        await wait_until(lambda: bool(cache._applies and cache._applies.in_flight))
        async with asyncio.timeout(WAIT_LIMIT_S):
            await cache.close()
        assert await telling == [False] * len(each)
