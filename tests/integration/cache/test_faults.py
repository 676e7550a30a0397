"""Faults of Redis: no errors, bounded time, never an outdated answer, and recovery.

Each test ends with the server well again and the cache in use again.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

import pytest
import redis

from exai.cache.conversations import ConversationCache
from exai.cache.entry import cache_keys
from exai.cache.records import Hit, Unavailable, Wait
from exai.models import LOCAL_OWNER, Commit, ConversationKey
from tests.integration.cache.conftest import OpenCache
from tests.integration.cache.steps import apply, expect_current, fill, hit, miss
from tests.integration.cache.stored import NAME, Stored
from tests.support.counters import Counters
from tests.support.redis_proxy import RedisProxy
from tests.support.valkey import Valkey
from tests.support.waiting import wait_until

KEYS = cache_keys(ConversationKey(LOCAL_OWNER, NAME), 1)
LIMIT_S = 0.2
NEVER_LATE_S = 30


@pytest.fixture
async def proxy(valkey: Valkey) -> AsyncIterator[RedisProxy]:
    async with RedisProxy(valkey.address) as between:
        yield between


@pytest.fixture
async def cache(cache_at: OpenCache, proxy: RedisProxy) -> ConversationCache:
    return await cache_at(proxy.url, timeout_s=LIMIT_S)


async def read_down(cache: ConversationCache, stored: Stored) -> None:
    """The read is answered by the database, and nothing is stored."""
    found, source = await cache.read_through(stored.key, stored.load)
    assert (found.conversation.revision, source) == (stored.revision, "database")


async def read_current(cache: ConversationCache, stored: Stored) -> None:
    """The read is answered, by whomever."""
    found, _ = await cache.read_through(stored.key, stored.load)
    assert found.conversation.revision == stored.revision


class TestWriterCutOff:
    """Faults 2, 3 and 4."""

    @pytest.mark.parametrize("mode", ["stall", "stall_down", "reset", "refuse"])
    async def test_own_reads_stay_fresh_and_others_are_late_for_the_bound_only(
        self, cache_at: OpenCache, valkey: Valkey, proxy: RedisProxy, stored: Stored, mode: str
    ) -> None:
        """The process remembers the minimum revision that it could not apply."""
        max_staleness_s = 1.0
        cut_off = await cache_at(
            proxy.url, timeout_s=LIMIT_S, max_staleness_s=max_staleness_s, reconcile_interval_s=0.4
        )
        other = await cache_at(valkey.url, max_staleness_s=max_staleness_s, reconcile_interval_s=0.4)
        await fill(cut_off, stored)
        await hit(cut_off, stored)
        if mode == "refuse":
            proxy.reset()
        proxy.mode = mode
        delta = stored.append("committed")
        committed_at = time.monotonic()
        told = await apply(cut_off, stored, delta)
        # Where only the replies are held the change does arrive, and only the writer does not know.
        assert not told
        proxy.mode = "pass"
        await cut_off.release(stored.key, await miss(cut_off, stored))
        await expect_late_for_at_most(max_staleness_s, committed_at, other, stored)
        await expect_current(cut_off, stored)

    async def test_cancelled_change_counts_as_not_applied(
        self, cache: ConversationCache, proxy: RedisProxy, stored: Stored
    ) -> None:
        """Whether it arrived is not known; the process must not read an older page either way."""
        await fill(cache, stored)
        proxy.mode = "stall"
        telling = asyncio.create_task(apply(cache, stored, stored.append("committed")))
        await asyncio.sleep(0.01)
        telling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await telling
        proxy.mode = "pass"
        proxy.reset()
        await read_down(cache, stored)

    async def test_commands_that_arrive_late_change_nothing(
        self, cache_at: OpenCache, valkey: Valkey, proxy: RedisProxy, stored: Stored
    ) -> None:
        """Fault 4: a fill and a change that were held up while others went on."""
        slow, other = await cache_at(proxy.url, timeout_s=NEVER_LATE_S), await cache_at(valkey.url)
        token, page = await miss(slow, stored), stored.page()
        proxy.mode = "stall"
        filling = asyncio.create_task(slow.fill(stored.key, token, page))
        late = stored.append("one")
        header = stored.conversation()
        telling = asyncio.create_task(slow.apply(Commit(header, 1, 2, stored.server_epoch, late)))
        await apply(other, stored, stored.append("two"))
        await fill(other, stored)
        proxy.mode = "pass"
        assert (await filling, await telling) == (False, True)
        await expect_current(other, stored)


class TestServerLost:
    """Faults 5, 6 and 7."""

    async def test_killed_and_empty_again_is_a_miss_and_no_error(
        self, cache_at: OpenCache, proxy: RedisProxy, valkey: Valkey, stored: Stored
    ) -> None:
        """SIGKILL, then a new process on the same port. A late reply is no miss, so none may be late here."""
        cache = await cache_at(proxy.url, timeout_s=NEVER_LATE_S)
        await fill(cache, stored)
        valkey.kill()
        await read_down(cache, stored)
        stored.append("while it was gone")
        valkey.start()
        loads = stored.loads
        await asyncio.gather(*(read_current(cache, stored) for _ in range(50)))
        assert stored.loads == loads + 1
        await cache.wait_settled()
        await expect_current(cache, stored)

    async def test_herd_without_redis_is_bounded(
        self, cache: ConversationCache, valkey: Valkey, stored: Stored
    ) -> None:
        """200 readers of one conversation are two database reads: the one that runs and the next."""
        valkey.kill()
        stored.gate = asyncio.Event()
        readers = [asyncio.create_task(read_down(cache, stored)) for _ in range(100)]
        await stored.loading.wait()
        readers += [asyncio.create_task(read_down(cache, stored)) for _ in range(100)]
        await asyncio.sleep(0)
        stored.gate.set()
        await asyncio.gather(*readers)
        assert stored.loads <= 3

    async def test_crash_that_lost_the_last_writes_is_late_for_the_bound_only(
        self, cache_at: OpenCache, valkey: Valkey, stored: Stored
    ) -> None:
        """Fault 6: lease and watermark are as old as the entries, and expire with the bound."""
        max_staleness_s = 1.0
        cache = await cache_at(valkey.url, max_staleness_s=max_staleness_s, reconcile_interval_s=0.4)
        await fill(cache, stored)
        valkey.do("SAVE")
        await apply(cache, stored, stored.append("not in the file"))
        acknowledged_at = time.monotonic()
        valkey.kill()
        valkey.start()
        await expect_late_for_at_most(max_staleness_s, acknowledged_at, cache, stored)
        await expect_current(cache, stored)

    async def test_demoted_primary_serves_hits_and_no_misses(
        self, cache: ConversationCache, valkey: Valkey, stored: Stored, recorder: Counters
    ) -> None:
        """Fault 7: READONLY is an answer; the breaker stays closed, and a promoted server is found again."""
        await fill(cache, stored)
        other = Stored(name=stored.name[:-1])
        valkey.do("REPLICAOF", "127.0.0.1", "1")
        await hit(cache, stored)
        await read_down(cache, other)
        assert not await apply(cache, stored, stored.append("one"))
        valkey.do("REPLICAOF", "NO", "ONE")
        await fill(cache, other)
        await expect_current(cache, other)
        assert recorder["breaker_calls_total", "redis", "failure"] == 0


class TestSlowServer:
    """Faults 8, 9 and 11."""

    @pytest.mark.parametrize("how", ["stall", "SIGSTOP", "CLIENT PAUSE"])
    async def test_black_hole_costs_its_limit_and_then_nothing(
        self, cache: ConversationCache, proxy: RedisProxy, valkey: Valkey, stored: Stored, how: str
    ) -> None:
        """Five limits at most before the breaker opens; no read fails."""
        await fill(cache, stored)
        match how:
            case "stall":
                proxy.mode = "stall"
            case "SIGSTOP":
                valkey.freeze()
            case _:
                valkey.do("CLIENT", "PAUSE", 3_600_000, "ALL")
        started = time.monotonic()
        for _ in range(6):
            await read_down(cache, stored)
        assert time.monotonic() - started >= 4 * LIMIT_S
        sent = proxy.up_bytes
        started = time.monotonic()
        for _ in range(200):
            await read_down(cache, stored)
        assert (proxy.up_bytes, time.monotonic() - started < LIMIT_S * 10) == (sent, True)
        assert (await cache.status()).state == "down"
        valkey.kill()

    @pytest.mark.parametrize("code", ["BUSY", "LOADING"])
    async def test_server_that_is_busy_with_itself_is_down(
        self, cache: ConversationCache, valkey: Valkey, stored: Stored, code: str
    ) -> None:
        """Every command is refused while a script runs for ever, or while the files are read."""
        await fill(cache, stored)
        with busy(valkey) if code == "BUSY" else loading(valkey):
            assert await cache.read(stored.key) == Unavailable("down")
            await read_down(cache, stored)
        await eventually_hits(cache, stored)

    async def test_server_that_forgot_the_scripts_gets_them_again(
        self, cache: ConversationCache, valkey: Valkey, proxy: RedisProxy, stored: Stored
    ) -> None:
        """NOSCRIPT costs one more round trip, once."""
        await fill(cache, stored)
        await hit(cache, stored)
        valkey.do("SCRIPT", "FLUSH")
        proxy.reset_counters()
        await hit(cache, stored)
        await hit(cache, stored)
        assert proxy.names() == ["EVALSHA", "EVAL", "EVALSHA"]

    async def test_disk_that_cannot_be_written_leaves_hits(
        self, cache: ConversationCache, valkey: Valkey, stored: Stored, recorder: Counters
    ) -> None:
        """MISCONF refuses writes only, and is an answer: the breaker stays closed."""
        await fill(cache, stored)
        other = Stored(name=stored.name[:-1])
        with failing_disk(valkey):
            await hit(cache, stored)
            await read_down(cache, other)
        await fill(cache, other)
        await expect_current(cache, other)
        assert recorder["breaker_calls_total", "redis", "failure"] == 0


class TestFullServer:
    """Fault 10."""

    async def test_no_memory_left_leaves_hits_and_makes_misses_colder(
        self, cache: ConversationCache, valkey: Valkey, stored: Stored, recorder: Counters
    ) -> None:
        """OOM is an error reply: entries are served, and changes are still enforced."""
        await fill(cache, stored)
        other = Stored(name=stored.name[:-1])
        valkey.do("CONFIG", "SET", "maxmemory-policy", "noeviction")
        valkey.do("CONFIG", "SET", "maxmemory", 1)
        await hit(cache, stored)
        await read_down(cache, other)
        assert await apply(cache, stored, stored.append("one"))
        found = await cache.read(stored.key)
        assert isinstance(found, Unavailable) or (isinstance(found, Hit) and found.revision == stored.revision)
        assert recorder["breaker_calls_total", "redis", "failure"] == 0
        valkey.do("CONFIG", "SET", "maxmemory", 0)
        valkey.do("CONFIG", "SET", "maxmemory-policy", "volatile-lru")
        await fill(cache, other)
        await expect_current(cache, other)

    async def test_evictions_never_show_an_old_page(
        self, cache: ConversationCache, valkey: Valkey, stored: Stored
    ) -> None:
        """A hundred conversations where ten fit, each written and read in turn."""
        valkey.do("CONFIG", "SET", "maxmemory", valkey.do("INFO", "memory")["used_memory"] + 200_000)
        many = [Stored(20, name=f"thread {number}") for number in range(100)]
        for _ in range(3):
            for each in many:
                found, _source = await cache.read_through(each.key, each.load)
                assert found.conversation.revision == each.revision
                await apply(cache, each, each.append("x" * 2_000))


class TestColdConversation:
    """Fault 13."""

    async def test_many_readers_of_one_process_are_one_database_read(
        self, cache: ConversationCache, stored: Stored
    ) -> None:
        """They join the read under the lease that they see alive."""
        stored.gate = asyncio.Event()
        readers = [asyncio.create_task(read_down(cache, stored)) for _ in range(200)]
        await stored.loading.wait()
        await asyncio.sleep(0.01)
        stored.gate.set()
        await asyncio.gather(*readers)
        assert stored.loads == 1

    async def test_many_readers_of_three_daemons_are_at_most_three_database_reads(
        self, cache_at: OpenCache, valkey: Valkey, stored: Stored
    ) -> None:
        """The lease serves across processes; a reader that waited long enough reads for all of its process."""
        daemons = [await cache_at(valkey.url) for _ in range(3)]
        stored.gate = asyncio.Event()
        readers = [asyncio.create_task(read_current(daemons[number % 3], stored)) for number in range(200)]
        await stored.loading.wait()
        await wait_until(lambda: stored.loads == 3)
        stored.gate.set()
        await asyncio.gather(*readers)
        assert stored.loads == 3

    async def test_reader_that_came_after_a_change_does_not_join_the_read_from_before(
        self, cache: ConversationCache, stored: Stored
    ) -> None:
        """The lease of that read is gone, so the reader gets one of its own."""
        stored.gate = asyncio.Event()
        early = asyncio.create_task(cache.read_through(stored.key, stored.load))
        await stored.loading.wait()
        await apply(cache, stored, stored.append("acknowledged"))
        late = asyncio.create_task(cache.read_through(stored.key, stored.load))
        await wait_until(lambda: stored.loads == 2)
        stored.gate.set()
        assert ((await early)[0].conversation.revision, (await late)[0].conversation.revision) == (1, 2)
        await cache.wait_settled()
        await expect_current(cache, stored)

    async def test_reader_with_a_newer_minimum_revision_does_not_join(
        self, cache_at: OpenCache, valkey: Valkey, proxy: RedisProxy, stored: Stored
    ) -> None:
        """The change was committed and could not be applied, so the lease does not show it."""
        cache = await cache_at(proxy.url, timeout_s=LIMIT_S)
        stored.gate = asyncio.Event()
        early = asyncio.create_task(cache.read_through(stored.key, stored.load))
        await stored.loading.wait()
        proxy.mode = "stall"
        assert not await apply(cache, stored, stored.append("not told"))
        proxy.mode = "pass"
        assert valkey.do("EXISTS", KEYS.lease) == 1
        late = asyncio.create_task(cache.read_through(stored.key, stored.load))
        await wait_until(lambda: stored.loads == 2 or late.done())
        stored.gate.set()
        await early
        assert (await late)[0].conversation.revision == 2

    async def test_failed_read_fails_its_waiters_and_no_later_reader(
        self, cache: ConversationCache, stored: Stored
    ) -> None:
        """The lease is given back at once."""
        failing = asyncio.Event()

        async def fail() -> None:
            await failing.wait()
            raise ConnectionError("no database")

        readers = [asyncio.create_task(cache.read_through(stored.key, fail)) for _ in range(5)]
        await asyncio.sleep(0.01)
        failing.set()
        results = await asyncio.gather(*readers, return_exceptions=True)
        assert all(isinstance(result, ConnectionError) for result in results)
        await cache.wait_settled()
        await fill(cache, stored)

    async def test_cancelled_reader_leaves_the_read_to_the_others(
        self, cache: ConversationCache, stored: Stored
    ) -> None:
        """And to the cache."""
        stored.gate = asyncio.Event()
        first = asyncio.create_task(cache.read_through(stored.key, stored.load))
        await stored.loading.wait()
        second = asyncio.create_task(cache.read_through(stored.key, stored.load))
        await asyncio.sleep(0.005)
        first.cancel()
        stored.gate.set()
        assert (await second)[0].messages == tuple(stored.messages)
        await cache.wait_settled()
        await expect_current(cache, stored)
        assert stored.loads == 1

    async def test_lease_of_a_dead_daemon_costs_a_wait_and_no_more(
        self, cache_at: OpenCache, valkey: Valkey, stored: Stored
    ) -> None:
        """Readers wait 70 ms, then read without filling, until the lease ends."""
        dead, alive = await cache_at(valkey.url), await cache_at(valkey.url)
        await miss(dead, stored)
        await read_down(alive, stored)
        assert isinstance(await alive.read(stored.key), Wait)
        valkey.do("PEXPIRE", KEYS.lease, 0)
        await fill(alive, stored)
        await hit(alive, stored)


async def eventually_hits(cache: ConversationCache, stored: Stored) -> None:
    """The server is well again: so is the cache, as soon as the breaker lets it be seen."""
    async with asyncio.timeout(15):
        while not isinstance(await cache.read(stored.key), Hit):
            await asyncio.sleep(0.02)


async def expect_late_for_at_most(
    max_staleness_s: float, since: float, cache: ConversationCache, stored: Stored
) -> None:
    """Read until the current revision is cached; no read that begins a bound after `since` is older."""
    async with asyncio.timeout(15):
        while True:
            begun = time.monotonic()
            found, source = await cache.read_through(stored.key, stored.load)
            if found.conversation.revision < stored.revision:
                assert begun - since < max_staleness_s
            elif source == "cache":
                return
            await asyncio.sleep(0.01)


@contextmanager
def busy(valkey: Valkey) -> Iterator[None]:
    """Run a script without end, past the threshold after which the server answers BUSY."""

    def run() -> None:
        with pytest.raises(redis.ResponseError):
            valkey.do("EVAL", "while true do end", 0)

    valkey.do("CONFIG", "SET", "busy-reply-threshold", 1)
    with refusing(valkey, run):
        yield
        valkey.do("SCRIPT", "KILL")


@contextmanager
def loading(valkey: Valkey) -> Iterator[None]:
    """A server that reads its file, slowly, and looks at its clients now and then."""
    for number in range(100):
        valkey.do("SET", f"ballast {number}", os.urandom(2_000))
    valkey.do("CONFIG", "SET", "key-load-delay", 20_000, "loading-process-events-interval-bytes", 1_024)
    with refusing(valkey, lambda: valkey.do("DEBUG", "RELOAD")):
        yield
    valkey.do("CONFIG", "SET", "key-load-delay", 0)


@contextmanager
def refusing(valkey: Valkey, run: Callable[[], object]) -> Iterator[None]:
    """While `run` keeps the server from serving; it has ended afterwards."""
    thread = threading.Thread(target=run)
    thread.start()
    end = time.monotonic() + 5
    with pytest.raises((redis.exceptions.BusyLoadingError, redis.ResponseError)):
        while time.monotonic() < end:
            valkey.do("PING")
    yield
    thread.join()


@contextmanager
def failing_disk(valkey: Valkey) -> Iterator[None]:
    """Snapshots cannot be put in their place, because something else is there."""
    in_the_way = valkey.directory / "dump.rdb"
    in_the_way.mkdir()
    valkey.do("CONFIG", "SET", "save", "3600 1000000")
    with pytest.raises(redis.ResponseError):
        valkey.do("SAVE")
    valkey.do("BGSAVE")
    end = time.monotonic() + 5
    while valkey.do("INFO", "persistence")["rdb_last_bgsave_status"] == "ok":
        assert time.monotonic() < end
    yield
    in_the_way.rmdir()
    valkey.do("CONFIG", "SET", "save", "")
    valkey.do("SAVE")
