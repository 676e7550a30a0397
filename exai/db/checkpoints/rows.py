"""Rows of the statements for checkpoints, as records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import orjson

from exai.db.checkpoints.records import ChannelValue, CheckpointRecord, TaskWrite, ThreadRow, ThreadState
from exai.db.checkpoints.sealing import BODY, METADATA, VALUE, WRITE, CheckpointSeal
from exai.db.driver.pool import Record
from exai.models import ConversationId, Owner

CheckpointKey = tuple[str, str, str]
"""Id of the thread, namespace and checkpoint."""


def thread_of(owner: Owner, head: str) -> ThreadRow:
    """Return the thread that a statement describes."""
    facts: dict[str, Any] = orjson.loads(head)
    expires_at = facts["expires_at"]
    return ThreadRow(
        id=ConversationId(facts["id"]),
        owner=owner,
        state=ThreadState(
            thread_id=facts["thread_id"],
            revision=facts["revision"],
            ttl_s=facts["ttl_s"],
            expires_at=None if expires_at is None else datetime.fromtimestamp(expires_at, UTC),
        ),
        copied_from=tuple(facts["copied_from"]),
        is_deleted=facts["is_deleted"],
        server_epoch=facts["server_epoch"],
    )


def row_of(checkpoint: CheckpointRecord, seal: CheckpointSeal, key_name: str | None) -> tuple[str, bytes, bytes]:
    """Return the fields of a checkpoint as JSON, its body and its metadata, as they are stored."""
    place = (checkpoint.namespace, checkpoint.checkpoint_id)
    fields = {
        "namespace": checkpoint.namespace,
        "checkpoint_id": checkpoint.checkpoint_id,
        "parent_id": checkpoint.parent_id,
        "run_id": checkpoint.run_id,
        "body_type": checkpoint.body_type,
        "metadata_type": checkpoint.metadata_type,
        "facts": dict(seal.document(place, checkpoint.facts)),
        "versions": dict(checkpoint.versions),
        "delta_channels": list(checkpoint.delta_channels),
        "key_name": key_name,
    }
    body = seal.sealed(BODY, place, checkpoint.body)
    return orjson.dumps(fields).decode(), body, seal.sealed(METADATA, place, checkpoint.metadata)


def value_place(namespace: str, channel: str, version: str) -> tuple[str, ...]:
    """Return what the value of a channel is bound to."""
    return (namespace, channel, version)


def write_place(namespace: str, checkpoint_id: str, task_id: str, place: int) -> tuple[str, ...]:
    """Return what a write is bound to."""
    return (namespace, checkpoint_id, task_id, str(place))


def checkpoint_of(facts: Mapping[str, Any], row: Record, thread_id: str, seal: CheckpointSeal) -> CheckpointRecord:
    """Return the checkpoint of a row, without values and writes. Raises `ContentUnreadable`."""
    place = (facts["namespace"], facts["checkpoint_id"])
    key_name, bound_to = row["key_name"], row["bound_to"]
    return CheckpointRecord(
        thread_id=thread_id,
        checkpoint_id=facts["checkpoint_id"],
        body_type=facts["body_type"],
        body=seal.opened(BODY, place, row["data"], key_name, bound_to),
        metadata_type=facts["metadata_type"],
        metadata=seal.opened(METADATA, place, row["metadata"], key_name, bound_to),
        namespace=facts["namespace"],
        parent_id=facts["parent_id"],
        run_id=facts["run_id"],
        facts=seal.opened_document(place, facts["facts"], bound_to),
        versions=facts["versions"],
        delta_channels=tuple(facts["delta_channels"]),
    )


def value_of(facts: Mapping[str, Any], row: Record, seal: CheckpointSeal) -> ChannelValue:
    """Return the value of a row. Raises `ContentUnreadable`."""
    place = value_place(facts["namespace"], facts["channel"], facts["version"])
    data = seal.opened(VALUE, place, row["data"], row["key_name"], row["bound_to"])
    return ChannelValue(facts["channel"], facts["version"], facts["type"], data)


def write_of(facts: Mapping[str, Any], row: Record, seal: CheckpointSeal) -> TaskWrite:
    """Return the write of a row. Raises `ContentUnreadable`."""
    place = write_place(facts["namespace"], facts["checkpoint_id"], facts["task_id"], facts["place"])
    data = seal.opened(WRITE, place, row["data"], row["key_name"], row["bound_to"])
    return TaskWrite(
        task_id=facts["task_id"],
        place=facts["place"],
        channel=facts["channel"],
        type=facts["type"],
        data=data,
        task_path=facts["task_path"],
        checkpoint_id=facts["checkpoint_id"],
    )


def in_order(writes: Iterable[TaskWrite]) -> tuple[TaskWrite, ...]:
    """Return writes in the order in which a step applies them."""
    return tuple(sorted(writes, key=lambda each: (each.checkpoint_id, each.task_path, each.task_id, each.place)))


def page_of_checkpoints(
    rows: Sequence[Record], seal_of: Callable[[str, Sequence[str]], CheckpointSeal]
) -> Iterable[tuple[CheckpointKey, CheckpointRecord]]:
    """Yield the checkpoints of a list, with their values and writes, newest first. Raises `ContentUnreadable`."""
    parsed = [(row, orjson.loads(row["facts"])) for row in rows]
    seals: dict[str, CheckpointSeal] = {}
    found = []
    for row, facts in parsed:
        if row["part"] == "checkpoint":
            seal = seals.setdefault(row["thread"], seal_of(facts["thread_id"], facts["copied_from"]))
            checkpoint = checkpoint_of(facts, row, facts["thread_id"], seal)
            found.append(((row["thread"], checkpoint.namespace, checkpoint.checkpoint_id), checkpoint))
    values: dict[tuple[str, str, str, str], ChannelValue] = {}
    writes: dict[CheckpointKey, list[TaskWrite]] = {}
    for row, facts in parsed:
        if row["part"] == "value":
            value = value_of(facts, row, seals[row["thread"]])
            values[row["thread"], facts["namespace"], value.channel, value.version] = value
        elif row["part"] == "write":
            write = write_of(facts, row, seals[row["thread"]])
            writes.setdefault((row["thread"], facts["namespace"], write.checkpoint_id), []).append(write)
    for key, checkpoint in sorted(found, key=lambda each: (each[0][2], each[0][0], each[0][1]), reverse=True):
        place = key[:2]
        its_values = [values.get((*place, channel, version)) for channel, version in checkpoint.versions.items()]
        yield (
            key,
            replace(
                checkpoint,
                values=tuple(each for each in its_values if each is not None),
                writes=in_order(writes.get(key, ())),
            ),
        )
