"""Decode the rows returned by the functions of schema `exai`, and encode their arguments.

Most functions answer in one shape: rows of eight columns, distinguished by the first, `part`. The row `head` carries a
JSON document of facts in the last column, every other row is a message. Exports have a ninth column, the message's key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, TypeAlias

import asyncpg
import orjson

from exai.db.records import AppendStart, StoredReply, TurnStart
from exai.encryption.codec import Codec, home_of, require_readable
from exai.encryption.envelope import MARKS
from exai.encryption.origins import seal_source
from exai.models import (
    Commit,
    ContinuationId,
    Conversation,
    ConversationId,
    FileId,
    FileSource,
    Message,
    NewMessage,
    Owner,
    PendingTurn,
    Usage,
)

NO_METADATA: Final[Mapping[str, Any]] = Message._field_defaults["metadata"]

Columns: TypeAlias = tuple[list[str], list[str], list[str], list[str | None]]
"""Roles, contents, kinds and metadata of messages."""

_make_message = tuple.__new__
"""A page has many messages, and the named tuple's own constructor, a Python function, takes three times as long."""


class RowsByPart:
    """The rows of one answer, sorted by part."""

    __slots__ = ("_codec", "at", "head", "parts")

    def __init__(self, rows: Sequence[asyncpg.Record], codec: Codec, *, home: str = "conversation") -> None:
        """Read the rows; `home` names the field of the head with the conversation in which the messages are."""
        self._codec = codec
        self.head: dict[str, Any] = {}
        self.at: datetime | None = None
        self.parts: dict[str, list[Message]] = {}
        is_sealed = False
        for part, seq, role, content, at, kind, turn_id, data, *more in rows:
            if part == "head":
                self.head, self.at = orjson.loads(data), at
                continue
            metadata = _object_of(data) if data else NO_METADATA
            is_sealed = is_sealed or (content is not None and content.startswith(MARKS))
            message = _make_message(
                Message, (seq, role, content, at, kind, turn_id, metadata, more[0] if more else None)
            )
            self.parts.setdefault(part, []).append(message)
        header = self.head.get(home) if is_sealed else None
        if header:
            place = home_of(conversation_of(header, codec))
            self.parts = {part: list(codec.opened(place, messages)) for part, messages in self.parts.items()}

    def part(self, name: str) -> list[Message]:
        """Return the messages of a part in the order of their rows."""
        return self.parts.get(name, [])

    @property
    def step(self) -> int | None:
        """Return the number of the turn among those of its tool, None if it was not requested."""
        rows = self.parts.get("step")
        return rows[0].seq if rows else None

    @property
    def conversation(self) -> Conversation | None:
        """Return the conversation, None if the answer has no header."""
        header = self.head.get("conversation")
        return conversation_of(header, self._codec) if header else None


def _object_of(data: str) -> Mapping[str, Any]:
    """Return metadata; a non-object written by another client is wrapped in an object, as in `message_line_v1`."""
    value = orjson.loads(data)
    return value if isinstance(value, dict) else {"value": value}


def conversation_of(header: Mapping[str, Any], codec: Codec) -> Conversation:
    """Return the conversation from a document of `exai.header_v1`."""
    stored = Conversation(
        id=ConversationId(header["id"]),
        continuation_id=ContinuationId(header["continuation_id"]),
        owner=Owner(header["owner"]),
        title=header["title"],
        metadata=header["metadata"],
        last_seq=header["last_seq"],
        revision=header["revision"],
        created_at=time_of(header["created_at"]),
        updated_at=time_of(header["updated_at"]),
        tags=tuple(header["tags"]),
        parent_id=header["parent_id"],
        parent_seq=header["parent_seq"],
        pending=pending_of(header.get("pending")),
        # Absent in the headers that turns of an earlier schema hold.
        expires_at=time_of(header["expires_at"]) if header.get("expires_at") else None,
        former_name=header.get("former_name"),
        cut_from=tuple(header.get("cut_from") or ()),
    )
    return codec.opened_conversation(stored)


def pending_of(turns: Sequence[Mapping[str, Any]] | None) -> tuple[PendingTurn, ...]:
    """Return the running turns from a document of `exai.pending_turns_v1`."""
    return tuple(PendingTurn(each["tool"], each["model"], time_of(each["since"])) for each in turns or ())


def commit_of(
    head: Mapping[str, Any],
    codec: Codec,
    added: tuple[Message, ...] | None = None,
    *,
    is_listed: bool = False,
    is_repeated: bool = False,
) -> Commit | None:
    """Return the commit that the document of a writing function describes, None if it has no conversation."""
    header = head.get("conversation")
    if not header:
        return None
    base_revision = head["base_revision"] or 0
    return Commit(
        conversation=conversation_of(header, codec),
        base_revision=base_revision,
        revision=head["revision"] or 0,
        server_epoch=head["server_epoch"],
        added=added,
        is_listed=is_listed or base_revision == 0,
        is_repeated=is_repeated,
    )


def time_of(text: str) -> datetime:
    """Parse a time in the format of Postgres's JSON; the result is in UTC."""
    at = datetime.fromisoformat(text)
    return at if at.tzinfo is UTC else at.astimezone(UTC)


def reply_of(turn: Mapping[str, Any], messages: Sequence[Message], owner: Owner, codec: Codec) -> StoredReply:
    """Return the reply of a finished turn; the last message is the answer. Raises `ContentUnreadable`."""
    last = messages[-1] if messages else None
    require_readable(messages)
    return StoredReply(
        content=last.content if last else "",
        seq=turn["reply_last_seq"],
        model=turn["model"],
        provider=turn["provider"],
        usage=Usage(
            input_tokens=turn["input_tokens"] or 0,
            output_tokens=turn["output_tokens"] or 0,
            cached_tokens=turn["cached_tokens"] or 0,
            reasoning_tokens=turn["reasoning_tokens"] or 0,
        ),
        metadata=codec.opened_document(owner, (turn["id"],), turn["metadata"]),
        cost_usd=None if turn["cost"] is None else Decimal(str(turn["cost"])),
        message=last,
    )


def stored_of(messages: Sequence[NewMessage], first_seq: int, at: datetime, turn_id: str) -> tuple[Message, ...]:
    """Return the rows of `messages` just stored by a statement, without reading them back."""
    return tuple(
        Message(
            first_seq + offset,
            message.role,
            message.content,
            message.created_at.astimezone(UTC) if message.created_at else at,
            message.kind,
            turn_id,
            message.metadata or NO_METADATA,
            message.key,
        )
        for offset, message in enumerate(messages)
    )


def stored_title(start: AppendStart | TurnStart, codec: Codec) -> str | None:
    """Return the title as it is stored with a conversation that the statement creates."""
    return codec.title(start.owner, start.continuation_id or start.new_conversation_id, start.title)


def stored_header(start: AppendStart, codec: Codec) -> str | None:
    """Return the document of further facts as it is stored with a conversation that the statement creates."""
    name, made = start.continuation_id or start.new_conversation_id, dict(start.made)
    if made.get("title") is not None:
        made["title"] = codec.title(start.owner, name, made["title"])
    if made.get("metadata"):
        made["metadata"] = codec.document(start.owner, name, made["metadata"])
    return replace(start, made=made).header if made else start.header


def identity_of(start: AppendStart | TurnStart, codec: Codec) -> tuple[str | None, ...]:
    """Return the first arguments of the functions that claim a request key."""
    return (
        start.owner,
        start.continuation_id,
        start.new_conversation_id,
        start.turn_id,
        start.request_key,
        codec.blind(start.owner, start.request_hash),
        start.tool,
    )


def keys_of(messages: Sequence[NewMessage]) -> list[str | None] | None:
    """Return the keys of messages, None if no message has one; of no messages, no keys."""
    keys = [message.key for message in messages]
    return None if keys and not any(keys) else keys


def times_of(messages: Sequence[NewMessage]) -> list[str | None] | None:
    """Return the times of messages as texts, None if no message has one."""
    times = [message.created_at.isoformat() if message.created_at else None for message in messages]
    return times if any(times) else None


def columns_of(messages: Sequence[NewMessage], owner: Owner, codec: Codec) -> Columns:
    """Return messages as the four arrays that the functions take."""
    contents, metadata = codec.columns(owner, messages)
    return [message.role for message in messages], contents, [message.kind for message in messages], metadata


def json_of(value: Mapping[str, Any]) -> str:
    """Return a document as JSON text."""
    return orjson.dumps(value).decode()


def sources_json(file_ids: Iterable[FileId], sources: Mapping[FileId, FileSource], owner: Owner, codec: Codec) -> str:
    """Return files with the places from which they were read, as `exai.link_files_v1` takes them."""
    given = {each: seal_source(codec, owner, each, sources[each]) if each in sources else None for each in file_ids}
    return orjson.dumps(given).decode()


def files_of(
    start: AppendStart | TurnStart, codec: Codec
) -> tuple[str | None, str | None, str | None, bytes | None] | None:
    """Return the further arguments of the statements with files, None if there are none."""
    if not start.sources and start.along is None:
        return None
    sources = sources_json(start.file_ids, start.sources, start.owner, codec) if start.sources else None
    along = start.along
    return (sources, along.store, along.described, along.data) if along else (sources, None, None, None)
