"""The cache verifies itself: sampled hits are compared with the database, and its state is reported."""

from __future__ import annotations

import pytest

from exai.cache.conversations import ConversationCache
from exai.cache.reconciliation import ChangedRevisions
from exai.cache.records import CacheStatus
from exai.models import ConversationId
from tests.integration.cache.conftest import OpenCache
from tests.integration.cache.steps import apply, fill
from tests.integration.cache.stored import Stored, message
from tests.support.counters import Counters
from tests.support.valkey import Valkey
from tests.support.waiting import wait_until


async def nothing_changed(_: str | None) -> ChangedRevisions:
    """Return no changes, as if the triggers of the database were missing."""
    return ChangedRevisions("100", "epoch-1")


@pytest.fixture
async def cache(cache_at: OpenCache, valkey: Valkey, recorder: Counters, stored: Stored) -> ConversationCache:
    """Licensed, checks every hit, and has the conversation."""
    opened = await cache_at(
        valkey.url, changes=nothing_changed, max_staleness_s=1.0, reconcile_interval_s=0.05, verify_one_in=1
    )
    await wait_until(lambda: recorder["cache_reconciliations_total", "generation"] == 1)
    await fill(opened, stored)
    return opened


async def checked(cache: ConversationCache, stored: Stored, recorder: Counters) -> None:
    """A hit, and the check of it has ended."""
    before = recorder["cache_checks_total"]
    _, source = await cache.read_through(stored.key, stored.load)
    assert source == "cache"
    await wait_until(lambda: recorder["cache_checks_total"] > before)


class TestSampling:
    async def test_current_entry_is_not_stale(
        self, cache: ConversationCache, stored: Stored, recorder: Counters
    ) -> None:
        """One database read behind the caller's back."""
        loads = stored.loads
        await checked(cache, stored, recorder)
        assert (stored.loads, recorder["cache_stale_total", "old"]) == (loads + 1, 0)

    async def test_change_that_is_not_applied_is_found_stale(
        self, cache: ConversationCache, stored: Stored, recorder: Counters
    ) -> None:
        """A writer outside that moves nothing: the entry is still served after the bound."""
        stored.append("unseen")
        await checked(cache, stored, recorder)
        assert recorder["cache_stale_total", "old"] == 1

    async def test_change_that_is_applied_meanwhile_is_not_stale(
        self, cache: ConversationCache, stored: Stored, recorder: Counters
    ) -> None:
        """The hit came before it."""
        delta = stored.append("told a moment later")
        _, source = await cache.read_through(stored.key, stored.load)
        assert source == "cache"
        await apply(cache, stored, delta)
        await wait_until(lambda: recorder["cache_checks_total"] == 1)
        assert recorder["cache_stale_total", "old"] == 0

    async def test_other_words_at_the_same_revision_are_found(
        self, cache: ConversationCache, stored: Stored, recorder: Counters
    ) -> None:
        """A change that did not count itself."""
        stored.messages[-1] = message(len(stored.messages), "other words")
        await checked(cache, stored, recorder)
        assert recorder["cache_stale_total", "differs"] == 1

    async def test_entry_newer_than_the_database_is_found(
        self, cache: ConversationCache, stored: Stored, recorder: Counters
    ) -> None:
        """A database that was restored without Redis."""
        await apply(cache, stored, stored.append("lost by the restore"))
        stored.messages.pop()
        stored.revision -= 1
        await checked(cache, stored, recorder)
        assert recorder["cache_stale_total", "ahead"] == 1

    async def test_conversation_deleted_and_restored_meanwhile_is_not_stale(
        self, cache: ConversationCache, stored: Stored, recorder: Counters
    ) -> None:
        """The check saw it deleted; a bound later the restored conversation is served."""
        stored.is_gone = True
        stored.revision += 2
        _, source = await cache.read_through(stored.key, stored.load)
        assert source == "cache"
        await wait_until(lambda: stored.loads == 2)
        stored.is_gone = False
        await apply(cache, stored, None)
        await fill(cache, stored)
        await wait_until(lambda: recorder["cache_checks_total"] == 1)
        assert [recorder["cache_stale_total", reason] for reason in ("old", "ahead", "differs")] == [0, 0, 0]

    async def test_conversation_deleted_and_made_anew_under_its_name_is_not_stale(
        self, cache: ConversationCache, stored: Stored, recorder: Counters
    ) -> None:
        """It is another one, whose revisions begin again."""
        stored.append("more")
        await apply(cache, stored, None)
        await fill(cache, stored)
        _, source = await cache.read_through(stored.key, stored.load)
        assert source == "cache"
        stored.id, stored.revision = ConversationId("another"), 1
        await apply(cache, stored, None)
        await fill(cache, stored)
        await wait_until(lambda: recorder["cache_checks_total"] == 1)
        assert [recorder["cache_stale_total", reason] for reason in ("old", "ahead", "differs")] == [0, 0, 0]

    async def test_conversation_that_stays_deleted_is_found_stale(
        self, cache: ConversationCache, stored: Stored, recorder: Counters
    ) -> None:
        """The deletion was not applied to the cache, and the entry is served after the bound."""
        stored.is_gone = True
        await checked(cache, stored, recorder)
        assert recorder["cache_stale_total", "old"] == 1

    async def test_none_are_checked_when_that_is_off(
        self, cache_at: OpenCache, valkey: Valkey, stored: Stored, recorder: Counters
    ) -> None:
        """`EXAI_CACHE__VERIFY_ONE_IN=0`."""
        cache = await cache_at(valkey.url, verify_one_in=0)
        await fill(cache, stored)
        for _ in range(20):
            await cache.read_through(stored.key, stored.load)
        assert (stored.loads, recorder["cache_checks_total"]) == (1, 0)


class TestStatus:
    async def test_working_cache_shows_what_doctor_and_health_need(self, cache: ConversationCache) -> None:
        """State, latency, bound, age of the watermark, server and clock."""
        status = await cache.status()
        assert status == CacheStatus(
            state="ok",
            max_staleness_s=1.0,
            latency_s=status.latency_s,
            clock_ahead_s=status.clock_ahead_s,
            watermark_age_s=status.watermark_age_s,
            server=status.server,
        )
        assert status.server is not None
        assert status.server.split()[0] in ("Valkey", "Redis")
        assert status.latency_s is not None
        assert status.clock_ahead_s is not None
        assert abs(status.clock_ahead_s) <= status.latency_s + 1.0

    async def test_cache_without_passes_works_and_says_so(
        self, cache_at: OpenCache, valkey: Valkey, recorder: Counters
    ) -> None:
        """Entries serve one bound only: correct, and cold."""
        cache = await cache_at(valkey.url)
        await wait_until(lambda: recorder["cache_reconciliations_total", "failed"] >= 1)
        status = await cache.status()
        assert (status.state, status.problem) == ("unreconciled", "this test has no reconciliation")

    async def test_server_that_is_away_is_down_with_its_cause(self, cache_at: OpenCache, valkey: Valkey) -> None:
        """Never an exception."""
        valkey.kill()
        status = await (await cache_at(valkey.url)).status()
        assert status.state == "down"
        assert f"127.0.0.1:{valkey.port}" in str(status.problem)
