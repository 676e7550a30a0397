"""Check Redis for `exai doctor`: reachability, version, role, eviction, persistence, clock. Writes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from exai.cache.redis.address import parse_address
from exai.cache.redis.client import RedisClient
from exai.cache.redis.topology import open_topology
from exai.errors import CacheError, ConfigError
from exai.models import Finding, Recorder
from exai.settings.load import CacheSettings

PART: Final = "redis"
OLDEST_VERSION: Final = (7, 0)
CLOCK_TOLERANCE_S: Final = 5.0
EVICTS_ANYTHING: Final = frozenset({"allkeys-lru", "allkeys-lfu", "allkeys-random", "allkeys-lrm"})
"""Policies that also evict keys without an expiry. EXAI's keys all have one; those of other programs may not."""


async def diagnose(settings: CacheSettings, url: str, *, recorder: Recorder, timeout_s: float = 5.0) -> list[Finding]:
    """Look at the cache at `url`, within `timeout_s`."""
    found: list[Finding] = []
    try:
        async with asyncio.timeout(timeout_s):
            client = RedisClient(open_topology(parse_address(url), timeout_s, recorder), recorder)
            try:
                await _look(client, settings, found)
            finally:
                await client.close()
    except TimeoutError:
        found.append(Finding(PART, "fail", f"no answer within {timeout_s:g} s", "Check the address and the network"))
    except CacheError as error:
        cure = "Start it, correct EXAI_CACHE__URL, or set it to off"
        found.append(Finding(PART, "fail", error.problem, error.cure or cure))
    except ConfigError as error:
        found.append(Finding(PART, "fail", f"{error.setting} {error.problem}", error.cure))
    return found


async def _look(client: RedisClient, settings: CacheSettings, found: list[Finding]) -> None:
    clock = await client.clock()
    facts = await _info(client)
    found.append(_server(facts, await client.version(), clock.latency_s))
    found.append(_memory(facts))
    found.append(_persistence(facts, await _snapshots(client)))
    found.append(_clock(clock.ahead_s))
    found.append(Finding("staleness bound", "ok", f"{settings.max_staleness_s:g} s if an update of Redis fails"))


async def _info(client: RedisClient) -> Mapping[str, str]:
    reply = await client.call(0, "INFO")
    text = reply.decode(errors="replace") if isinstance(reply, bytes) else ""
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line and not line.startswith("#"))


async def _snapshots(client: RedisClient) -> bool:
    """Return whether RDB snapshots are scheduled; False if the server, as a managed one, or its ACL hides it."""
    try:
        reply = await client.call(0, "CONFIG", "GET", "save")
    except CacheError:
        return False
    return isinstance(reply, list) and len(reply) == 2 and bool(reply[1])


def _server(facts: Mapping[str, str], version: str, latency_s: float) -> Finding:
    seen = f"{version}, {latency_s * 1000:.1f} ms"
    numbers = facts.get("redis_version", "").split(".")[:2]
    if all(number.isdigit() for number in numbers) and tuple(map(int, numbers)) < OLDEST_VERSION:
        return Finding(PART, "fail", f"{seen}; EXAI needs Redis 7.0 or any Valkey", "Upgrade the server")
    if facts.get("role") == "slave":
        return Finding(PART, "fail", f"{seen}; it is a replica", "Give the primary's address")
    return Finding(PART, "ok", seen)


def _memory(facts: Mapping[str, str]) -> Finding:
    part = "redis memory"
    policy = facts.get("maxmemory_policy", "unknown")
    limit, used = (int(facts.get(name, "0") or 0) for name in ("maxmemory", "used_memory"))
    seen = f"{used / 1_048_576:.0f} MB used of {f'{limit / 1_048_576:.0f} MB' if limit else 'no limit'}, {policy}"
    if not limit:
        return Finding(part, "warn", seen, "Set maxmemory, with maxmemory-policy volatile-lru")
    if policy == "noeviction":
        return Finding(part, "warn", f"{seen}: a full cache stays full", "Set maxmemory-policy volatile-lru")
    if policy in EVICTS_ANYTHING:
        return Finding(part, "ok", f"{seen}: other programs' keys may go as well")
    return Finding(part, "ok", seen)


def _persistence(facts: Mapping[str, str], snapshots: bool) -> Finding:
    part = "redis persistence"
    kinds = ["AOF"] if facts.get("aof_enabled") == "1" else []
    kinds += ["RDB"] if snapshots else []
    broken = [name for name in ("rdb_last_bgsave_status", "aof_last_write_status") if facts.get(name, "ok") != "ok"]
    if broken:
        return Finding(part, "fail", f"{', '.join(broken)}: cannot write its disk", "Free space on the server's disk")
    return Finding(part, "ok", " and ".join(kinds) if kinds else "none: empty after a restart, which is safe")


def _clock(ahead_s: float) -> Finding:
    seen = f"{abs(ahead_s):.2f} s {'ahead of' if ahead_s >= 0 else 'behind'} this machine's"
    if abs(ahead_s) > CLOCK_TOLERANCE_S:
        return Finding("redis clock", "warn", seen, "Synchronise both clocks (NTP)")
    return Finding("redis clock", "ok", seen)
