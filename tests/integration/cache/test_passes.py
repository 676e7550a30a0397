"""The licence: how passes begin, renew, lose and withhold it, and that nothing ends them."""

from __future__ import annotations

import asyncio

import pytest

from exai.cache.conversations import open_cache
from exai.cache.entry import place
from exai.cache.reconciliation import ChangedRevisions
from exai.cache.records import Miss
from exai.models import LOCAL_OWNER, ContinuationId, Owner
from exai.settings.load import CacheSettings
from tests.integration.cache.conftest import OpenCache
from tests.integration.cache.steps import age, expect_current, fill, hit, miss
from tests.integration.cache.stored import NAME, Stored
from tests.support.counters import Counters
from tests.support.valkey import Valkey
from tests.support.waiting import WAIT_LIMIT_S, wait_until

KEYS = place(LOCAL_OWNER, NAME, 1)


class TestPasses:
    async def test_licence_begins_lapses_and_is_renewed(
        self, cache_at: OpenCache, stored: Stored, valkey: Valkey
    ) -> None:
        """NO LICENCE -> LICENSED -> LAPSED -> LICENSED, of the same generation all along."""
        passes = Passes()
        cache = await cache_at(valkey.url, changes=passes, reconcile_interval_s=0.01)
        await passes.made(2)
        await fill(cache, stored)
        generation = valkey.do("HGET", KEYS.anchor, "gen")
        age(valkey, KEYS.entry, 3_600)
        passes.hold.clear()
        await passes.held.wait()
        age(valkey, KEYS.anchor, 3_600)
        assert isinstance(await cache.read(stored.owner, stored.name), Miss)
        valkey.do("DEL", KEYS.lease)
        passes.hold.set()
        # The pass that was held finds another licence than the one it began with, and does nothing.
        await passes.made(3)
        await hit(cache, stored)
        assert valkey.do("HGET", KEYS.anchor, "gen") == generation

    async def test_pass_removes_what_redis_was_never_told(
        self, cache_at: OpenCache, stored: Stored, valkey: Valkey, recorder: Counters
    ) -> None:
        """A writer that died between its commit and Redis."""
        passes = Passes()
        cache = await cache_at(valkey.url, changes=passes, reconcile_interval_s=0.01)
        await passes.made(2)
        await fill(cache, stored)
        stored.append("never told")
        passes.rows = [(stored.owner, stored.name, stored.revision)]
        await passes.made(2)
        passes.rows = []
        await passes.made(2)
        await fill(cache, stored)
        await expect_current(cache, stored)
        assert recorder["cache_repaired_total"] == 1

    async def test_lost_licence_begins_a_new_generation(
        self, cache_at: OpenCache, stored: Stored, valkey: Valkey
    ) -> None:
        """What the old one covered is covered no more."""
        passes = Passes()
        cache = await cache_at(valkey.url, changes=passes, reconcile_interval_s=0.01)
        await passes.made(2)
        await fill(cache, stored)
        generation = valkey.do("HGET", KEYS.anchor, "gen")
        valkey.do("DEL", KEYS.anchor)
        age(valkey, KEYS.entry, 3_600)
        await passes.made(2)
        assert valkey.do("HGET", KEYS.anchor, "gen") != generation
        await miss(cache, stored)

    async def test_restarted_database_begins_a_new_generation(
        self, cache_at: OpenCache, stored: Stored, valkey: Valkey
    ) -> None:
        """It may have come back from a copy that lacks the last commits."""
        passes = Passes()
        cache = await cache_at(valkey.url, changes=passes, reconcile_interval_s=0.01)
        await passes.made(2)
        await fill(cache, stored)
        passes.inc = "inc-2"
        await passes.made(2)
        age(valkey, KEYS.entry, 3_600)
        await miss(cache, stored)

    async def test_licence_is_renewed_at_once_after_the_clock_was_set_back(
        self, cache_at: OpenCache, stored: Stored, valkey: Valkey, recorder: Counters
    ) -> None:
        """It is dated in the future then, and what was changed meanwhile is removed by the very next pass."""
        passes = Passes()
        cache = await cache_at(valkey.url, changes=passes, reconcile_interval_s=0.01)
        await passes.made(2)
        await fill(cache, stored)
        passes.hold.clear()
        await passes.held.wait()
        age(valkey, KEYS.anchor, -3_600)
        age(valkey, KEYS.entry, -3_600)
        stored.append("never told")
        passes.rows = [(stored.owner, stored.name, stored.revision)]
        passes.hold.set()
        await passes.made(3)
        assert int(valkey.do("HGET", KEYS.anchor, "asof")) < (int(valkey.do("TIME")[0]) + 1) * 1_000_000
        assert recorder["cache_repaired_total"] == 1

    async def test_entry_dated_in_the_future_is_not_served(
        self, cache_at: OpenCache, stored: Stored, valkey: Valkey
    ) -> None:
        """The clock was set back, and nothing says how old it is; not even for an answer that is marked as stale."""
        cache = await cache_at(valkey.url)
        await fill(cache, stored)
        age(valkey, KEYS.entry, -3_600)
        assert await cache.read_uncovered(stored.owner, stored.name) is None
        await miss(cache, stored)

    async def test_cursor_of_the_licence_is_where_the_next_pass_starts(
        self, cache_at: OpenCache, valkey: Valkey
    ) -> None:
        """Invariant 7: it is kept in Redis, and None without a licence."""
        passes = Passes()
        await cache_at(valkey.url, changes=passes, reconcile_interval_s=0.01)
        await passes.made(2)
        passes.xmin = "250"
        await passes.made(3)
        assert (passes.asked[0], passes.asked[-1]) == (None, "250")

    async def test_more_changes_than_a_pass_enforces_make_everything_cold(
        self, cache_at: OpenCache, stored: Stored, valkey: Valkey, recorder: Counters
    ) -> None:
        """The overload valve: the licence goes, entries serve out their own bound."""
        passes = Passes()
        cache = await cache_at(valkey.url, changes=passes, reconcile_interval_s=0.01)
        await passes.made(2)
        await fill(cache, stored)
        age(valkey, KEYS.entry, 3_600)
        await hit(cache, stored)
        passes.overflow = True
        await passes.made(2)
        await miss(cache, stored)
        assert recorder["cache_reconciliations_total", "overflow"] >= 1

    async def test_pass_survives_whatever_the_database_does_and_says_so(
        self, cache_at: OpenCache, stored: Stored, valkey: Valkey, recorder: Counters
    ) -> None:
        """A side task that ends in silence would let everything go cold unseen."""
        passes = Passes()
        cache = await cache_at(valkey.url, changes=passes, reconcile_interval_s=0.01)
        await passes.made(2)
        assert (await cache.status()).state == "ok"
        passes.error = ZeroDivisionError("a defect of our own")
        await passes.made(2)
        assert "a defect" in str((await cache.status()).problem)
        passes.error = None
        await passes.made(2)
        assert (await cache.status()).problem is None
        assert recorder["cache_reconciliations_total", "failed"] >= 1

    async def test_fresh_licence_is_left_to_whoever_renewed_it(
        self, cache_at: OpenCache, valkey: Valkey, recorder: Counters
    ) -> None:
        """However many daemons: about one database query per interval."""
        passes = Passes()
        await cache_at(valkey.url, changes=passes, reconcile_interval_s=30)
        await wait_until(lambda: recorder["cache_reconciliations_total", "generation"] == 1)
        others = Passes()
        await cache_at(valkey.url, changes=others, reconcile_interval_s=30)
        await wait_until(lambda: recorder["cache_reconciliations_total", "skipped"] == 1)
        assert others.asked == []


class Passes:
    """Stands for the database's answer to a pass, which can be held up, changed, or made to fail."""

    def __init__(self) -> None:
        self.rows: list[tuple[Owner, ContinuationId, int]] = []
        self.xmin, self.inc, self.overflow = "100", "inc-1", False
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
        return ChangedRevisions(self.xmin, self.inc, list(self.rows), overflow=self.overflow)

    async def made(self, count: int) -> None:
        """Wait until so many passes have begun from now on; all but the last have ended by then."""
        target = len(self.asked) + count
        async with asyncio.timeout(5), self._begun:
            await self._begun.wait_for(lambda: len(self.asked) >= target)


async def test_a_defect_of_the_passes_ends_the_cache(valkey: Valkey) -> None:
    """What a pass fails with is counted; a defect around it must not leave entries to lapse in silence."""

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
