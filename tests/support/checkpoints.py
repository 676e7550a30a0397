"""Checkpoints as an adapter stores them."""

from __future__ import annotations

from typing import Any

from exai.checkpoints import CheckpointStore
from exai.db.checkpoints.records import ChannelValue, CheckpointRecord, TaskWrite
from exai.models import LOCAL_OWNER, Owner


def checkpoint(
    checkpoint_id: str = "1", text: str = "a value", *, thread_id: str = "thread", version: str = "1", **more: Any
) -> CheckpointRecord:
    """A checkpoint with one channel, and the text in everything that holds content."""
    data = text.encode()
    facts = more.pop("facts", {"source": text, "step": 1})
    value = ChannelValue("messages", version, "bytes", data)
    fields: dict[str, Any] = {"versions": {"messages": version}, "values": (value,), **more}
    return CheckpointRecord(thread_id, checkpoint_id, "bytes", data, "bytes", data, facts=facts, **fields)


def task_writes(text: str, *channels: str, task_id: str = "task", task_path: str = "path") -> list[TaskWrite]:
    """Writes of a task to channels, numbered from 0."""
    return [
        TaskWrite(task_id, place, channel, "bytes", text.encode(), task_path) for place, channel in enumerate(channels)
    ]


async def store_checkpoint(
    store: CheckpointStore, text: str, *, owner: Owner = LOCAL_OWNER, thread_id: str = "thread"
) -> None:
    """Store a checkpoint with one value and one write."""
    await store.put(owner, checkpoint("1", text, thread_id=thread_id))
    await store.put_writes(owner, thread_id, "1", task_writes(text, "messages"))
