"""Values of the checkpoint store: what callers give and receive. Bytes are those of the caller's serializer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from exai.models import ConversationId, Owner

EMPTY: Final = "empty"
"""The type of a value that says that a channel holds nothing in a version."""


@dataclass(frozen=True, slots=True)
class ChannelValue:
    """The value of a channel in a version; `type` is what the serializer calls the form of `data`."""

    channel: str
    version: str
    type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class TaskWrite:
    """What a task of a step has written to a channel; `place` numbers the writes of a task."""

    task_id: str
    place: int
    channel: str
    type: str
    data: bytes
    task_path: str = ""
    checkpoint_id: str = ""


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """A checkpoint of a thread.

    `versions` names the version of each channel. `values` are, of one that is stored, those whose version is new; of
    one that is read, those of all versions. `facts` are the metadata by which lists are filtered. `delta_channels` are
    rebuilt from what the ancestors of the checkpoint have written.
    """

    thread_id: str
    checkpoint_id: str
    body_type: str
    body: bytes
    metadata_type: str
    metadata: bytes
    namespace: str = ""
    parent_id: str | None = None
    run_id: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    delta_channels: tuple[str, ...] = ()
    values: tuple[ChannelValue, ...] = ()
    writes: tuple[TaskWrite, ...] = ()


@dataclass(frozen=True, slots=True)
class CheckpointPage:
    """A page of checkpoints, newest first; `next_cursor` is None on the last one."""

    checkpoints: tuple[CheckpointRecord, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class ChannelHistory:
    """What the ancestors of a checkpoint have written to a channel, oldest first, since `value` (None: since ever)."""

    channel: str
    writes: tuple[TaskWrite, ...]
    value: ChannelValue | None


@dataclass(frozen=True, slots=True)
class ThreadState:
    """A thread as of `revision`; its contents are gone at `expires_at`, which is `ttl_s` after its last change."""

    thread_id: str
    revision: int
    ttl_s: float | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class ThreadRow:
    """The row of a thread. Contents that were encrypted in the threads `copied_from` belong to it, too."""

    id: ConversationId
    owner: Owner
    state: ThreadState
    copied_from: tuple[str, ...]
    is_deleted: bool
    server_epoch: str


@dataclass(frozen=True, slots=True)
class ThreadChange:
    """A committed change of a thread, to the revision of `thread`.

    `adds_all` states that everything that was given is new in the thread and was stored, and nothing was removed.
    """

    thread: ThreadRow
    adds_all: bool


@dataclass(frozen=True, slots=True)
class NewestCheckpoint:
    """A thread with its newest checkpoint in a namespace; `writes` are those of it and of later checkpoints."""

    thread: ThreadRow
    checkpoint: CheckpointRecord | None
    writes: tuple[TaskWrite, ...]
