"""The reconciliation: how it begins, advances, loses and withholds the watermark, and survives every fault."""

from __future__ import annotations

import asyncio

import pytest

from exai.cache.conversations import open_cache
from exai.cache.entry import cache_keys
from exai.cache.reconciliation import ChangedRevisions
from exai.cache.records import Miss
from exai.models import LOCAL_OWNER, ContinuationId, ConversationKey, Owner
from exai.settings.load import CacheSettings
from tests.integration.cache.conftest import OpenCache
from tests.integration.cache.steps import age, expect_current, fill, hit, miss
from tests.integration.cache.stored import NAME, Stored
from tests.support.counters import Counters
from tests.support.valkey import Valkey
from tests.support.waiting import WAIT_LIMIT_S, wait_until

KEYS = cache_keys(ConversationKey(LOCAL_OWNER, NAME), 1)


class TestPasses:
    async def test_licence_begins_lapses_and_is_renewed(
        self, cache_at: OpenCache, stored: Stored, valkey: Valkey
    ) -> None:
        """NO LICENCE -> LICENSED -> LAPSED -> LICENSED, of the same generation all along."""
        changes = ScriptedChanges()
        cache = await cache_at(valkey.url, changes=changes, reconcile_interval_s=0.01)
        await changes.made(2)
        await fill(cache, stored)
        generation = valkey.do("HGET", KEYS.watermark, "gen")
        age(valkey, KEYS.entry, 3_600)
        changes.hold.clear()
        await changes.held.wait()
        age(valkey, KEYS.watermark, 3_600)
        assert isinstance(await cache.read(stored.key), Miss)
        valkey.do("DEL", KEYS.lease)
        changes.hold.set()
        # The reconciliation that was held finds another watermark than the one it began with, and does nothing.
        await changes.made(3)
        await hit(cache, stored)
        assert valkey.do("HGET", KEYS.watermark, "gen") == generation

    async def test_reconciliation_removes_entries_that_lack_a_change(
        self, cache_at: OpenCache, stored: Stored, valkey: Valkey, recorder: Counters
    ) -> None:
        """A writer that died between its commit and Redis."""
        changes = ScriptedChanges()
        cache = await cache_at(valkey.url, changes=changes, reconcile_interval_s=0.01)
        await changes.made(2)
        await fill(cache, stored)
        stored.append("never told")
        changes.rows = [(stored.owner, stored.name, stored.revision)]
        await changes.made(2)
        changes.rows = []
        await changes.made(2)
        await fill(cache, stored)
        await expect_current(cache, stored)
        assert recorder["cache_repaired_total"] == 1

    async def test_lost_watermark_begins_a_new_generation(
        self, cache_at: OpenCache, stored: Stored, valkey: Valkey
    ) -> None:
        """The entries of the old generation are not covered any more."""
        changes = ScriptedChanges()
        cache = await cache_at(valkey.url, changes=changes, reconcile_interval_s=0.01)
        await changes.made(2)
        await fill(cache, stored)
        generation = valkey.do("HGET", KEYS.watermark, "gen")
        valkey.do("DEL", KEYS.watermark)
        age(valkey, KEYS.entry, 3_600)
        await changes.made(2)
        assert valkey.do("HGET", KEYS.watermark, "gen") != generation
        await miss(cache, stored)

    async def test_restarted_database_begins_a_new_generation(
        self, cache_at: OpenCache, stored: Stored, valkey: Valkey
    ) -> None:
        """It may have come back from a copy that lacks the last commits."""
        changes = ScriptedChanges()
        cache = await cache_at(valkey.url, changes=changes, reconcile_interval_s=0.01)
        await changes.made(2)
        await fill(cache, stored)
        changes.server_epoch = "epoch-2"
        await changes.made(2)
        age(valkey, KEYS.entry, 3_600)
        await miss(cache, stored)

    async def test_watermark_is_renewed_at_once_after_the_clock_was_set_back(
        self, cache_at: OpenCache, stored: Stored, valkey: Valkey, recorder: Counters
    ) -> None:
        """Its time is in the future then; the next reconciliation removes what changed meanwhile."""
        changes = ScriptedChanges()
        cache = await cache_at(valkey.url, changes=changes, reconcile_interval_s=0.01)
        await changes.made(2)
        await fill(cache, stored)
        changes.hold.clear()
        await changes.held.wait()
        age(valkey, KEYS.watermark, -3_600)
        age(valkey, KEYS.entry, -3_600)
        stored.append("never told")
        changes.rows = [(stored.owner, stored.name, stored.revision)]
        changes.hold.set()
        await changes.made(3)
        assert int(valkey.do("HGET", KEYS.watermark, "asof")) < (int(valkey.do("TIME")[0]) + 1) * 1_000_000
        assert recorder["cache_repaired_total"] == 1

    async def test_entry_dated_in_the_future_is_not_served(
        self, cache_at: OpenCache, stored: Stored, valkey: Valkey
    ) -> None:
        """The clock was set back, so the age is unknown; it is not served as a stale answer either."""
        cache = await cache_at(valkey.url)
        await fill(cache, stored)
        age(valkey, KEYS.entry, -3_600)
        assert await cache.read_uncovered(stored.key) is None
        await miss(cache, stored)

    async def test_cursor_of_the_licence_is_where_the_next_pass_starts(
        self, cache_at: OpenCache, valkey: Valkey
    ) -> None:
        """Invariant 7: it is kept in Redis, and None without a watermark."""
        changes = ScriptedChanges()
        await cache_at(valkey.url, changes=changes, reconcile_interval_s=0.01)
        await changes.made(2)
        changes.xmin = "250"
        await changes.made(3)
        assert (changes.asked[0], changes.asked[-1]) == (None, "250")

    async def test_more_changes_than_a_reconciliation_enforces_end_the_generation(
        self, cache_at: OpenCache, stored: Stored, valkey: Valkey, recorder: Counters
    ) -> None:
        """Overload: the watermark is removed, and entries are served until their own bound."""
        changes = ScriptedChanges()
        cache = await cache_at(valkey.url, changes=changes, reconcile_interval_s=0.01)
        await changes.made(2)
        await fill(cache, stored)
        age(valkey, KEYS.entry, 3_600)
        await hit(cache, stored)
        changes.overflow = True
        await changes.made(2)
        await miss(cache, stored)
        assert recorder["cache_reconciliations_total", "overflow"] >= 1

    async def test_reconciliation_survives_database_errors_and_counts_them(
        self, cache_at: OpenCache, stored: Stored, valkey: Valkey, recorder: Counters
    ) -> None:
        """If the task ended silently, all entries would expire unnoticed."""
        changes = ScriptedChanges()
        cache = await cache_at(valkey.url, changes=changes, reconcile_interval_s=0.01)
        await changes.made(2)
        assert (await cache.status()).state == "ok"
        changes.error = ZeroDivisionError("a defect of our own")
        await changes.made(2)
        assert "a defect" in str((await cache.status()).problem)
        changes.error = None
        await changes.made(2)
        assert (await cache.status()).problem is None
        assert recorder["cache_reconciliations_total", "failed"] >= 1

    async def test_fresh_watermark_is_not_renewed_by_another_daemon(
        self, cache_at: OpenCache, valkey: Valkey, recorder: Counters
    ) -> None:
        """Any number of daemons make about one database query per interval."""
        changes = ScriptedChanges()
        await cache_at(valkey.url, changes=changes, reconcile_interval_s=30)
        await wait_until(lambda: recorder["cache_reconciliations_total", "generation"] == 1)
        others = ScriptedChanges()
        await cache_at(valkey.url, changes=others, reconcile_interval_s=30)
        await wait_until(lambda: recorder["cache_reconciliations_total", "skipped"] == 1)
        assert others.asked == []


class ScriptedChanges:
    """Stands for the database's answer to a reconciliation, which can be held up, changed, or made to fail."""

    def __init__(self) -> None:
        self.rows: list[tuple[Owner, ContinuationId, int]] = []
        self.xmin, self.server_epoch, self.overflow = "100", "epoch-1", False
        self.error: Exception | None = None
        self.asked: list[str | None] = []
        self.hold, self.held = asyncio.Event(), asyncio.Event()
        self.hold.set()
        self._begun = asyncio.Condition()

    async def __call__(self, since: str | None) -> ChangedRevisions:
        async with self._begun:
            self.asked.append(since)
            self._begun.notify_all()
        if not self.hold.is_set():
            self.held.set()
            await self.hold.wait()
        if self.error is not None:
            raise self.error
        return ChangedRevisions(self.xmin, self.server_epoch, list(self.rows), overflow=self.overflow)

    async def made(self, count: int) -> None:
        """Wait until so many reconciliations have begun from now on; all but the last have ended by then."""
        target = len(self.asked) + count
        async with asyncio.timeout(5), self._begun:
            await self._begun.wait_for(lambda: len(self.asked) >= target)


async def test_a_defect_of_the_passes_ends_the_cache(valkey: Valkey) -> None:
    """An error of a reconciliation is counted; a defect around it must not leave the watermark to expire in silence."""

    class Broken(Counters):
        def count(self, name: str, value: float = 1, /, **labels: str) -> None:
            if name == "cache_reconciliations_total":
                raise ZeroDivisionError

    async def changes(_: str | None) -> ChangedRevisions:
        return ChangedRevisions("1", "1")

    settings = CacheSettings(reconcile_interval_s=0.01)
    with pytest.raises(ZeroDivisionError):
        async with (
            asyncio.timeout(WAIT_LIMIT_S),
            open_cache(settings, valkey.url, recorder=Broken(), changes=changes),
        ):
            await asyncio.Event().wait()
