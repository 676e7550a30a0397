"""The faults of a cluster: each one breaks something for a while, and then repairs exactly that.

Invariant: the seed alone decides which faults come, against what, in which order and for how long.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeAlias

import asyncpg
import redis.exceptions

from tests.fault.cluster import Cluster, Member, running
from tests.support.fault_proxy import FaultProxy, Mode

Fault: TypeAlias = Callable[[Cluster, random.Random], Awaitable[None]]

FAULTS: dict[str, Fault] = {}
REST_S = 0.3
WARM_S = 1.5
KINDS = (3, 8)
"""How many kinds of faults one seed draws from: few kinds at a time find what all at once would hide."""

MOST_KEYS = 500


def fault(made: Fault) -> Fault:
    """Add a fault to those the seeds draw from."""
    FAULTS[made.__name__] = made
    return made


class Nemesis:
    """Faults one after the other, drawn by a seed; `done` counts them."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.cluster = cluster
        self._random = random.Random(f"nemesis {seed}")
        self.kinds = sorted(self._random.sample(sorted(FAULTS), self._random.randint(*KINDS)))
        self.done: Counter[str] = Counter()

    async def run(self, until: asyncio.Event) -> None:
        """Break and repair until `stop` is set."""
        while not until.is_set():
            kind = self._random.choice(self.kinds)
            self.done[kind] += 1
            await FAULTS[kind](self.cluster, self._random)
            await asyncio.sleep(self._random.expovariate(1 / REST_S))


def _some(cluster: Cluster, rng: random.Random) -> list[Member]:
    """One daemon, or all of them."""
    return [rng.choice(cluster.members)] if rng.random() < 0.7 else list(cluster.members)


@fault
async def daemon_killed(cluster: Cluster, rng: random.Random) -> None:
    """SIGKILL, and a new life on the same servers."""
    member = rng.choice(cluster.members)
    await member.kill()
    await asyncio.sleep(rng.uniform(0, 0.5))
    await member.start()


@fault
async def daemon_stopped(cluster: Cluster, rng: random.Random) -> None:
    """SIGTERM while calls run: they end, the daemon exits with 0, and is started again."""
    member = rng.choice(cluster.members)
    assert await member.stop() == 0, "a daemon that was asked to stop did not end well"
    await member.start()


@fault
async def daemon_frozen(cluster: Cluster, rng: random.Random) -> None:
    """A process that stands still between any two of its steps, longer than leases and bounds."""
    member = rng.choice(cluster.members)
    member.signal(signal.SIGSTOP)
    await asyncio.sleep(rng.uniform(0.1, 4.0))
    member.signal(signal.SIGCONT)


@fault
async def redis_killed(cluster: Cluster, rng: random.Random) -> None:
    """SIGKILL; it comes back with what was on its disk."""
    await asyncio.to_thread(cluster.valkey.kill)
    await asyncio.sleep(rng.uniform(0, 1.0))
    await cluster.start_valkey()


@fault
async def redis_flushed(cluster: Cluster, rng: random.Random) -> None:
    """All of it is gone."""
    await cluster.redis.flushall()


@fault
async def redis_evicts(cluster: Cluster, rng: random.Random) -> None:
    """Any keys are gone: entries, leases, the watermark."""
    for _ in range(rng.randint(1, 10)):
        keys = await cluster.redis.keys("*")
        if keys:
            await cluster.redis.delete(*rng.sample(keys, rng.randint(1, len(keys))))
        await asyncio.sleep(rng.uniform(0, 0.2))


@fault
async def redis_full(cluster: Cluster, rng: random.Random) -> None:
    """No memory is left: writes are refused, or others are thrown out for them."""
    policy = rng.choice(("noeviction", "volatile-lru", "allkeys-random"))
    before = await cluster.redis.config_get("maxmemory*")
    await cluster.redis.config_set("maxmemory-policy", policy)
    await cluster.redis.config_set("maxmemory", rng.choice((1, 1_300_000, 1_600_000)))
    await asyncio.sleep(rng.uniform(0.2, 1.5))
    for name in ("maxmemory", "maxmemory-policy"):
        await cluster.redis.config_set(name, before[name])


@fault
async def redis_frozen(cluster: Cluster, rng: random.Random) -> None:
    """SIGSTOP: connections stay, nothing answers, and what was sent is carried out late."""
    os.kill(running(cluster.valkey), signal.SIGSTOP)
    await asyncio.sleep(rng.uniform(0.1, 3.0))
    os.kill(running(cluster.valkey), signal.SIGCONT)


@fault
async def redis_paused(cluster: Cluster, rng: random.Random) -> None:
    """CLIENT PAUSE, of everything or of writes."""
    await cluster.redis.client_pause(rng.randint(50, 1_000), all=rng.random() < 0.5)
    await asyncio.sleep(rng.uniform(0.1, 1.0))
    await cluster.redis.client_unpause()


@fault
async def redis_scripts_forgotten(cluster: Cluster, rng: random.Random) -> None:
    """SCRIPT FLUSH: every daemon receives NOSCRIPT."""
    await cluster.redis.script_flush()


async def _way_broken(proxies: list[FaultProxy], rng: random.Random) -> None:
    mode: Mode = rng.choice(("stall", "stall_down", "reset", "refuse"))
    for proxy in proxies:
        proxy.mode = mode
        if mode == "refuse":
            proxy.reset()
    await asyncio.sleep(rng.uniform(0.1, 4.0))
    for proxy in proxies:
        if mode != "reset" and rng.random() < 0.5:
            # Half of the black holes end in a broken connection, half deliver everything late.
            proxy.reset()
        proxy.mode = "pass"


@fault
async def way_to_redis_broken(cluster: Cluster, rng: random.Random) -> None:
    """A black hole, half a one, or a wall, between Redis and some daemons."""
    await _way_broken([member.to_redis for member in _some(cluster, rng)], rng)


@fault
async def way_to_postgres_broken(cluster: Cluster, rng: random.Random) -> None:
    """The same for Postgres."""
    await _way_broken([member.to_postgres for member in _some(cluster, rng)], rng)


@fault
async def ways_slow(cluster: Cluster, rng: random.Random) -> None:
    """Every packet of some daemons takes its time."""
    members = _some(cluster, rng)
    for member in members:
        member.to_redis.latency_s = rng.choice((0.0, 0.01, 0.08))
        member.to_postgres.latency_s = rng.choice((0.0, 0.02, 0.15))
    await asyncio.sleep(rng.uniform(0.3, 2.0))
    for member in members:
        member.to_redis.latency_s = member.to_postgres.latency_s = 0.0


@fault
async def replies_of_redis_cut(cluster: Cluster, rng: random.Random) -> None:
    """Connections break inside a reply."""
    for _ in range(rng.randint(1, 5)):
        rng.choice(cluster.members).to_redis.cut_after(rng.randint(0, 3_000))
        await asyncio.sleep(rng.uniform(0.05, 0.3))


@fault
async def replies_of_postgres_cut(cluster: Cluster, rng: random.Random) -> None:
    """The same for Postgres."""
    for _ in range(rng.randint(1, 5)):
        rng.choice(cluster.members).to_postgres.cut_after(rng.randint(0, 3_000))
        await asyncio.sleep(rng.uniform(0.05, 0.3))


@fault
async def acknowledgements_lost(cluster: Cluster, rng: random.Random) -> None:
    """Statements are executed, and their replies are lost."""
    for _ in range(rng.randint(1, 6)):
        member = rng.choice(cluster.members)
        statement = rng.choice((b"append_v1", b"append_batch_v1", b"begin_turn_v1", b"finish_turn_v1", b"read_page_v1"))
        lost = member.to_postgres.drop_reply_to(statement)
        with suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await lost


@fault
async def applies_lost(cluster: Cluster, rng: random.Random) -> None:
    """Changes are not applied to Redis; everything else works."""
    for _ in range(rng.randint(2, 10)):
        rng.choice(cluster.members).to_redis.lose_request(cluster.apply_sha)
        await asyncio.sleep(rng.uniform(0.05, 0.3))


@fault
async def torn_apart(cluster: Cluster, rng: random.Random) -> None:
    """One daemon writes and cannot reach Redis; the others read from Redis and cannot reach Postgres."""
    # Everything that is read shall be cached before.
    await asyncio.sleep(WARM_S)
    writer, *readers = rng.sample(cluster.members, len(cluster.members))
    mode: Mode = rng.choice(("stall", "refuse"))
    for proxy in (writer.to_redis, *(reader.to_postgres for reader in readers)):
        proxy.mode = mode
        if rng.random() < 0.8:
            proxy.reset()
    await asyncio.sleep(rng.uniform(2.0, 5.0))
    for proxy in (writer.to_redis, *(reader.to_postgres for reader in readers)):
        proxy.mode = "pass"


@fault
async def postgres_crashed(cluster: Cluster, rng: random.Random) -> None:
    """An immediate shutdown, as `pg_ctl stop -m immediate`, and recovery."""
    server = cluster.postgres
    os.kill(running(server), signal.SIGQUIT)
    while server.is_running():
        await asyncio.sleep(0.01)
    await asyncio.sleep(rng.uniform(0, 1.0))
    await cluster.start_postgres()


@fault
async def postgres_killed(cluster: Cluster, rng: random.Random) -> None:
    """SIGKILL of the first process."""
    await asyncio.to_thread(cluster.postgres.kill)
    await asyncio.sleep(rng.uniform(0, 1.0))
    await cluster.start_postgres()


@fault
async def backend_killed(cluster: Cluster, rng: random.Random) -> None:
    """SIGKILL of one session: Postgres ends all others and recovers, without a new first process."""
    with suppress(asyncpg.PostgresError, OSError):
        async with cluster.admin() as connection:
            os.kill(await connection.fetchval("select pg_backend_pid()"), signal.SIGKILL)
            await connection.fetchval("select 1")


@fault
async def sessions_terminated(cluster: Cluster, rng: random.Random) -> None:
    """pg_terminate_backend, of one or of all."""
    for _ in range(rng.randint(1, 5)):
        async with cluster.admin() as connection:
            await connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid() and random() < $1::float8",
                rng.choice((0.3, 1.0)),
            )
        await asyncio.sleep(rng.uniform(0, 0.3))


@fault
async def conversation_held(cluster: Cluster, rng: random.Random) -> None:
    """Another session locks the rows of some conversations, for longer than the lock timeout."""
    async with cluster.admin() as connection, connection.transaction():
        await connection.execute(
            "select from public.conversations where random() < $1::float8 for update", rng.choice((0.3, 1.0))
        )
        await asyncio.sleep(rng.uniform(0.2, 3.0))


@fault
async def table_held(cluster: Cluster, rng: random.Random) -> None:
    """Every statement is slow, up to beyond the statement timeout, and pools run empty."""
    async with cluster.admin() as connection, connection.transaction():
        table = rng.choice(("messages", "conversations", "turns"))
        await connection.execute("set local lock_timeout = '3s'")
        with suppress(asyncpg.LockNotAvailableError):
            await connection.execute(f"lock table public.{table} in access exclusive mode")
            await asyncio.sleep(rng.uniform(0.2, 6.0))


async def undo(cluster: Cluster) -> None:
    """Repair what an interrupted fault may have left in the servers."""
    with suppress(redis.exceptions.RedisError):
        await cluster.redis.client_unpause()
