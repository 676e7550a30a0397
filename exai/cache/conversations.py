"""Cache the newest page of each conversation in Redis.

A read returns no page older than a change that was applied to Redis, or that this process knows to be committed. If
another daemon failed to apply its change, a page is stale for at most one staleness bound. The protocol is called
lease, version, watermark. Its invariants, each of which builds on those before it:

1. An entry at revision r holds exactly the newest page of the conversation at r.
2. A conversation has at most one live lease, granted before the database snapshot of the page stored under it.
3. After a change to revision r is applied, the entry is absent or at least at r, and no lease granted before is alive.
   While Redis is reachable, no read therefore returns a page older than an acknowledged change.
4. An entry's time is not later than the database snapshot it was read from.
5. A watermark of generation g, as of time t, states that every change visible to a snapshot taken after t is in every
   entry of generation g. An entry is served until one staleness bound after its own time or its watermark's,
   whichever is later.
6. A change not visible to a reconciliation's snapshot has, in the same server epoch, a transaction id not below the
   snapshot's xmin. The next reconciliation starts there and sees it, however long its commit took. A recovery may
   assign ids again that never reached the disk, so it begins a new server epoch, even if the postmaster stays the
   same. A new server epoch begins a new generation, which covers no entry stored before.
7. Watermark, entries and leases of a slot group are stored in one Redis and are lost, or rolled back, together.

A Redis error counts as a miss. A change that could not be applied is remembered in this process for one
staleness bound (`exai.cache.min_revisions`).
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import random
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, cast

import structlog

from exai.background import running
from exai.cache.answers import AnswerEntries
from exai.cache.entry import (
    MICROSECOND,
    Origin,
    cache_keys,
    decode_entry,
    encode_change,
    encode_entry,
    same_page,
)
from exai.cache.erasing import CacheErasure
from exai.cache.min_revisions import MinRevisions
from exai.cache.reconciliation import ChangesSince, Reconciler
from exai.cache.records import CacheLookup, CacheStatus, Hit, Load, Loaded, Miss, PreloadedPage, Unavailable, Wait
from exai.cache.redis.address import parse_address
from exai.cache.redis.batching import ScriptBatcher
from exai.cache.redis.client import RedisClient
from exai.cache.redis.connection import Argument
from exai.cache.redis.faults import CacheAway
from exai.cache.redis.scripts import Scripts, load_scripts
from exai.cache.redis.topology import open_topology
from exai.cache.singleflight import Flight, SingleFlight
from exai.cache.verification import Same, Verifier
from exai.encryption.codec import PLAIN, Codec
from exai.errors import CacheError
from exai.models import PAGE_MESSAGES, Commit, ConversationKey, Recorder, Source
from exai.pages import Undecodable, Unencodable
from exai.resilience import Clock, Random
from exai.settings.load import CacheSettings

LEASE_MS: Final = 3_000
"""Lifetime of a cache lease: the time other readers wait for a holder that died. A slower read is not stored."""

WAITS_S: Final = (0.01, 0.02, 0.04)
"""Pauses between reads of an entry that another process is filling; after the last one the database is read."""

UNCOVERED_MAX_AGE_S: Final = 600.0
ANY_REVISION: Final = 0
NO_REVISION: Final = 2**53 - 1
"""Greater than any revision: the largest integer that Lua, whose numbers are doubles, compares exactly."""

APPLIED: Final = {1: "appended", 2: "stored", 3: "current", 4: "absent", 5: "removed"}

log = structlog.get_logger(__name__)


class ConversationCache:
    """The cache of conversations, usable in every state of Redis. Created by `open_cache`.

    Only `read_through` raises: the errors of `load`, and `DeadlineExceeded`.
    """

    def __init__(
        self,
        client: RedisClient | None,
        reconciler: Reconciler | None,
        settings: CacheSettings,
        scripts: Scripts,
        recorder: Recorder,
        *,
        codec: Codec = PLAIN,
        rand: Random = random.random,
        clock: Clock = time.monotonic,
    ) -> None:
        self._codec = codec
        self._client, self._reconciler, self._settings = client, reconciler, settings
        self._applies = ScriptBatcher(client, scripts.apply) if client is not None else None
        self._scripts, self._recorder, self._rand = scripts, recorder, rand
        self._min_revisions: MinRevisions[ConversationKey] = MinRevisions(settings.max_staleness_s, clock=clock)
        self._flights: SingleFlight[ConversationKey, Loaded] = SingleFlight()
        self._long_flights: SingleFlight[ConversationKey, Loaded] = SingleFlight()
        self._verifier = Verifier(self.read, self.release, settings, recorder, rand=rand)
        self._token_stem = secrets.token_hex(8)
        self._tokens = itertools.count(1)
        self._max_staleness_us = round(settings.max_staleness_s * MICROSECOND)
        self._entry_bytes = settings.entry_max_bytes
        self.answers = AnswerEntries(client, scripts, codec)
        self.erasure = CacheErasure(client)

    async def read_through(
        self,
        key: ConversationKey,
        load: Load,
        *,
        min_revision: int = ANY_REVISION,
        is_long: bool = False,
        is_same: Same = same_page,
    ) -> tuple[Hit | Loaded, Source]:
        """Return the newest page from the cache, else from one `load` that concurrent callers share.

        With `is_long`, `load` reads more than the newest page, and only such callers share it. `is_same` compares a hit
        with a load. A hit costs 1 Redis round trip, a miss 2 and the load; the caller does not wait for the second one.
        Raises the errors of `load`, and `DeadlineExceeded`.
        """
        flights = self._long_flights if is_long else self._flights
        found = await self.read(key, min_revision=min_revision)
        for pause_s in WAITS_S:
            if not isinstance(found, Wait):
                break
            flight = self._flight(flights, key, found) if self._vouched(key, min_revision) else None
            if flight is not None:
                return await flight.result(), "database"
            await asyncio.sleep(pause_s * (0.5 + self._rand()))
            found = await self.read(key, min_revision=min_revision)
        match found:
            case Hit():
                self._verifier.sample(key, found, load, is_same)
                return found, "cache"
            case Miss():
                after = functools.partial(self._fill_or_release, key, found)
                return await flights.lead(key, found.token, load, after).result(), "database"
            case Wait() if self._vouched(key, min_revision):
                flight = self._flight(flights, key, found) or flights.lead(key, found.token, load)
                return await flight.result(), "database"
            case Wait() | Unavailable():
                return await flights.later(key, load), "database"

    async def read(self, key: ConversationKey, *, min_revision: int = ANY_REVISION) -> CacheLookup:
        """Read the newest page, at `min_revision` or later: 1 Redis round trip.

        A `Miss` holds the conversation's lease, which the caller should use or release.
        """
        minimum = self._min_revisions.minimum(key)
        if self._client is None:
            found: CacheLookup = Unavailable("off")
        elif minimum is None:
            found = Unavailable("bypassed")
        else:
            found = await self._read(self._client, key, max(minimum, min_revision))
        self._recorder.count("cache_reads_total", result=type(found).__name__.lower())
        return found

    async def fill(self, key: ConversationKey, miss: Miss, loaded: Loaded) -> bool:
        """Store a page read under a lease: 1 Redis round trip. Return whether it was stored; False is no error."""
        fields = self._fields(loaded, miss)
        if self._client is None or fields is None:
            await self.release(key, miss)
            self._recorder.count("cache_fills_total", result="unfit")
            return False
        where = cache_keys(key, self._client.groups)
        args = (miss.token, self._ttl_ms(), *fields)
        try:
            stored = await self._client.run(self._scripts.fill, where.group, (where.entry, where.lease), args) == 1
        except CacheError:
            self._recorder.count("cache_fills_total", result="failed")
            return False
        self._recorder.count("cache_fills_total", result="stored" if stored else "refused")
        return stored

    async def release(self, key: ConversationKey, miss: Miss) -> None:
        """Release a lease without storing a page: 1 Redis round trip."""
        if self._client is None:
            return
        where = cache_keys(key, self._client.groups)
        # On failure the lease expires after `LEASE_MS`; until then other readers only wait a little longer.
        with suppress(CacheError):
            await self._client.run(self._scripts.release, where.group, (where.lease,), (miss.token,))

    async def apply(self, commit: Commit, *, preloaded: PreloadedPage | None = None) -> bool:
        """Apply a committed change to Redis before it is acknowledged: 1 Redis round trip, shared by concurrent calls.

        An older entry is removed unless the change added messages to it. Returns whether Redis was updated; if not,
        other processes may read the older page for up to one staleness bound, but not this one. Cancelling is safe.
        """
        if self._client is None or self._applies is None:
            return True
        where = cache_keys(commit.key, self._client.groups)
        args = self._change(commit, preloaded)
        is_applied = False
        try:
            reply = await self._applies.run(where.group, (where.entry, where.lease), args)
            is_applied = True
            self._recorder.count("cache_applies_total", result=APPLIED.get(cast("int", reply), "unknown"))
        except CacheError:
            self._recorder.count("cache_applies_total", result="failed")
        finally:
            # In `finally`, because a cancelled call may or may not have reached Redis.
            if not is_applied:
                self._min_revisions.note(commit.key, commit.revision)
        return is_applied

    async def read_uncovered(self, key: ConversationKey, *, max_age_s: float = UNCOVERED_MAX_AGE_S) -> Hit | None:
        """Return an entry regardless of its watermark, for an answer marked as stale; 1 Redis round trip.

        A write must not be based on it. Returns None without an entry, or if it is older than `max_age_s` or than a
        change that this process knows to be committed.
        """
        minimum = self._min_revisions.minimum(key)
        if self._client is None or minimum is None:
            return None
        where = cache_keys(key, self._client.groups)
        try:
            reply = await self._client.run(self._scripts.peek, where.group, (where.entry, where.watermark), ())
            hit = decode_entry(key, reply, self._codec) if isinstance(reply, list) else None
        except (CacheError, Undecodable):
            return None
        fit = hit is not None and hit.age_s <= max_age_s and hit.revision >= minimum
        return hit if fit else None

    async def status(self) -> CacheStatus:
        """Return the state of the cache, from a read of the server's clock: 1 Redis round trip. Never raises."""
        if self._client is None or self._reconciler is None:
            return CacheStatus("off", self._settings.max_staleness_s)
        facts: dict[str, Any] = {
            "max_staleness_s": self._settings.max_staleness_s,
            "watermark_age_s": self._reconciler.age_s,
        }
        try:
            clock = await self._client.clock()
            server = await self._client.version()
        except CacheError as error:
            is_late = isinstance(error, CacheAway) and error.is_late
            return CacheStatus("down", breaker=self._client.breaker_state, problem=str(error), is_late=is_late, **facts)
        age_s = self._reconciler.age_s
        licensed = age_s is not None and age_s < self._settings.max_staleness_s
        return CacheStatus(
            "ok" if licensed else "unreconciled",
            breaker=self._client.breaker_state,
            latency_s=clock.latency_s,
            clock_ahead_s=clock.ahead_s,
            server=server,
            problem=self._reconciler.problem,
            **facts,
        )

    async def memory_bytes(self) -> int | None:
        """Return the memory that the server uses, None if it is not known. Never raises."""
        try:
            return None if self._client is None else await self._client.memory_bytes()
        except CacheError:
            return None

    async def wait_settled(self) -> None:
        """Wait until the fills begun by `read_through` have ended."""
        for flights in (self._flights, self._long_flights):
            await flights.wait_settled()

    async def close(self) -> None:
        """Cancel the reads in flight; `open_cache` closes the connections."""
        await self._verifier.close()
        for flights in (self._flights, self._long_flights):
            await flights.close()
        if self._applies is not None:
            await self._applies.close()

    async def _read(self, client: RedisClient, key: ConversationKey, least: int) -> CacheLookup:
        where = cache_keys(key, client.groups)
        keys = (where.entry, where.lease, where.watermark)
        token = f"{self._token_stem}{next(self._tokens)}".encode()
        try:
            reply = await client.run(
                self._scripts.read, where.group, keys, (token, LEASE_MS, self._max_staleness_us, least)
            )
        except CacheError:
            return Unavailable("down")
        match reply:
            case [1, *entry]:
                try:
                    return decode_entry(key, entry, self._codec)
                except Undecodable:
                    self._recorder.count("cache_undecodable_total")
                # Demanding `NO_REVISION` treats the entry as too old: the reply is a miss or a wait, never this entry
                # again, so the recursion ends, and the fill replaces the entry.
                return await self._read(client, key, NO_REVISION)
            case [2, bytes() as generation, int() as now_us]:
                return Miss(token, generation, now_us)
            case [3, bytes() as holder]:
                return Wait(holder)
            case _:
                return Unavailable("down")

    def _vouched(self, key: ConversationKey, min_revision: int) -> bool:
        """Return whether a page read under a live lease is recent enough for this caller.

        A live lease proves only that the page contains the changes applied to Redis. It proves nothing about a floor,
        which is a change that could not be applied, nor about a revision that the caller demands.
        """
        return min_revision == ANY_REVISION and self._min_revisions.minimum(key) == ANY_REVISION

    def _flight(
        self, flights: SingleFlight[ConversationKey, Loaded], key: ConversationKey, found: Wait
    ) -> Flight[Loaded] | None:
        """Return this process's read under the lease just seen alive, None if it began more than one bound ago."""
        flight = flights.find(key, found.token)
        young = (
            flight is not None and asyncio.get_running_loop().time() - flight.started < self._settings.max_staleness_s
        )
        return flight if young else None

    async def _fill_or_release(self, key: ConversationKey, miss: Miss, loaded: Loaded | None) -> None:
        """Store the page of a read, or release its lease if the read failed, so that other readers do not wait."""
        await (self.release(key, miss) if loaded is None else self.fill(key, miss, loaded))

    def _change(self, commit: Commit, preloaded: PreloadedPage | None) -> tuple[Argument, ...]:
        """Return the arguments of APPLY; a change that cannot be encoded is sent without its messages."""
        conversation, added = commit.conversation, commit.added
        header, page, count = b"", b"", -1
        token: bytes = b""
        whole: tuple[Argument, ...] | None = None
        if conversation.revision != commit.revision:
            # The answer to a repeated request carries the conversation's current header, which is newer than the
            # change. Header and messages do not match, so the change must not be stored as an addition.
            added, preloaded = None, None
        if added is not None:
            try:
                header, page, count = *encode_change(conversation, added, self._codec), len(added)
            except Unencodable:
                self._recorder.count("cache_unencodable_total")
        if preloaded is not None:
            loaded = Loaded(conversation, preloaded.messages, preloaded.complete, commit.server_epoch)
            whole = self._fields(loaded, preloaded.miss)
            token = preloaded.miss.token if whole is not None else b""
        identity = (commit.base_revision, commit.revision, commit.server_epoch, conversation.id)
        limits = (self._ttl_ms(), PAGE_MESSAGES, self._entry_bytes)
        return (*identity, *limits, count, header, page, token, *(whole or ()))

    def _fields(self, loaded: Loaded, miss: Miss) -> tuple[Argument, ...] | None:
        # A page cut by a byte budget is not the newest page, as which the entry would be served for hours.
        if not loaded.is_whole:
            return None
        origin = Origin(miss.generation, miss.asof_us, loaded.server_epoch)
        return encode_entry(
            loaded.conversation,
            loaded.messages,
            loaded.complete,
            origin,
            self._entry_bytes,
            page=loaded.page,
            codec=self._codec,
        )

    def _ttl_ms(self) -> int:
        # Jitter, so that entries stored at the same time do not expire at the same time.
        return round(self._settings.idle_hours * 3_600_000 * (0.9 + 0.1 * self._rand()))


@asynccontextmanager
async def open_cache(
    settings: CacheSettings, url: str | None, *, recorder: Recorder, changes: ChangesSince, codec: Codec = PLAIN
) -> AsyncIterator[ConversationCache]:
    """Open the cache at `url` and reconcile it in the background; without a URL every read is `Unavailable("off")`.

    `changes` queries the primary database for changed conversations, about every `reconcile_interval_s` seconds. Redis
    need not be reachable yet. Raises `ConfigError` for an invalid address.
    """
    scripts = load_scripts()
    if url is None:
        yield ConversationCache(None, None, settings, scripts, recorder, codec=codec)
        return
    client = RedisClient(open_topology(parse_address(url), settings.timeout_s, recorder), recorder)
    reconciler = Reconciler(client, scripts, changes, settings, recorder)
    cache = ConversationCache(client, reconciler, settings, scripts, recorder, codec=codec)
    try:
        async with running("cache-reconciliation", reconciler.run()):
            yield cache
    finally:
        await cache.close()
        await client.close()
