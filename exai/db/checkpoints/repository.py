"""Store, read and remove checkpoints; each method is one statement and one round trip.

Invariant: a method with an owner accesses only that owner's rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import orjson

from exai.db.checkpoints.records import (
    ChannelHistory,
    ChannelValue,
    CheckpointPage,
    CheckpointRecord,
    NewestCheckpoint,
    TaskWrite,
    ThreadChange,
    ThreadRow,
)
from exai.db.checkpoints.rows import (
    checkpoint_of,
    in_order,
    page_of_checkpoints,
    row_of,
    thread_of,
    value_of,
    value_place,
    write_of,
    write_place,
)
from exai.db.checkpoints.sealing import VALUE, WRITE, CheckpointSeal
from exai.db.driver.pool import Database
from exai.encryption.places import key_name
from exai.errors import InvalidArgument
from exai.models import Owner

PAGE_BYTES: Final = 16 * 1_048_576
"""Of the values of one page of a list; a page has one checkpoint at least."""

MAX_CHECKPOINTS: Final = 100
"""Maximum number of checkpoints in a page of a list."""

BATCH: Final = 100
KEPT_DELETED_S: Final = 3_600.0
"""How long the row of a deleted thread is kept: longer than a cache serves what was before."""

CheckpointPlace = tuple[str, str, str]
"""A checkpoint by its thread, namespace and id; in cursors by its id, the id of the thread's row, and namespace."""


class CheckpointRepository:
    """Threads and their checkpoints, in Postgres."""

    def __init__(self, database: Database) -> None:
        self._database, self._codec = database, database.codec

    async def put(self, owner: Owner, checkpoint: CheckpointRecord, ttl_s: float | None) -> ThreadChange:
        """Store a checkpoint and the values that it brings. Raises `DatabaseError`."""
        seal, name = CheckpointSeal(self._codec, owner, checkpoint.thread_id), key_name(self._codec)
        values, namespace = checkpoint.values, checkpoint.namespace
        rows = await self._database.fetch(
            "put_checkpoint", owner, checkpoint.thread_id, ttl_s, *row_of(checkpoint, seal, name),
            [each.channel for each in values], [each.version for each in values], [each.type for each in values],
            [seal.sealed(VALUE, value_place(namespace, each.channel, each.version), each.data) for each in values],
        )  # fmt: skip
        return _change(owner, rows[0], len(values))

    async def put_writes(
        self, owner: Owner, at: CheckpointPlace, writes: Sequence[TaskWrite], *, replaces: bool, ttl_s: float | None
    ) -> ThreadChange:
        """Store what one task has written to the checkpoint of a thread and a namespace. Raises `DatabaseError`."""
        thread_id, namespace, checkpoint_id = at
        seal, task_id, task_path = CheckpointSeal(self._codec, owner, thread_id), writes[0].task_id, writes[0].task_path
        places = [write_place(namespace, checkpoint_id, task_id, each.place) for each in writes]
        rows = await self._database.fetch(
            "put_writes", owner, thread_id, ttl_s, namespace, checkpoint_id, task_id, task_path, replaces,
            key_name(self._codec), [each.place for each in writes], [each.channel for each in writes],
            [each.type for each in writes],
            [seal.sealed(WRITE, place, each.data) for place, each in zip(places, writes, strict=True)],
        )  # fmt: skip
        return _change(owner, rows[0], len(writes))

    async def read(
        self, owner: Owner, thread_id: str, namespace: str, checkpoint_id: str | None
    ) -> NewestCheckpoint | None:
        """Return a checkpoint, None for the newest, with its thread; None if there is no such thread.

        Raises `DatabaseError`, and `ContentUnreadable` if it cannot be decrypted.
        """
        rows = await self._database.fetch("read_checkpoint", owner, thread_id, namespace, checkpoint_id)
        parts: dict[str, list[tuple[Mapping[str, Any], Any]]] = {}
        for row in rows:
            parts.setdefault(row["part"], []).append((orjson.loads(row["facts"]), row))
        if "thread" not in parts:
            return None
        thread = thread_of(owner, parts["thread"][0][1]["facts"])
        seal = CheckpointSeal(self._codec, owner, thread_id, thread.copied_from)
        values = tuple(value_of(facts, row, seal) for facts, row in parts.get("value", ()))
        writes = in_order(write_of(facts, row, seal) for facts, row in parts.get("write", ()))
        checkpoint = None
        for facts, row in parts.get("checkpoint", ()):
            checkpoint = checkpoint_of(facts, row, thread_id, seal)
            own = tuple(each for each in writes if each.checkpoint_id == checkpoint.checkpoint_id)
            checkpoint = replace(checkpoint, values=values, writes=own)
        return NewestCheckpoint(thread, checkpoint, writes)

    async def list(
        self,
        owner: Owner,
        *,
        thread_id: str | None,
        namespace: str | None,
        checkpoint_id: str | None,
        facts: Mapping[str, Any] | None,
        before: str | None,
        limit: int,
        cursor: str | None,
    ) -> CheckpointPage:
        """Return a page of checkpoints, newest first, of one thread or of all, fewer than `limit` if they are large.

        Facts that are encrypted are compared here, so that a page may be empty and have a next one. Raises
        `DatabaseError`, `InvalidArgument` for the cursor, and `ContentUnreadable`.
        """
        wanted = None if not facts or self._codec.is_on else orjson.dumps(facts).decode()
        rows = await self._database.fetch(
            "list_checkpoints", owner, thread_id, namespace, checkpoint_id, wanted, before,
            *(_place(cursor) if cursor else (None, None, None)), limit, PAGE_BYTES,
        )  # fmt: skip

        def seal_of(name: str, copied_from: Sequence[str]) -> CheckpointSeal:
            return CheckpointSeal(self._codec, owner, name, copied_from)

        found = [each for _, each in page_of_checkpoints([row for row in rows if row["part"] != "next"], seal_of)]
        if facts and self._codec.is_on:
            found = [each for each in found if contains(each.facts, facts)]
        last = [row for row in rows if row["part"] == "next"]
        return CheckpointPage(tuple(found), _cursor(last[0]) if last else None)

    async def ancestry(self, owner: Owner, at: CheckpointPlace, channels: Sequence[str]) -> tuple[ChannelHistory, ...]:
        """Return what the ancestors of a checkpoint have written to channels. Raises as `read`."""
        thread_id, namespace, checkpoint_id = at
        rows = await self._database.fetch(
            "read_ancestry", owner, thread_id, namespace, checkpoint_id, list(dict.fromkeys(channels))
        )
        heads = [row for row in rows if row["part"] == "thread"]
        copied_from = thread_of(owner, heads[0]["facts"]).copied_from if heads else ()
        seal = CheckpointSeal(self._codec, owner, thread_id, copied_from)
        values: dict[str, ChannelValue] = {}
        writes: dict[str, list[tuple[int, TaskWrite]]] = {}
        for row in rows:
            facts = orjson.loads(row["facts"])
            if row["part"] == "value":
                values[facts["channel"]] = value_of(facts, row, seal)
            elif row["part"] == "write":
                writes.setdefault(facts["channel"], []).append((row["step"], write_of(facts, row, seal)))
        return tuple(
            ChannelHistory(name, _oldest_first(writes.get(name, ())), values.get(name))
            for name in dict.fromkeys(channels)
        )

    async def prune(
        self, owner: Owner, thread_ids: Sequence[str], *, keeps_newest: bool, runs: Sequence[str] | None = None
    ) -> tuple[ThreadRow, ...]:
        """Remove checkpoints, and return the changed threads: all, all but what is needed for the newest, or of runs.

        Raises `DatabaseError`.
        """
        given = None if runs is None else list(runs)
        rows = await self._database.fetch("prune_threads", owner, list(thread_ids), keeps_newest, given)
        return tuple(thread_of(owner, row["head"]) for row in rows)

    async def copy(self, owner: Owner, source: str, target: str) -> tuple[ThreadRow | None, bool]:
        """Copy a thread; return the other one, and whether it holds something else. Raises `DatabaseError`."""
        rows = await self._database.fetch("copy_thread", owner, source, target)
        return (thread_of(owner, rows[0]["head"]), rows[0]["is_taken"]) if rows else (None, False)

    async def extend(self, owner: Owner, thread_id: str, ttl_s: float | None) -> ThreadRow | None:
        """Let the time to live begin anew; return the thread, None if there is none. Raises `DatabaseError`."""
        rows = await self._database.fetch("extend_thread", owner, thread_id, ttl_s)
        return thread_of(owner, rows[0]["head"]) if rows else None

    async def expire(
        self, owner: Owner | None = None, *, idle_s: float | None = None, but: Sequence[Owner] = (), limit: int = BATCH
    ) -> int:
        """Delete the contents of threads whose time has come, or that are idle; return the number of them."""
        return int((await self._database.fetch("expire_threads", owner, idle_s, list(but), limit))[0]["expired"])

    async def count_expiring(
        self, owner: Owner | None = None, *, idle_s: float | None = None, but: Sequence[Owner] = ()
    ) -> int:
        """Return how many threads `expire` would empty in all."""
        return int((await self._database.fetch("count_expiring_threads", owner, idle_s, list(but)))[0]["expired"])

    async def purge(self, *, after_s: float = KEPT_DELETED_S, limit: int = BATCH) -> int:
        """Delete the rows of deleted threads; return their number."""
        return int((await self._database.fetch("purge_threads", after_s, limit))[0]["removed"])


def contains(facts: Any, wanted: Any) -> bool:
    """Return whether JSON contains other JSON, as the operator `@>` of Postgres defines it for objects and lists."""
    if isinstance(wanted, Mapping):
        return isinstance(facts, Mapping) and all(
            name in facts and contains(facts[name], each) for name, each in wanted.items()
        )
    if isinstance(wanted, list):
        return isinstance(facts, list) and all(any(contains(one, each) for one in facts) for each in wanted)
    return isinstance(facts, bool) == isinstance(wanted, bool) and facts == wanted


def _change(owner: Owner, row: Any, given: int) -> ThreadChange:
    return ThreadChange(thread_of(owner, row["head"]), adds_all=not row["is_new"] and row["stored"] == given)


def _oldest_first(writes: Sequence[tuple[int, TaskWrite]]) -> tuple[TaskWrite, ...]:
    ordered = sorted(writes, key=lambda each: (-each[0], each[1].task_path, each[1].task_id, each[1].place))
    return tuple(each for _, each in ordered)


def _cursor(row: Any) -> str:
    facts = orjson.loads(row["facts"])
    return orjson.dumps([facts["checkpoint_id"], row["thread"], facts["namespace"]]).decode()


def _place(cursor: str) -> CheckpointPlace:
    try:
        checkpoint_id, thread, namespace = orjson.loads(cursor)
        if {type(checkpoint_id), type(thread), type(namespace)} != {str} or len(thread) != 36:
            raise ValueError(cursor)
    except (ValueError, TypeError):
        raise InvalidArgument("cursor", "is not one of a list of checkpoints", "Use next_cursor as it was") from None
    return checkpoint_id, thread, namespace
