"""The store of agents' checkpoints, for the adapters of frameworks.

Bytes are those of the caller's serializer; nothing here reads them. The newest checkpoint of a thread's own graph is
cached by the protocol of conversations.

Invariant: every method takes an owner, accesses only that owner's rows, and is one statement. A read that follows an
acknowledged write of any daemon shows it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, cast

from exai.cache.conversations import NO_REVISION, ConversationCache
from exai.cache.records import Hit, Loaded, Miss
from exai.checkpoints.entries import (
    ROOT,
    LoadedThread,
    commit_of_thread,
    is_gone,
    lacks_values,
    loaded_of,
    newest_of_entry,
    same_thread,
)
from exai.db.checkpoints.records import (
    ChannelHistory,
    ChannelValue,
    CheckpointPage,
    CheckpointRecord,
    NewestCheckpoint,
    TaskWrite,
    ThreadRow,
    ThreadState,
)
from exai.db.checkpoints.repository import MAX_CHECKPOINTS, CheckpointRepository
from exai.errors import Conflict, InvalidArgument, NotFound
from exai.models import Owner
from exai.pages import Undecodable
from exai.threads import thread_key
from exai.validation import (
    check_duration,
    check_name,
    check_number,
    check_optional_name,
    check_optional_number,
    check_owner,
    check_text,
)

MAX_THREAD_CHARS: Final = 500
MAX_NAMESPACE_BYTES: Final = 1_000
MAX_ID_BYTES: Final = 200
"""Of a checkpoint, a task, a run and a version."""

MAX_CHANNEL_BYTES: Final = 800
MAX_PUT_BYTES: Final = 256 * 1_048_576
"""Of everything that one call stores; Postgres takes four times as much."""

MAX_TTL_S: Final = 100 * 366 * 86_400.0
MAX_RUNS: Final = 10_000
"""Of runs or threads that one call names."""

MAX_CURSOR_BYTES: Final = 4_000
EXTENDED_AFTER: Final = 1 / 16
"""Part of the time to live after which a read lets it begin anew, so that most reads write nothing."""


class CheckpointStore:
    """Stores, reads, lists, copies and removes checkpoints.

    Built by `exai.app.open_app`; safe for any number of tasks of one event loop.
    """

    def __init__(self, repository: CheckpointRepository, cache: ConversationCache, *, entry_max_bytes: int) -> None:
        self._repository, self._cache, self._entry_bytes = repository, cache, entry_max_bytes

    async def put(self, owner: Owner, checkpoint: CheckpointRecord, *, ttl_s: float | None = None) -> ThreadState:
        """Store a checkpoint with the values of its channels' new versions: 1 round trip.

        A checkpoint with this id is replaced. A version that is stored already keeps its value. `ttl_s` is the time
        after which the contents of the thread are gone unless something else is stored; it stays as it is without one.
        Raises `InvalidArgument` and `DatabaseError`.
        """
        _check_place(owner, checkpoint.thread_id, checkpoint.namespace)
        _check_id("checkpoint_id", checkpoint.checkpoint_id)
        for field, value in (("parent_id", checkpoint.parent_id), ("run_id", checkpoint.run_id)):
            if value is not None:
                _check_id(field, value)
        for channel, version in checkpoint.versions.items():
            _check_channel(channel)
            _check_id(f"versions[{channel}]", version)
        _check_values(checkpoint)
        _check_ttl(ttl_s)
        change = await self._repository.put(owner, checkpoint, ttl_s)
        is_root = checkpoint.namespace == ROOT
        await self._apply(change.thread, checkpoint if is_root else None, adds_all=change.adds_all or not is_root)
        return change.thread.state

    async def put_writes(
        self,
        owner: Owner,
        thread_id: str,
        checkpoint_id: str,
        writes: Sequence[TaskWrite],
        *,
        namespace: str = ROOT,
        replaces: bool = False,
        ttl_s: float | None = None,
    ) -> ThreadState | None:
        """Store what one task has written after a checkpoint, which may be stored later: 1 round trip.

        Writes that are stored already stay, or with `replaces` take the new value. Raises as `put`.
        """
        _check_place(owner, thread_id, namespace)
        _check_id("checkpoint_id", checkpoint_id)
        _check_writes(writes)
        _check_ttl(ttl_s)
        if not writes:
            return None
        at = (thread_id, namespace, checkpoint_id)
        given = [_at(each, checkpoint_id) for each in writes]
        change = await self._repository.put_writes(owner, at, given, replaces=replaces, ttl_s=ttl_s)
        is_root = namespace == ROOT
        await self._apply(change.thread, writes=given if is_root else (), adds_all=change.adds_all or not is_root)
        return change.thread.state

    async def get(
        self,
        owner: Owner,
        thread_id: str,
        *,
        namespace: str = ROOT,
        checkpoint_id: str | None = None,
        extends: bool = False,
    ) -> CheckpointRecord | None:
        """Return a checkpoint, the newest without an id, with values and writes; None if there is none.

        1 round trip, 0 for the newest of a thread's own graph while the cache has it. With `extends` the thread's time
        to live begins anew, for 1 more when a sixteenth of it has passed. Raises `DatabaseError`, and
        `ContentUnreadable` if it cannot be decrypted.
        """
        _check_place(owner, thread_id, namespace)
        if checkpoint_id is not None:
            _check_id("checkpoint_id", checkpoint_id)
        if checkpoint_id is None and namespace == ROOT:
            newest = await self._newest(owner, thread_id)
        else:
            newest = await self._repository.read(owner, thread_id, namespace, checkpoint_id)
        if newest is None or newest.checkpoint is None or is_gone(newest.thread, datetime.now(UTC)):
            return None
        if extends:
            await self._extend(owner, newest.thread.state)
        return newest.checkpoint

    async def list(
        self,
        owner: Owner,
        *,
        thread_id: str | None = None,
        namespace: str | None = None,
        checkpoint_id: str | None = None,
        facts: Mapping[str, Any] | None = None,
        before: str | None = None,
        limit: int = MAX_CHECKPOINTS,
        cursor: str | None = None,
    ) -> CheckpointPage:
        """Return a page of checkpoints, newest first, of a thread or of all, with values and writes: 1 round trip.

        `facts` are contained in those of each. `before` is the id of a later checkpoint. A page has fewer than `limit`
        if they are large, or if facts are encrypted; the last one has no `next_cursor`. Raises as `get`.
        """
        check_owner(owner)
        check_number("limit", limit, 1, MAX_CHECKPOINTS)
        check_optional_name("thread_id", thread_id, MAX_THREAD_CHARS)
        for field, value, most in (
            ("namespace", namespace, MAX_NAMESPACE_BYTES),
            ("checkpoint_id", checkpoint_id, MAX_ID_BYTES),
            ("before", before, MAX_ID_BYTES),
            ("cursor", cursor, MAX_CURSOR_BYTES),
        ):
            if value is not None:
                check_text(field, value, most)
        return await self._repository.list(
            owner,
            thread_id=thread_id,
            namespace=namespace,
            checkpoint_id=checkpoint_id,
            facts=facts,
            before=before,
            limit=limit,
            cursor=cursor,
        )

    async def ancestry(
        self, owner: Owner, thread_id: str, checkpoint_id: str, channels: Sequence[str], *, namespace: str = ROOT
    ) -> tuple[ChannelHistory, ...]:
        """Return what the ancestors of a checkpoint have written to channels, since the nearest value: 1 round trip.

        Raises as `get`.
        """
        _check_place(owner, thread_id, namespace)
        _check_id("checkpoint_id", checkpoint_id)
        for each in channels:
            _check_channel(each)
        return await self._repository.ancestry(owner, (thread_id, namespace, checkpoint_id), channels)

    async def prune(
        self,
        owner: Owner,
        thread_ids: Sequence[str] = (),
        *,
        keeps_newest: bool = False,
        run_ids: Sequence[str] | None = None,
    ) -> int:
        """Remove all checkpoints of threads, or all but those that the newest of each namespace needs: 1 round trip.

        A channel that is rebuilt from what was written keeps the ancestors that it needs. With `run_ids` the
        checkpoints of these runs are removed instead, in any thread. Returns the number of threads that have changed.
        Raises `InvalidArgument` and `DatabaseError`.
        """
        check_owner(owner)
        _check_names("thread_ids", thread_ids)
        if run_ids is not None:
            _check_names("run_ids", run_ids)
            if thread_ids or keeps_newest:
                raise InvalidArgument(
                    "run_ids", "name checkpoints in any thread", "Leave thread_ids and keeps_newest out"
                )
        changed = await self._repository.prune(owner, thread_ids, keeps_newest=keeps_newest, runs=run_ids)
        return await self._applied(changed)

    async def copy(self, owner: Owner, source: str, target: str) -> ThreadState | None:
        """Copy all checkpoints of a thread into another one: 1 round trip. Returns None if the first one has none.

        Raises `Conflict` if the other thread has checkpoints of its own, and `DatabaseError`.
        """
        check_owner(owner)
        check_name("source", source, MAX_THREAD_CHARS)
        check_name("target", target, MAX_THREAD_CHARS)
        thread, is_taken = await self._repository.copy(owner, source, target)
        if is_taken:
            raise Conflict(f"thread {target}", "it has checkpoints of its own", "Delete it first, or copy to another")
        if thread is None:
            return None
        await self._applied((thread,))
        return thread.state

    async def _newest(self, owner: Owner, thread_id: str) -> NewestCheckpoint | None:
        key = thread_key(owner, thread_id)

        async def load() -> Loaded:
            newest = await self._repository.read(owner, thread_id, ROOT, None)
            if newest is None:
                raise NotFound("thread", thread_id, "A checkpoint makes it")
            return loaded_of(newest, self._entry_bytes)

        try:
            found, _ = await self._cache.read_through(key, load, is_same=same_thread)
            if isinstance(found, Hit):
                if (newest := _shown(found)) is not None:
                    return newest
                # Too many changes for an entry, or a value from before it: it is replaced.
                miss = await self._cache.read(key, min_revision=NO_REVISION)
                found = await load()
                if isinstance(miss, Miss):
                    await self._cache.fill(key, miss, found)
        except NotFound:
            return None
        return cast("LoadedThread", found).newest

    async def _extend(self, owner: Owner, state: ThreadState) -> None:
        if state.ttl_s is None or state.expires_at is None:
            return
        left_s = (state.expires_at - datetime.now(UTC)).total_seconds()
        if left_s <= state.ttl_s * (1 - EXTENDED_AFTER):
            thread = await self._repository.extend(owner, state.thread_id, None)
            if thread is not None:
                await self._apply(thread)

    async def _apply(
        self,
        thread: ThreadRow,
        checkpoint: CheckpointRecord | None = None,
        *,
        writes: Sequence[TaskWrite] = (),
        adds_all: bool = True,
    ) -> None:
        commit = commit_of_thread(thread, checkpoint, writes, adds_all=adds_all, most_bytes=self._entry_bytes)
        await self._cache.apply(commit)

    async def _applied(self, threads: Iterable[ThreadRow]) -> int:
        number = 0
        for thread in threads:
            await self._apply(thread, adds_all=False)
            number += 1
        return number


def _shown(hit: Hit) -> NewestCheckpoint | None:
    """Return what an entry shows, None if it is not complete."""
    if not hit.complete:
        return None
    try:
        newest = newest_of_entry((hit.conversation, hit.messages))
    except Undecodable:
        return None
    return None if lacks_values(newest) and len(hit.messages) > 1 else newest


def _at(write: TaskWrite, checkpoint_id: str) -> TaskWrite:
    return TaskWrite(write.task_id, write.place, write.channel, write.type, write.data, write.task_path, checkpoint_id)


def _check_place(owner: Owner, thread_id: str, namespace: str) -> None:
    check_owner(owner)
    check_name("thread_id", thread_id, MAX_THREAD_CHARS)
    check_text("namespace", namespace, MAX_NAMESPACE_BYTES)


def _check_id(field: str, value: str) -> None:
    if not check_text(field, value, MAX_ID_BYTES):
        raise InvalidArgument(field, "is empty", "Give it a value")


def _check_channel(name: str) -> None:
    if not check_text("channel", name, MAX_CHANNEL_BYTES):
        raise InvalidArgument("channel", "is empty", "Give it a name")


def _check_values(checkpoint: CheckpointRecord) -> None:
    size_bytes = len(checkpoint.body) + len(checkpoint.metadata)
    check_text("body_type", checkpoint.body_type, MAX_ID_BYTES)
    check_text("metadata_type", checkpoint.metadata_type, MAX_ID_BYTES)
    seen: set[tuple[str, str]] = set()
    for each in checkpoint.values:
        _check_channel(each.channel)
        _check_id(f"values[{each.channel}].version", each.version)
        check_text(f"values[{each.channel}].type", each.type, MAX_ID_BYTES)
        if (each.channel, each.version) in seen:
            raise InvalidArgument("values", f"hold {each.channel!r} twice in one version", "Give each value once")
        seen.add((each.channel, each.version))
    _check_size("values", size_bytes, checkpoint.values)


def _check_writes(writes: Sequence[TaskWrite]) -> None:
    places = set()
    for each in writes:
        _check_id("task_id", each.task_id)
        check_text("task_path", each.task_path, MAX_PUT_BYTES)
        check_number("place", each.place, -(2**31), 2**31 - 1)
        _check_channel(each.channel)
        check_text("type", each.type, MAX_ID_BYTES)
        places.add(each.place)
    if len(places) < len(writes) or len({(each.task_id, each.task_path) for each in writes}) > 1:
        raise InvalidArgument("writes", "are not those of one task, or not numbered", "Number the writes of one task")
    _check_size("writes", 0, writes)


def _check_size(field: str, size_bytes: int, items: Sequence[ChannelValue | TaskWrite]) -> None:
    size_bytes += sum(len(each.data) for each in items)
    if size_bytes > MAX_PUT_BYTES:
        problem = f"and the checkpoint are {size_bytes:,} bytes; the limit is {MAX_PUT_BYTES:,}"
        raise InvalidArgument(field, problem, "Keep large content in files, and their ids in the state")


def _check_ttl(ttl_s: float | None) -> None:
    if ttl_s is not None:
        check_duration("ttl_s", ttl_s, MAX_TTL_S)


def _check_names(field: str, names: Sequence[str]) -> None:
    check_optional_number(f"the number of {field}", len(names), 0, MAX_RUNS)
    for each in names:
        check_name(field, each, MAX_THREAD_CHARS)
