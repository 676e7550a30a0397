"""Answers in Redis: found by their owner only, bounded in number, bytes and age, in every state of the server."""

from __future__ import annotations

import pytest

from exai.cache.answers import MAX_ANSWERS, AnswerEntries, AnswerLimits
from exai.models import LOCAL_OWNER, Owner
from tests.integration.cache.conftest import OpenCache
from tests.support.valkey import Valkey

LIMITS = AnswerLimits(ttl_s=60.0, owner_max_bytes=1_000)
OTHER = Owner("other")


@pytest.fixture
async def entries(cache_at: OpenCache, valkey: Valkey) -> AnswerEntries:
    return (await cache_at(valkey.url)).answers


async def found(entries: AnswerEntries, *names: str) -> list[str]:
    """Those of the names that have an answer."""
    return [name for name in names if await entries.find(LOCAL_OWNER, name, LIMITS) is not None]


async def test_the_oldest_answers_make_room_for_new_ones(entries: AnswerEntries) -> None:
    """By bytes; a longer answer of the same name counts once, and as new."""
    names = [f"name {number}" for number in range(12)]
    for name in names:
        assert await entries.keep(LOCAL_OWNER, name, b"x" * 100, LIMITS)
    assert await found(entries, *names) == names[2:]
    assert await entries.keep(LOCAL_OWNER, "name 5", b"y" * 600, LIMITS)
    assert await found(entries, *names) == ["name 5", *names[8:]]
    assert await entries.find(LOCAL_OWNER, "name 5", LIMITS) == b"y" * 600
    assert await entries.find(OTHER, "name 5", LIMITS) is None
    assert await entries.keep(LOCAL_OWNER, "larger than all", b"z" * 2_000, LIMITS)
    assert await found(entries, *names, "larger than all") == []


async def test_the_number_of_answers_is_limited(entries: AnswerEntries, valkey: Valkey) -> None:
    """Of short ones the bytes would allow many."""
    roomy = AnswerLimits(60.0, 1_000_000)
    for number in range(MAX_ANSWERS + 10):
        await entries.keep(LOCAL_OWNER, f"{number}", b"x", roomy)
    (times,) = valkey.do("KEYS", "exai:answers:*:t")
    assert valkey.do("ZCARD", times) == MAX_ANSWERS
    assert await found(entries, "9", "10", f"{MAX_ANSWERS + 9}") == ["10", f"{MAX_ANSWERS + 9}"]


async def test_an_expired_answer_is_neither_found_nor_counted(entries: AnswerEntries, valkey: Valkey) -> None:
    """By the clock of Redis; the keys of an idle owner expire whole."""
    short = AnswerLimits(0.001, 1_000)
    await entries.keep(LOCAL_OWNER, "old", b"x" * 900, LIMITS)
    assert await entries.find(LOCAL_OWNER, "old", LIMITS) == b"x" * 900
    while await entries.find(LOCAL_OWNER, "old", short) is not None:
        pass
    assert await found(entries, "old") == ["old"]
    await entries.keep(LOCAL_OWNER, "new", b"y" * 900, AnswerLimits(0.001, 1_000))
    assert await found(entries, "old") == []
    for key in valkey.do("KEYS", "exai:answers:*"):
        assert valkey.do("PTTL", key) <= 1


@pytest.mark.parametrize("part", ["a", "t"])
async def test_a_key_that_the_server_evicted_takes_the_other_one_with_it(
    entries: AnswerEntries, valkey: Valkey, part: str
) -> None:
    """Otherwise answers without a time would stay for ever, or their bytes count for ever."""
    await entries.keep(LOCAL_OWNER, "lost", b"x" * 900, LIMITS)
    (key,) = valkey.do("KEYS", f"exai:answers:*:{part}")
    valkey.do("DEL", key)
    assert await found(entries, "lost") == []
    assert await entries.keep(LOCAL_OWNER, "next", b"y" * 900, LIMITS)
    assert await found(entries, "lost", "next") == ["next"]
    (answers,) = valkey.do("KEYS", "exai:answers:*:a")
    assert valkey.do("HLEN", answers) == 2


async def test_a_full_server_keeps_nothing_and_nothing_fails(entries: AnswerEntries, valkey: Valkey) -> None:
    """Whether the answer was kept is all that the caller learns."""
    valkey.do("CONFIG", "SET", "maxmemory", "1")
    assert not await entries.keep(LOCAL_OWNER, "name", b"x", LIMITS)
    valkey.do("CONFIG", "SET", "maxmemory", "0")
    assert await found(entries, "name") == []


async def test_names_of_owners_do_not_touch(entries: AnswerEntries) -> None:
    """Neither by the separators of keys, nor by parts of one another."""
    owners = [Owner(each) for each in ("a", "a:a", "a:t", "a%3At", "{g0}", "*", "ä", "\ud800")]
    for number, owner in enumerate(owners):
        await entries.keep(owner, "name", str(number).encode(), LIMITS)
    kept = [await entries.find(owner, "name", LIMITS) for owner in owners]
    assert kept == [str(number).encode() for number in range(len(owners))]
