"""Run the cache's scripts on the server that holds the keys, with a time limit.

Invariant: every fault is raised as a `CacheError` within the time limit. A command is sent twice only if the server
replied that it did not execute it: an unknown script, or a slot that has moved.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Final

from exai.cache.redis.connection import Argument, RedisReply
from exai.cache.redis.faults import DEPENDENCY, CacheAway, CacheRefused
from exai.cache.redis.scripts import Script
from exai.cache.redis.topology import Topology
from exai.errors import CacheError
from exai.models import Recorder
from exai.slowness import SLOW_S, note_slow

MAX_REDIRECTS: Final = 3
MEMORY_AGE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class ClockReading:
    """One look at the server's clock: `ahead_s` is its difference to ours, `latency_s` the round trip it took."""

    latency_s: float
    ahead_s: float


class RedisClient:
    """Commands and scripts by slot group; owns the topology's connections."""

    def __init__(self, topology: Topology, recorder: Recorder) -> None:
        self._topology, self._recorder = topology, recorder
        self._version: str | None = None
        self._memory: tuple[float, int | None] | None = None

    @property
    def groups(self) -> int:
        """Slot groups the keys are spread over: 1 outside a cluster."""
        return self._topology.groups

    @property
    def breaker_state(self) -> str:
        """Breaker state of the first slot group's server."""
        return self._topology.node(0).breaker.state

    async def run(self, script: Script, group: int, keys: tuple[str, ...], args: tuple[Argument, ...]) -> RedisReply:
        """Run a script: 1 round trip, 2 if the server does not have the script cached. Raises `CacheError`."""
        started = time.perf_counter()
        outcome = "cancelled"
        try:
            reply = await self._run(script, group, keys, args)
        except CacheAway:
            outcome = "down"
            raise
        except CacheRefused:
            outcome = "refused"
            raise
        else:
            outcome = "ok"
            return reply
        finally:
            self._recorder.count("cache_calls_total", script=script.name, outcome=outcome)
            took_s = time.perf_counter() - started
            self._recorder.observe("cache_call_seconds", took_s, script=script.name)
            if took_s >= SLOW_S:
                note_slow(self._recorder, f"cache {script.name}", took_s, {}, "cache")

    async def call(self, group: int, *command: Argument) -> RedisReply:
        """Send one command to the server of a group. Raises `CacheError`."""
        for _ in range(MAX_REDIRECTS):
            node = self._topology.node(group)
            try:
                return await node.call(*command)
            except CacheAway:
                self._topology.failed(group)
                raise
            except CacheRefused as refused:
                if refused.reply_code != "MOVED":
                    raise
                self._topology.moved(group, node, refused.text)
        raise CacheRefused("MOVED", "moved again and again")

    async def clock(self) -> ClockReading:
        """Look at the server's clock. Raises `CacheError`."""
        sent, sent_at = time.perf_counter(), time.time()
        reply = await self.call(0, "TIME")
        latency_s = time.perf_counter() - sent
        match reply:
            case [bytes() as seconds, bytes() as micros]:
                return ClockReading(latency_s, int(seconds) + int(micros) / 1e6 - (sent_at + latency_s / 2))
            case _:
                raise CacheError(DEPENDENCY, "answered TIME with something else")

    async def version(self) -> str:
        """Name and version of the server, queried once. Raises `CacheError`."""
        if self._version is None:
            reply = await self.call(0, "INFO", "server")
            lines = reply.decode().splitlines() if isinstance(reply, bytes) else []
            facts = dict(line.split(":", 1) for line in lines if ":" in line)
            valkey = facts.get("valkey_version")
            self._version = f"Valkey {valkey}" if valkey else f"Redis {facts.get('redis_version', 'unknown')}"
        return self._version

    async def memory_bytes(self) -> int | None:
        """Memory that the server uses, as of the last minute; None if it does not report it. Raises `CacheError`."""
        now = time.monotonic()
        if self._memory is None or now - self._memory[0] >= MEMORY_AGE_S:
            reply = await self.call(0, "INFO", "memory")
            found = re.search(rb"^used_memory:(\d+)", reply, re.MULTILINE) if isinstance(reply, bytes) else None
            self._memory = now, int(found[1]) if found else None
        return self._memory[1]

    async def close(self) -> None:
        """Close all connections."""
        await self._topology.close()

    async def _run(self, script: Script, group: int, keys: tuple[str, ...], args: tuple[Argument, ...]) -> RedisReply:
        try:
            return await self.call(group, "EVALSHA", script.sha, len(keys), *keys, *args)
        except CacheRefused as refused:
            if refused.reply_code != "NOSCRIPT":
                raise
        return await self.call(group, "EVAL", script.text, len(keys), *keys, *args)
