"""A simulation of daemons, a database and faults around the real cache code and the real scripts on a real Valkey.

Invariant: one actor runs at a time, from one gate to the next, and the seed alone decides which, so that the same seed
reproduces a history that breaks a promise. Time is a number in Redis, which the scripts read instead of the clock.

Every cache hit is compared with the log of the simulated database:

content   it is exactly the newest page of its conversation at its revision
strict    it contains every change that was acknowledged, and applied to Redis, before the read began
own       it contains every acknowledged change of the same daemon, applied to Redis or not
bound     it contains every change that was committed at least one staleness bound ago
phantom   commits that a database failover lost are returned for less than one staleness bound, and not after the next
          change has been applied to Redis
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from exai.cache.conversations import NO_REVISION, ConversationCache
from exai.cache.entry import cache_keys, watermark_key
from exai.cache.reconciliation import ChangedRevisions, Reconciler
from exai.cache.records import Hit, Loaded, Miss, PreloadedPage
from exai.cache.redis.client import RedisClient
from exai.cache.redis.faults import CacheDown
from exai.cache.redis.scripts import Script, Scripts
from exai.cache.redis.topology import Topology
from exai.errors import CacheError
from exai.models import LOCAL_OWNER, Commit, ContinuationId, Conversation, ConversationId, ConversationKey, Message
from exai.settings.load import CacheSettings
from tests.integration.cache.stage import Stage
from tests.support.counters import Counters

SECOND = 1_000_000
BOUND_S = 2.0
BOUND_US = round(BOUND_S * SECOND)
CLOCK_KEY = "clock"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
NAMES = (ContinuationId("a"), ContinuationId("b"))
REAL_TIME = "local time = redis.call('TIME')\nlocal now = time[1] * 1000000 + time[2]"
SIMULATED_TIME = f"local now = tonumber(redis.call('GET', '{CLOCK_KEY}'))"
SHARES = (0.3, 1.0, 3.0)
RESTS = (0, 5, 20)
PACES = ((0.1, 0.3), (0.3, 0.8), (0.3, 1.3, 2.1))
REUSES = ("replace", "purge")
"""A name is used again after its conversation was deleted, or removed."""

FAULTS = (
    *("evict entry", "evict lease", "evict watermark", "flush", "roll back", "restart", "failover", "recover"),
    *("clock back", "cut", "die"),
)


class Broken(AssertionError):
    """A promise that the history breaks."""


class Aborted(Exception):
    """The database ended during this transaction."""


@dataclass(frozen=True)
class Version:
    """A conversation after one commit; `number` counts the commits under its name, `id` tells conversations apart."""

    name: ContinuationId
    number: int
    id: str
    revision: int
    messages: tuple[Message, ...]
    committed_us: int
    xid: int
    order: int
    server_epoch: str
    is_purged: bool = False

    def loaded(self, server_epoch: str) -> Loaded:
        conversation = Conversation(
            ConversationId(self.id),
            self.name,
            LOCAL_OWNER,
            None,
            {},
            len(self.messages),
            self.revision,
            NOW,
            NOW,
        )
        return Loaded(conversation, self.messages[-50:], len(self.messages) <= 50, server_epoch)


class World:
    """The log of the database, the time, and the revisions that each daemon has acknowledged."""

    def __init__(self, client: RedisClient, rng: random.Random, plan: Plan) -> None:
        self.client, self.rng, self.cursor, self.names_recoveries = client, rng, plan.cursor, plan.names_recoveries
        self.plan = plan
        self.now_us = 1_000 * SECOND
        self.behind_us = self.stepped_us = 0
        self.epoch_number = 1
        self._orders, self._words = itertools.count(), itertools.count()
        self.next_xid = 100
        self.active: dict[int, ContinuationId] = {}
        self.log: dict[ContinuationId, list[Version]] = {}
        size = rng.choice((0, 3, 49))
        self.names = NAMES[: rng.choice((1, 1, 2))]
        for name in self.names:
            first = tuple(self.message(seq) for seq in range(1, size + 1))
            version = Version(name, 1, f"id-{name}", 1, first, 0, 1, next(self._orders), self.server_epoch)
            self.log[name] = [version]
        self.applied: dict[ContinuationId, int] = dict.fromkeys(NAMES, 0)
        self.own: dict[tuple[int, ContinuationId], int] = {}
        self.applied_since: set[ContinuationId] = set()
        self.lost: dict[ContinuationId, int | None] = dict.fromkeys(NAMES)
        self.hits = self.losses = 0
        self.saved: list[tuple[bytes, bytes, list[bytes]]] | None = None

    @property
    def server_epoch(self) -> str:
        return f"epoch-{self.epoch_number}"

    def message(self, seq: int) -> Message:
        return Message(seq, "user", f"word {next(self._words)}", NOW)

    def begin(self, name: ContinuationId) -> int | None:
        """Return a transaction id, or None while another transaction holds the conversation's lock."""
        if name in self.active.values():
            return None
        xid, self.next_xid = self.next_xid, self.next_xid + 1
        self.active[xid] = name
        return xid

    def commit(self, xid: int, kind: str) -> tuple[Version, Version]:
        """Return the version before and after the commit. Raises Aborted."""
        if xid not in self.active:
            raise Aborted
        name = self.active.pop(xid)
        before = self.log[name][-1]
        id_, revision = before.id, before.revision + 1
        if kind == "edit" and before.messages:
            changed = before.messages[-1]._replace(content=f"word {next(self._words)}")
            messages = (*before.messages[:-1], changed)
        elif kind == "rewind":
            messages = before.messages[: self.rng.randint(0, len(before.messages))]
        elif kind == "replace":
            # The former conversation was deleted and renamed: two changes of it that no other daemon has to know.
            id_, messages = f"id-{next(self._words)}", (self.message(1),)
            revision = before.revision + 3 if self.plan.continues_revisions else 1
        elif kind == "purge":
            # The row of the former conversation was removed before, which leaves a record of its last revision.
            id_, messages = f"id-{next(self._words)}", (self.message(1),)
            revision = before.revision + 2 if self.plan.records_removals else 1
        else:
            messages = (*before.messages, self.message(len(before.messages) + 1))
        place = before.number + 1, id_, revision
        made = xid, next(self._orders), self.server_epoch, kind == "purge"
        after = Version(name, *place, messages, self.now_us, *made)
        self.log[name].append(after)
        return before, after

    def changes(self, since: str | None) -> ChangedRevisions:
        """Return the changes that a reconciliation reads, from one snapshot."""
        xmin = self.next_xid if self.cursor == "xmax" else min(self.active, default=self.next_xid)
        newest = [versions[-1] for versions in self.log.values()]
        rows = [] if since is None else [each for each in newest if each.xid >= int(since)]
        if self.cursor == "first row only":
            rows = rows[:1]
        removed = [
            (LOCAL_OWNER, name, NO_REVISION)
            for name, versions in self.log.items()
            if since is not None and any(each.is_purged and each.xid >= int(since) for each in versions)
        ]
        return ChangedRevisions(
            str(xmin), self.server_epoch, [*removed, *((LOCAL_OWNER, each.name, each.revision) for each in rows)]
        )

    def acknowledge(self, daemon: int, version: Version, *, applied: bool) -> None:
        """Record that the writer has its result; reads that begin now must contain the change."""
        if version not in self.log[version.name]:
            return
        key = daemon, version.name
        self.own[key] = max(self.own.get(key, 0), version.number)
        if applied:
            self.applied[version.name] = max(self.applied[version.name], version.number)
            # Applying a change that was committed before the failover does not replace an entry with lost commits.
            if version.server_epoch == self.server_epoch:
                self.applied_since.add(version.name)

    def promise(self, daemon: int, name: ContinuationId) -> tuple[int, int]:
        """Return the least version for a read that begins now, and the number of losses, after which it is void."""
        return max(self.applied[name], self.own.get((daemon, name), 0)), self.losses

    def forget_promises(self) -> None:
        """Record that Redis or the database lost acknowledged changes, so that only the staleness bound holds."""
        self.applied = dict.fromkeys(NAMES, 0)
        self.own.clear()
        self.applied_since.clear()
        self.losses += 1

    def restart(self) -> None:
        self.epoch_number += 1
        self.active.clear()

    def recover(self) -> None:
        """Kill one backend: committed rows remain, and ids of aborted transactions are assigned again."""
        if self.names_recoveries:
            self.epoch_number += 1
        self.active.clear()
        self.next_xid = max(99, *(versions[-1].xid for versions in self.log.values())) + 1

    def fail_over(self) -> None:
        """Lose the latest commits."""
        self.restart()
        newest = max(versions[-1].order for versions in self.log.values())
        last = newest - self.rng.randint(1, 2)
        for name, versions in self.log.items():
            kept = [versions[0], *(each for each in versions[1:] if each.order <= last)]
            if len(kept) < len(versions):
                self.log[name], self.lost[name] = kept, self.now_us
        self.forget_promises()

    def check(self, hit: Hit, name: ContinuationId, promise: tuple[int, int]) -> None:
        """Compare a hit with the log. Raises Broken."""
        self.hits += 1
        versions = {each.number: each for each in self.log[name]}
        place = hit.conversation.id, hit.revision
        version = next((each for each in versions.values() if (each.id, each.revision) == place), None)
        if version is None or version.messages[-50:] != hit.messages:
            lost_us = self.lost[name]
            if lost_us is None or name in self.applied_since:
                raise Broken(f"content: revision {hit.revision} of {name} never had these messages")
            if self.now_us - lost_us >= BOUND_US:
                raise Broken(f"phantom: lost changes of {name} returned {self.now_us - lost_us} us later")
            return
        least, losses = promise
        if version.number < least and losses == self.losses:
            raise Broken(f"strict: version {version.number} of {name} after {least} was acknowledged")
        missing = versions.get(version.number + 1)
        if missing is not None and self.now_us - missing.committed_us >= BOUND_US + self.stepped_us:
            raise Broken(
                f"bound: version {missing.number} of {name} missed for {self.now_us - missing.committed_us} us"
            )

    async def advance(self, by_s: float) -> None:
        self.now_us += round(by_s * SECOND)
        await self.client.call(0, "SET", CLOCK_KEY, self.now_us - self.behind_us)

    async def set_clock_back(self, by_s: float) -> None:
        """Set the clock of Redis back, which extends the staleness bound by as much."""
        self.behind_us += round(by_s * SECOND)
        self.stepped_us = self.behind_us
        await self.advance(0)

    async def save(self) -> None:
        """Copy all keys of Redis, except the time."""
        self.saved = []
        keys: Any = await self.client.call(0, "KEYS", "exai:*")
        for key in sorted(keys):
            if key.endswith(b":z"):
                value: Any = [await self.client.call(0, "GET", key)]
                self.saved.append((b"SET", key, value))
            else:
                value = await self.client.call(0, "HGETALL", key)
                self.saved.append((b"HSET", key, value))

    async def roll_back(self) -> None:
        """Restore the copied keys of Redis."""
        if self.saved is None:
            return
        await self.client.call(0, "FLUSHDB")
        await self.advance(0)
        for command, key, value in self.saved:
            await self.client.call(0, command, key, *value)
        self.forget_promises()


class GatedClient(RedisClient):
    """Waits at a gate before each command. While disconnected, some commands still arrive, later, without a reply."""

    def __init__(self, topology: Topology, stage: Stage) -> None:
        super().__init__(topology, Counters())
        self._stage = stage
        self.cut = False

    async def run(self, script: Script, group: int, keys: tuple[str, ...], args: tuple[Any, ...]) -> Any:
        await self._stage.gate()
        if self.cut:
            if self._stage.rng.random() < 0.5:
                self._stage.enter(self._late(script, group, keys, args))
            raise CacheDown("disconnected")
        return await super().run(script, group, keys, args)

    async def _late(self, script: Script, group: int, keys: tuple[str, ...], args: tuple[Any, ...]) -> None:
        await self._stage.gate()
        await super().run(script, group, keys, args)


@dataclass
class Daemon:
    """One process: its cache object, its reconciler, readers, writers and reconciliations."""

    number: int
    world: World
    stage: Stage
    client: GatedClient
    cache: ConversationCache
    reconciler: Reconciler
    faults: frozenset[str]
    warm: bool
    rest: int
    slow: int

    def dies(self) -> bool:
        return "die" in self.faults and self.stage.rng.random() < 0.4

    async def pause(self, most: int) -> None:
        for _ in range(self.stage.rng.randint(0, most)):
            await self.stage.gate()

    async def read(self) -> None:
        name = self.stage.rng.choice(self.world.names)
        promise = self.world.promise(self.number, name)
        found = await self.cache.read(ConversationKey(LOCAL_OWNER, name))
        if isinstance(found, Hit):
            self.world.check(found, name, promise)
        elif isinstance(found, Miss):
            await self.stage.gate()
            loaded = self.world.log[name][-1].loaded(self.world.server_epoch)
            await self.pause(self.slow)
            if not self.dies():
                await self.cache.fill(ConversationKey(LOCAL_OWNER, name), found, loaded)

    async def write(self) -> None:
        await self.pause(self.rest)
        name = self.stage.rng.choice(self.world.names)
        kind = "edit" if self.stage.rng.random() < 0.2 else "append"
        if self.world.plan.replaces and self.stage.rng.random() < 0.4:
            kind = self.stage.rng.choice(("rewind", *self.world.plan.reuses))
        found = (
            await self.cache.read(ConversationKey(LOCAL_OWNER, name))
            if self.warm and self.stage.rng.random() < 0.7
            else None
        )
        while (xid := self.world.begin(name)) is None:
            await self.stage.gate()
        await self.stage.gate()
        try:
            before, after = self.world.commit(xid, kind)
        except Aborted:
            return
        loaded = after.loaded(self.world.server_epoch)
        if self.dies():
            return
        delta = after.messages[len(before.messages) :] if kind == "append" else None
        base = before.revision
        if kind in REUSES:
            delta, base = after.messages, after.revision - 1
        await self.pause(self.slow)
        preloaded = (
            PreloadedPage(found, loaded.messages, loaded.complete)
            if isinstance(found, Miss) and kind == "append"
            else None
        )
        commit = Commit(loaded.conversation, base, after.revision, loaded.server_epoch, delta)
        applied = await self.cache.apply(commit, preloaded=preloaded)
        self.world.acknowledge(self.number, after, applied=applied)

    async def poll(self) -> None:
        try:
            await self.reconciler.reconcile()
        except CacheError:
            pass


@dataclass
class Plan:
    """The differences of a simulation from the real protocol; by default there are none."""

    mutate: Callable[[str, str], str] = lambda _name, text: text
    cursor: str = "xmin"
    names_recoveries: bool = True
    min_revisions: bool = True
    replaces: bool = False
    continues_revisions: bool = True
    records_removals: bool = True
    reuses: tuple[str, ...] = REUSES
    faults: frozenset[str] | None = None


@dataclass
class Report:
    """The number of hits of one run, and its kinds of faults."""

    hits: int
    faults: frozenset[str] = field(default_factory=frozenset)


def simulated(scripts: Scripts, plan: Plan) -> Scripts:
    """Return the scripts with the simulated time, and with the mutation of the plan."""
    changed = {}
    for name in scripts.__slots__:
        script = getattr(scripts, name)
        text = plan.mutate(name, script.text)
        changed[name] = Script.of(name, text.replace(REAL_TIME, SIMULATED_TIME))
    return replace(scripts, **changed)


async def simulate(topology: Topology, scripts: Scripts, seed: int, plan: Plan, *, steps: int = 200) -> Report:
    """Run one simulation. Raises Broken, with the broken promise."""
    rng = random.Random(seed)
    stage = Stage(rng)
    client = RedisClient(topology, Counters())
    await client.call(0, "FLUSHDB")
    world = World(client, rng, plan)
    await world.advance(0)
    # Each run has only some of the faults, because together they would hide each other.
    faults = frozenset(fault for fault in FAULTS if rng.random() < 0.2) if plan.faults is None else plan.faults
    warm, pace, rest, slow = rng.random() < 0.5, rng.choice(PACES), rng.choice(RESTS), rng.choice(RESTS)
    shares = [rng.choice(SHARES) for _ in range(4)]
    settings = CacheSettings(max_staleness_s=BOUND_S, verify_one_in=0)
    mutated = simulated(scripts, plan)
    if rng.random() < 0.8:
        watermark_now = ("gen", "first", "xmin", "100", "epoch", world.server_epoch, "asof", world.now_us)
        await client.call(0, "HSET", watermark_key(0), *watermark_now)
    daemons = []
    for number in range(2):
        gated = GatedClient(topology, stage)
        remembered: list[str] = []

        async def changes(since: str | None, remembered: list[str] = remembered) -> ChangedRevisions:
            await stage.gate()
            if plan.cursor == "in memory":
                since = remembered[-1] if remembered else since
            found = world.changes(since)
            remembered.append(found.xmin)
            await stage.gate()
            return found

        expired = itertools.count(step=1_000)
        cache = ConversationCache(
            gated,
            None,
            settings,
            mutated,
            Counters(),
            clock=(lambda: world.now_us / SECOND) if plan.min_revisions else lambda expired=expired: next(expired),
        )
        reconciler = Reconciler(gated, mutated, changes, settings, Counters())
        daemons.append(Daemon(number, world, stage, gated, cache, reconciler, faults, warm, rest, slow))
    for daemon in daemons:
        for work, share in zip((daemon.read, daemon.read, daemon.write, daemon.poll), shares, strict=True):
            stage.enter(again(work), share)
    stage.enter(again(lambda: disturb(world, daemons, faults, pace)), 1.0)
    await stage.play(steps)
    return Report(world.hits, faults)


async def again(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    while True:
        await work()


async def disturb(world: World, daemons: list[Daemon], faults: frozenset[str], pace: tuple[float, ...]) -> None:
    """Advance the time, or inject a fault."""
    rng = world.rng
    await daemons[0].stage.gate()
    if rng.random() < 0.6 or not faults:
        await world.advance(rng.choice(pace))
        return
    where = cache_keys(ConversationKey(LOCAL_OWNER, rng.choice(world.names)), 1)
    match rng.choice(sorted(faults)):
        case "evict entry":
            await world.client.call(0, "DEL", where.entry)
        case "evict lease":
            await world.client.call(0, "DEL", where.lease)
        case "evict watermark":
            await world.client.call(0, "DEL", where.watermark)
        case "flush":
            await world.client.call(0, "FLUSHDB")
            await world.advance(0)
        case "roll back":
            if world.saved is None or rng.random() < 0.5:
                await world.save()
            else:
                await world.roll_back()
        case "clock back":
            await world.set_clock_back(rng.choice(pace))
        case "cut":
            daemon = rng.choice(daemons)
            daemon.client.cut = not daemon.client.cut
        case fault:
            disturb_database(world, fault)


def disturb_database(world: World, fault: str) -> None:
    """Inject a fault into the database; the fault `die` is injected by each daemon itself."""
    rng = world.rng
    match fault:
        case "restart":
            world.restart()
        case "failover":
            world.fail_over()
        case "recover":
            # Aborted transactions before the recovery consume ids.
            if rng.random() < 0.5:
                world.next_xid += rng.randint(1, 5)
            else:
                world.recover()
        case _:
            pass
