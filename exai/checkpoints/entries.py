"""The newest checkpoint of a thread as the entry of a conversation, so that one cache protocol serves both.

A thread has the key of a conversation under a name that none can have, as it begins with U+0000. The messages of its
entry are what was stored: first the checkpoint with its values and the writes to it and to later checkpoints, then each
later change. A reader repeats the changes in their order.

Invariant: an entry at a revision, repeated, equals the newest checkpoint of namespace "" in the database at that
revision. A change for which that does not hold is applied without messages, which removes the entry.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from exai.cache.entry import Shown
from exai.cache.records import Loaded
from exai.db.checkpoints.records import (
    ChannelValue,
    CheckpointRecord,
    NewestCheckpoint,
    TaskWrite,
    ThreadRow,
    ThreadState,
)
from exai.db.checkpoints.rows import in_order
from exai.models import PAGE_MESSAGES, Commit, ContinuationId, Conversation, Message, Owner
from exai.pages import Undecodable
from exai.threads import thread_key

ROOT: Final = ""
"""The namespace of the graph itself, whose newest checkpoint is cached."""

NEVER: Final = datetime.fromtimestamp(0, UTC)
BASE64_GROWTH: Final = 4 / 3


@dataclass(frozen=True, slots=True)
class LoadedThread(Loaded):
    """What a read of the database has found, beside its form for the cache."""

    newest: NewestCheckpoint | None = None


def loaded_of(newest: NewestCheckpoint, most_bytes: int) -> LoadedThread:
    """Return a read for the cache; one that does not fit into an entry is not stored there."""
    thread = newest.thread
    fits = _size(newest.checkpoint, newest.writes) * BASE64_GROWTH < most_bytes
    messages = (_message(thread, newest.checkpoint, newest.writes),) if fits else ()
    # Without all messages it is not a whole page, and a page that is not whole is not stored.
    return LoadedThread(_header(thread), messages, complete=fits, server_epoch=thread.server_epoch, newest=newest)


def commit_of_thread(
    thread: ThreadRow,
    checkpoint: CheckpointRecord | None = None,
    writes: Sequence[TaskWrite] = (),
    *,
    adds_all: bool = True,
    most_bytes: int = 0,
) -> Commit:
    """Return the commit of a change, with what it has added if that is all that it did and an entry can hold it."""
    revision = thread.state.revision
    added: tuple[Message, ...] | None = None
    if adds_all:
        added = ()
        if checkpoint is not None or writes:
            fits = _size(checkpoint, writes) * BASE64_GROWTH < most_bytes
            added = (_message(thread, checkpoint, writes),) if fits else None
    return Commit(_header(thread), revision - 1, revision, thread.server_epoch, added)


def newest_of_entry(shown: Shown) -> NewestCheckpoint:
    """Return what an entry shows. Raises `Undecodable`."""
    conversation, messages = shown
    facts = conversation.metadata
    checkpoint: CheckpointRecord | None = None
    values: dict[tuple[str, str], ChannelValue] = {}
    writes: dict[tuple[str, str, int], TaskWrite] = {}
    try:
        thread = ThreadRow(
            conversation.id,
            conversation.owner,
            ThreadState(facts["thread_id"], conversation.revision, facts["ttl_s"], conversation.expires_at),
            tuple(facts["copied_from"]),
            facts["is_deleted"],
            "",
        )
        for message in messages:
            given, its_writes = _read(facts["thread_id"], message)
            for write in its_writes:
                writes[write.checkpoint_id, write.task_id, write.place] = write
            if given is not None:
                for value in given.values:
                    values.setdefault((value.channel, value.version), value)
                if checkpoint is None or given.checkpoint_id >= checkpoint.checkpoint_id:
                    checkpoint = given
    except (ValueError, TypeError, LookupError) as error:
        raise Undecodable("checkpoint") from error
    every = in_order(writes.values())
    if checkpoint is not None:
        its_values = [values.get(each) for each in checkpoint.versions.items()]
        own = tuple(each for each in every if each.checkpoint_id == checkpoint.checkpoint_id)
        every = tuple(each for each in every if each.checkpoint_id >= checkpoint.checkpoint_id)
        checkpoint = replace(checkpoint, values=tuple(each for each in its_values if each is not None), writes=own)
    return NewestCheckpoint(thread, checkpoint, every)


def lacks_values(newest: NewestCheckpoint) -> bool:
    """Return whether a checkpoint has a version whose value no change has brought.

    It may be stored since an earlier checkpoint, as after a fork, or nowhere.
    """
    checkpoint = newest.checkpoint
    return checkpoint is not None and len(checkpoint.values) < len(checkpoint.versions)


def same_thread(one: Shown, other: Shown) -> bool:
    """Return whether an entry shows what was loaded at its revision; true for one that readers do not use."""
    if len(one[1]) >= PAGE_MESSAGES:
        return True
    try:
        shown, loaded = newest_of_entry(one), newest_of_entry(other)
    except Undecodable:
        return False
    return lacks_values(shown) or not other[1] or _shown(shown) == _shown(loaded)


def is_gone(thread: ThreadRow, now: datetime) -> bool:
    """Return whether a thread is deleted, or its time has come."""
    expires_at = thread.state.expires_at
    return thread.is_deleted or (expires_at is not None and expires_at <= now)


def _shown(newest: NewestCheckpoint) -> CheckpointRecord | None:
    checkpoint = newest.checkpoint
    if checkpoint is None:
        return None
    return replace(checkpoint, values=tuple(sorted(checkpoint.values, key=lambda each: each.channel)))


def _header(thread: ThreadRow) -> Conversation:
    state = thread.state
    owner, name = thread_key(thread.owner, state.thread_id)
    metadata = {
        "thread_id": state.thread_id,
        "ttl_s": state.ttl_s,
        "copied_from": list(thread.copied_from),
        "is_deleted": thread.is_deleted,
    }
    return Conversation(
        id=thread.id,
        continuation_id=ContinuationId(name),
        owner=Owner(owner),
        title=None,
        metadata=metadata,
        last_seq=state.revision,
        revision=state.revision,
        created_at=NEVER,
        updated_at=NEVER,
        expires_at=state.expires_at,
    )


def _message(thread: ThreadRow, checkpoint: CheckpointRecord | None, writes: Sequence[TaskWrite]) -> Message:
    given: dict[str, Any] = {
        "writes": [[w.checkpoint_id, w.task_id, w.place, w.channel, w.type, _text(w.data), w.task_path] for w in writes]
    }
    if checkpoint is not None:
        given["checkpoint"] = {
            "checkpoint_id": checkpoint.checkpoint_id,
            "body_type": checkpoint.body_type,
            "body": _text(checkpoint.body),
            "metadata_type": checkpoint.metadata_type,
            "metadata": _text(checkpoint.metadata),
            "parent_id": checkpoint.parent_id,
            "run_id": checkpoint.run_id,
            "facts": dict(checkpoint.facts),
            "versions": dict(checkpoint.versions),
            "delta_channels": list(checkpoint.delta_channels),
            "values": [[v.channel, v.version, v.type, _text(v.data)] for v in checkpoint.values],
        }
    return Message(thread.state.revision, "system", orjson.dumps(given).decode(), NEVER, "checkpoint")


def _read(thread_id: str, message: Message) -> tuple[CheckpointRecord | None, list[TaskWrite]]:
    given = orjson.loads(message.content)
    writes = [
        TaskWrite(task_id, place, channel, type_, b64decode(data), task_path, checkpoint_id)
        for checkpoint_id, task_id, place, channel, type_, data, task_path in given["writes"]
    ]
    facts = given.get("checkpoint")
    if facts is None:
        return None, writes
    checkpoint = CheckpointRecord(
        thread_id=thread_id,
        checkpoint_id=facts["checkpoint_id"],
        body_type=facts["body_type"],
        body=b64decode(facts["body"]),
        metadata_type=facts["metadata_type"],
        metadata=b64decode(facts["metadata"]),
        parent_id=facts["parent_id"],
        run_id=facts["run_id"],
        facts=facts["facts"],
        versions=facts["versions"],
        delta_channels=tuple(facts["delta_channels"]),
        values=tuple(
            ChannelValue(name, version, type_, b64decode(data)) for name, version, type_, data in facts["values"]
        ),
    )
    return checkpoint, writes


def _text(data: bytes) -> str:
    return b64encode(data).decode()


def _size(checkpoint: CheckpointRecord | None, writes: Sequence[TaskWrite]) -> int:
    size_bytes = sum(len(each.data) for each in writes)
    if checkpoint is not None:
        size_bytes += (
            len(checkpoint.body) + len(checkpoint.metadata) + sum(len(each.data) for each in checkpoint.values)
        )
    return size_bytes
