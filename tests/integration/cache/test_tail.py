"""Messages added to a cached page are stored beside it, and are part of the newest page."""

from __future__ import annotations

import pytest

from exai.cache.conversations import ConversationCache
from exai.cache.entry import cache_keys
from exai.models import ConversationKey
from tests.integration.cache.conftest import OpenCache
from tests.integration.cache.steps import apply, expect_current, fill
from tests.integration.cache.stored import NAME, Stored
from tests.support.valkey import Valkey

APPENDS = 40
"""With two messages of 900 bytes each: several times more than stays beside a page."""


@pytest.fixture
async def cache(cache_at: OpenCache, valkey: Valkey) -> ConversationCache:
    return await cache_at(valkey.url)


@pytest.mark.parametrize("size", [0, 1, 49, 50, 60])
async def test_page_is_current_after_each_of_many_appends(cache: ConversationCache, size: int) -> None:
    """Invariant 1 of the cache: an entry at a revision holds exactly the newest page of the conversation at it."""
    stored = Stored(size=size)
    await fill(cache, stored)
    for number in range(APPENDS):
        delta = stored.append(f"{number} " + "q" * 900, f"{number} " + "a" * 900)
        assert await apply(cache, stored, delta)
        await expect_current(cache, stored)


async def test_change_that_adds_nothing_keeps_what_was_added_before(cache: ConversationCache) -> None:
    """A new title, say."""
    stored = Stored(size=2)
    await fill(cache, stored)
    await apply(cache, stored, stored.append("one"))
    stored.revision += 1
    await apply(cache, stored, ())
    await expect_current(cache, stored)


async def test_small_append_writes_what_it_brings(cache: ConversationCache, valkey: Valkey) -> None:
    """The append-only file grows by the messages and not by the page; this is also most of the server's time."""
    stored, entry = Stored(size=50), cache_keys(ConversationKey(Stored().owner, NAME), 1).entry
    await fill(cache, stored)
    page = valkey.do("HGET", entry, "page")
    await apply(cache, stored, stored.append("one more"))
    assert valkey.do("HGET", entry, "page") == page
    assert "one more" in str(valkey.do("HGET", entry, "tail"))
    await expect_current(cache, stored)


async def test_entry_stays_within_its_limit(cache_at: OpenCache, valkey: Valkey) -> None:
    """Page and tail together are at most as large as an entry may be."""
    cache, stored = await cache_at(valkey.url, entry_max_bytes=4_096), Stored(size=0)
    entry = cache_keys(stored.key, 1).entry
    await fill(cache, stored)
    for _ in range(APPENDS):
        await apply(cache, stored, stored.append("x" * 700))
        size_bytes = sum(len(str(valkey.do("HGET", entry, field))) for field in ("header", "page", "tail"))
        assert size_bytes <= 4_096 + len("b''" * 3)
