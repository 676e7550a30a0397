"""Neutral records, into which every kind of source is read.

Invariant: records come in an order in which they can be stored: a conversation before its messages, a message after
those that precede it, and a fork after the message at which it begins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeAlias

from exai.models import Role


@dataclass(frozen=True, slots=True)
class SourceAttachment:
    """A file of a message; `load` returns its bytes, and may be called several times."""

    name: str
    media_type: str | None
    size_bytes: int
    load: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class ForkPoint:
    """Where a fork begins: behind the message `key` of the conversation `name`."""

    name: str
    key: str


@dataclass(frozen=True, slots=True)
class SourceConversation:
    """A conversation of a source, or with `fork` a branch of one. A name may come again, with more properties."""

    name: str
    title: str | None = None
    tags: tuple[str, ...] = ()
    created_at: datetime | None = None
    updated_at: datetime | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    fork: ForkPoint | None = None
    where: str = ""


@dataclass(frozen=True, slots=True)
class SourceMessage:
    """A message of a source. `key` identifies it in its conversation, in every later import of the same source.

    `record` is the JSON text of the source, exactly; `text` is for people and models.
    """

    conversation: str
    key: str
    role: Role
    text: str
    created_at: datetime | None
    record: str
    kind: str = "message"
    files: tuple[SourceAttachment, ...] = ()
    where: str = ""


@dataclass(frozen=True, slots=True)
class DamagedRecord:
    """A record that could not be read; `where` names its place."""

    where: str
    reason: str


@dataclass(frozen=True, slots=True)
class PassedOver:
    """Records that are no messages, or that are there already; they are counted by reason."""

    reason: str
    count: int = 1


SourceItem: TypeAlias = SourceConversation | SourceMessage | DamagedRecord | PassedOver
