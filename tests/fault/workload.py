"""Concurrent users who read, write and chat through any daemon, and the history of their operations.

Invariant: the history contains every operation with its start and its result, which may be unknown.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from tests.fault.caller import Lost, Refused
from tests.fault.cluster import Cluster, Member
from tests.support.history import Ack, Append, Asked, Event, History, Listed, Read, Turn

CONVERSATIONS = 12
HOT = 3
"""The first conversations, which receive half of all calls, so that writes are concurrent there. The entries of the
others have time to become stale in the cache."""

READERS = 3
"""Users who only read, because a writer spends most of a fault waiting."""

WRITERS = 5
PAGE = 50
LIST = 50
KEYED_ATTEMPTS = 4
CHAT_ATTEMPTS = 2
PAUSE_S = 0.03
RETRY_PAUSE_S = 0.1

NOTHING_WRITTEN = {"database_busy", "database_unavailable", "storage_full", "overloaded"}
"""Errors that promise that the request has written nothing."""

EXPECTED = NOTHING_WRITTEN | {
    "outcome_unknown", "deadline_exceeded", "shutting_down", "answer_not_stored", "conflict", "provider_unavailable",
    "provider_broken",
}  # fmt: skip
"""The error codes that clients may receive during faults; any other is a defect."""


class Workload:
    """Operations on conversations of a cluster, and their history."""

    def __init__(self, cluster: Cluster, seed: int, first: int = 1) -> None:
        """`first` is the number of its first content and key, which differ from those of other workloads."""
        self.cluster, self.random = cluster, random.Random(seed)
        self.events: list[Event] = []
        self.names: list[str] = []
        self.seen: Counter[str] = Counter()
        self.unexpected: list[str] = []
        self._numbers = itertools.count(first)

    async def prepare(self) -> None:
        """Create the conversations, before any fault."""
        for number in range(CONVERSATIONS):
            member = self.cluster.members[number % len(self.cluster.members)]
            contents = self._contents(2)
            start = time.monotonic()
            result = await member.call("conversation_append", messages=_messages(contents))
            name = str(result["continuation_id"])
            self.names.append(name)
            self.events.append(Append(name, contents, start, (_ack(result, "first_seq"),)))

    async def run(self, until: asyncio.Event) -> None:
        """Run all users until `until` is set; each finishes its current operation."""
        async with asyncio.TaskGroup() as group:
            for writes in [False] * READERS + [True] * WRITERS:
                group.create_task(self._user(random.Random(self.random.random()), until, writes=writes))

    async def live(self, limit_s: float) -> None:
        """Check that every operation succeeds through every daemon, and that reads hit the cache, within the limit."""
        end = time.monotonic() + limit_s
        for member in self.cluster.members:
            await self._until_well(member, "append", lambda member: self._append(member, self.names[0], 1, {}), end)
            await self._until_well(member, "older page", lambda member: self._older(member, self.names[0], 3), end)
            await self._until_well(member, "list", self._list, end)
            await self._until_well(member, "chat", lambda member: self._chat(member, self.names[0], {}), end)
            await self._until_well(member, "cached read", self._hit, end)
            for name in self.names:
                await self._until_well(member, "read", functools.partial(self._read, name=name), end)

    async def history(self, max_staleness_s: float, slack_s: float) -> History:
        """Return the history of the operations, with the stored rows."""
        asked = [
            Asked(tuple(message["content"] for message in chat.body["messages"]))
            for chat in self.cluster.provider.chats
        ]
        names = set(self.names)
        logs = {name: log for name, log in (await self.cluster.logs()).items() if name in names}
        applied = [each for each in self.cluster.applied() if each.conversation in names]
        own = [each for each in self.events if not isinstance(each, Listed) or each.conversation in names]
        return History([*own, *asked, *applied], logs, max_staleness_s, slack_s, tuple(self.cluster.forgotten))

    async def _user(self, rng: random.Random, until: asyncio.Event, *, writes: bool) -> None:
        while not until.is_set():
            if up := self.cluster.up:
                member, name = rng.choice(up), rng.choice(self.names[:HOT] if rng.random() < 0.5 else self.names[HOT:])
                if writes:
                    await self._operation(rng, member, name)
                else:
                    await self._tried("read", self._read(member, name))
            await asyncio.sleep(rng.expovariate(1 / PAUSE_S))

    async def _operation(self, rng: random.Random, member: Member, name: str) -> None:
        """Run one operation; expected errors are recorded, unexpected ones fail the run."""
        keyed = {"idempotency_key": f"key-{next(self._numbers)}"} if rng.random() < 0.5 else {}
        draw = rng.random()
        if draw < 0.5:
            await self._tried("read", self._read(member, name))
        elif draw < 0.55:
            await self._tried("older", self._older(member, name, rng.randint(2, 20)))
        elif draw < 0.6:
            await self._tried("list", self._list(member))
        elif draw < 0.85:
            await self._append(member, name, rng.randint(1, 4), keyed, rng)
        else:
            await self._chat(member, name, keyed, rng)

    async def _read(self, member: Member, name: str) -> bool:
        """Read the newest page; return whether it came from the cache."""
        start = time.monotonic()
        page = await member.call("conversation_get", continuation_id=name, limit=PAGE)
        self.events.append(_read(name, start, page, limit=PAGE))
        self.seen["read marked as stale"] += page["stale_s"] is not None
        return bool(page["source"] == "cache")

    async def _hit(self, member: Member) -> bool:
        return await self._read(member, self.names[1])

    async def _older(self, member: Member, name: str, before_seq: int) -> bool:
        start = time.monotonic()
        page = await member.call("conversation_get", continuation_id=name, limit=PAGE, before_seq=before_seq)
        self.events.append(_read(name, start, page, limit=PAGE, before_seq=before_seq))
        return True

    async def _list(self, member: Member) -> bool:
        start = time.monotonic()
        page = await member.call("conversation_list", limit=LIST)
        end = time.monotonic()
        self.events += [Listed(each["continuation_id"], start, end, each["messages"]) for each in page["conversations"]]
        return True

    async def _append(
        self, member: Member, name: str, size: int, keyed: dict[str, str], rng: random.Random | None = None
    ) -> bool:
        """Append messages; with a key, repeat until acknowledged, and sometimes once more after that."""
        contents = self._contents(size)
        start, acks, refused = time.monotonic(), [], True
        wanted = 2 if rng is not None and keyed and rng.random() < 0.2 else 1
        for _ in range(KEYED_ATTEMPTS if keyed else 1):
            try:
                result = await member.call(
                    "conversation_append", continuation_id=name, messages=_messages(contents), **keyed
                )
            except (Refused, Lost) as error:
                refused = self._failed("append", error) and refused
                await asyncio.sleep(RETRY_PAUSE_S)
            else:
                self.seen["append ok"] += 1
                acks.append(_ack(result, "first_seq"))
                if bool(result["duplicate"]) < (len(acks) > 1):
                    self.unexpected.append(f"{contents} was acknowledged twice as new")
            if len(acks) == wanted:
                break
            member = rng.choice(self.cluster.up or [member]) if rng is not None else member
        self.events.append(Append(name, contents, start, tuple(acks), refused and not acks))
        return bool(acks)

    async def _chat(self, member: Member, name: str, keyed: dict[str, str], rng: random.Random | None = None) -> bool:
        """Ask a question; with a key, repeat once if no answer was returned."""
        question = f"q{next(self._numbers)}"
        start, refused, attempts = time.monotonic(), True, 0
        acks: tuple[Ack, ...] = ()
        answers: tuple[str, ...] = ()
        while not acks and attempts < (CHAT_ATTEMPTS if keyed else 1):
            attempts += 1
            try:
                result = await member.call("chat", continuation_id=name, prompt=question, **keyed)
            except (Refused, Lost) as error:
                refused = self._failed("chat", error) and refused
                await asyncio.sleep(RETRY_PAUSE_S)
                member = rng.choice(self.cluster.up or [member]) if rng is not None else member
            else:
                self.seen["chat ok"] += 1
                acks, answers = (_ack(result, "seq"),), (str(result["content"]),)
        self.events.append(Turn(name, question, start, acks, answers, refused and not acks, attempts))
        return bool(acks)

    async def _tried(self, what: str, operation: Awaitable[bool], wanted: bool = False) -> bool:
        """Return whether the operation succeeded and, with `wanted`, returned true."""
        try:
            found = await operation
        except (Refused, Lost) as error:
            self._failed(what, error)
            return False
        self.seen[f"{what} ok"] += 1
        self.seen["read from the cache"] += found and what == "read"
        return found or not wanted

    async def _until_well(
        self, member: Member, what: str, operation: Callable[[Member], Awaitable[bool]], end: float
    ) -> None:
        while not await self._tried(what, operation(member), what == "cached read"):
            if time.monotonic() > end:
                raise AssertionError(f"daemon {member.name}: no {what} after everything was healed; {self.seen}")
            await asyncio.sleep(RETRY_PAUSE_S)

    def _failed(self, what: str, error: Refused | Lost) -> bool:
        """Record a failure; return whether it promises that nothing was written."""
        code = error.code if isinstance(error, Refused) else "lost"
        self.seen[f"{what} {code}"] += 1
        if code not in EXPECTED | {"lost"}:
            self.unexpected.append(f"{what}: {error}")
        return code in NOTHING_WRITTEN

    def _contents(self, size: int) -> tuple[str, ...]:
        number = next(self._numbers)
        return tuple(f"w{number}.{part}" for part in range(size))


def _ack(result: dict[str, Any], first: str) -> Ack:
    return Ack(time.monotonic(), result["by"], result[first], result.get("last_seq", result[first]))


def _messages(contents: tuple[str, ...]) -> list[dict[str, str]]:
    return [{"role": "user", "content": content} for content in contents]


def _read(name: str, start: float, page: dict[str, Any], *, limit: int, before_seq: int | None = None) -> Read:
    messages = page["messages"]
    return Read(
        conversation=name,
        by=page["by"],
        start=start,
        end=time.monotonic(),
        revision=page["revision"],
        seqs=tuple(message["seq"] for message in messages),
        contents=tuple(message["content"] for message in messages),
        next_before_seq=page["next_before_seq"],
        limit=limit,
        before_seq=before_seq,
        stale_s=page["stale_s"],
        source=page["source"],
    )
