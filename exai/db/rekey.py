"""Bring the stored form of rows to that of the newest key, or to plain text, in batches in the order of their keys.

Invariant: what a row means does not change, nor does its revision; a row that another client has changed since it was
read, or has locked, is left for a later pass. Nothing is remembered between batches, so that it can end at any time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

import orjson

from exai.db.driver.pool import Database, Record
from exai.db.rows import json_of
from exai.db.turns import FROM_CACHE
from exai.encryption.codec import Codec, Home, Names, Unseen, is_unreadable
from exai.encryption.envelope import MARK, MEMBER
from exai.errors import ContentUnreadable
from exai.models import ContinuationId, ConversationKey, Message, NewMessage, Owner

SCANNED: Final = 1_000
"""Rows that one statement looks at."""

REPLACED_BYTES: Final = 4 * 1_048_576
"""About the largest size of the contents that one statement reads or replaces."""

FIRST: Final = "00000000-0000-0000-0000-000000000000"
NEVER: Final = datetime.fromtimestamp(0, UTC)

RowKey: TypeAlias = tuple[Any, ...]
"""The key of the last row of a batch."""

READ_BY_SQL: Final = ("conversation", "seqs")
"""The fields of a turn's metadata that functions of the database read; a header in them is encrypted by itself."""


@dataclass(slots=True)
class RekeyBatch:
    """The result of a batch: where the next one begins (None: this was the last), and what was done.

    `found` counts rows whose stored form is not the wanted one, `conversations` are those of replaced rows. `contents`
    and `content_bytes` count the contents of files among them.
    """

    place: RowKey | None = None
    found: int = 0
    replaced: int = 0
    contents: int = 0
    content_bytes: int = 0
    unreadable: list[str] = field(default_factory=list)
    conversations: set[ConversationKey] = field(default_factory=set)

    async def replace(
        self, database: Database, name: str, columns: Sequence[tuple[Any, ...]], *, is_rehearsal: bool
    ) -> None:
        """Replace rows by the statement `name`, unless this is a rehearsal."""
        if columns and not is_rehearsal:
            given = [list(column) for column in zip(*columns, strict=True)]
            self.replaced = (await database.fetch(name, *given))[0]["replaced"]


class RekeyRepository:
    """Reads rows of all owners and replaces their stored form; two round trips a batch, one without a change."""

    def __init__(self, database: Database) -> None:
        self._database, self._codec = database, database.codec

    async def messages(self, place: RowKey, *, is_rehearsal: bool) -> RekeyBatch:
        """Replace some messages after a place."""
        codec = self._codec
        where = (*place, codec.beginning, SCANNED, REPLACED_BYTES)
        rows = await self._database.fetch("rekey_scan_messages", *where)
        last = [row for row in rows if row["content"] is None]
        batch = RekeyBatch((last[0]["conversation_id"], last[0]["seq"]) if last else None)
        columns: list[tuple[str, int, str, str, str | None]] = []
        for row in rows:
            if row["content"] is None:
                continue
            batch.found += 1
            owner = Owner(row["owner"])
            home = Home(owner, row["conversation_id"], 0, row["cut_from"] or ())
            facts = orjson.loads(row["metadata"])
            message = Message(row["seq"], row["role"], row["content"], NEVER, row["kind"], metadata=facts)
            [opened] = codec.opened(home, [message])
            if is_unreadable(opened):
                batch.unreadable.append(opened.content.strip("[]"))
                continue
            given = NewMessage(opened.role, opened.content, opened.kind, opened.metadata)
            [content], [metadata] = codec.columns(owner, [given])
            columns.append((row["conversation_id"], row["seq"], row["version"], content, metadata))
            batch.conversations.add(ConversationKey(owner, ContinuationId(row["continuation_id"])))
        await batch.replace(self._database, "rekey_messages", columns, is_rehearsal=is_rehearsal)
        return batch

    async def conversations(self, place: RowKey, *, is_rehearsal: bool) -> RekeyBatch:
        """Replace titles and metadata of some conversations after a place."""
        codec = self._codec
        rows = await self._database.fetch("rekey_scan_conversations", place[0], SCANNED)
        batch = RekeyBatch((rows[-1]["id"], 0) if len(rows) == SCANNED else None)
        columns: list[tuple[str, str, str | None, str]] = []
        for row in rows:
            title, metadata = row["title"], orjson.loads(row["metadata"])
            if is_wanted_text(self._codec, title) and is_wanted_object(self._codec, metadata):
                continue
            batch.found += 1
            owner, name = Owner(row["owner"]), row["continuation_id"]
            names = (name,) if row["is_own"] else None
            try:
                title = codec.title(owner, name, codec.opened_title(owner, names, title))
                metadata = self._document(owner, name, names, metadata)
            except ContentUnreadable as error:
                batch.unreadable.append(f"conversation {row['id']}: {error}")
                continue
            columns.append((row["id"], row["version"], title, json_of(metadata)))
            batch.conversations.add(ConversationKey(owner, ContinuationId(name)))
        await batch.replace(self._database, "rekey_conversations", columns, is_rehearsal=is_rehearsal)
        return batch

    async def turns(self, place: RowKey, *, is_rehearsal: bool) -> RekeyBatch:
        """Replace metadata and errors of some turns after a place."""
        rows = await self._database.fetch("rekey_scan_turns", place[0], SCANNED)
        batch = RekeyBatch((rows[-1]["id"], 0) if len(rows) == SCANNED else None)
        columns: list[tuple[str, str, str, str | None]] = []
        for row in rows:
            facts = orjson.loads(row["metadata"])
            error = orjson.loads(row["error"]) if row["error"] else None
            owner, names = Owner(row["owner"]), (row["id"],)
            header = facts.get("conversation")
            others = {key: value for key, value in facts.items() if key not in READ_BY_SQL}
            if (
                is_wanted_object(self._codec, others)
                and is_wanted_object(self._codec, error or {})
                and (header is None or self._is_wanted_header(header))
            ):
                continue
            batch.found += 1
            try:
                columns.append(self._turn(row, owner, names, facts, error))
            except ContentUnreadable as failure:
                batch.unreadable.append(f"turn {row['id']}: {failure}")
        await batch.replace(self._database, "rekey_turns", columns, is_rehearsal=is_rehearsal)
        return batch

    def _turn(
        self, row: Record, owner: Owner, names: Names, facts: dict[str, Any], error: dict[str, Any] | None
    ) -> tuple[str, str, str, str | None]:
        kept: dict[str, Any] = {key: facts[key] for key in READ_BY_SQL if key in facts}
        if (header := kept.get("conversation")) is not None:
            name = header["continuation_id"]
            its_names = None if header.get("parent_id") or header.get("former_name") else (name,)
            title = self._codec.opened_title(owner, its_names, header["title"])
            metadata = self._document(owner, name, its_names, header["metadata"])
            kept["conversation"] = {**header, "title": self._codec.title(owner, name, title), "metadata": metadata}
        rest = {key: value for key, value in facts.items() if key not in kept}
        stored = dict(self._document(owner, row["id"], names, rest))
        if MEMBER in stored and FROM_CACHE in rest:
            stored[FROM_CACHE] = True
        kept_error = None if error is None else json_of(self._document(owner, row["id"], names, error))
        return row["id"], row["version"], json_of({**stored, **kept}), kept_error

    async def queue_words(self, place: str) -> str | None:
        """Queue the words of some conversations for indexing; return the place of the next batch."""
        last_id: str | None = (await self._database.fetch("queue_all_words", place, SCANNED))[0]["last_id"]
        return last_id

    async def keep_keys(self, names: Sequence[str]) -> None:
        """Forget the names of all other keys, with which no row is encrypted any more."""
        await self._database.fetch("remove_encryption_keys", list(names))

    def _document(self, owner: Owner, name: str, names: Names | None, document: Mapping[str, Any]) -> Mapping[str, Any]:
        opened = self._codec.opened_document(owner, names, document)
        if isinstance(opened, Unseen):
            raise opened.why
        return self._codec.document(owner, name, opened)

    def _is_wanted_header(self, header: Mapping[str, Any]) -> bool:
        return is_wanted_text(self._codec, header["title"]) and is_wanted_object(self._codec, header["metadata"])


def is_wanted_text(codec: Codec, text: str | None) -> bool:
    """Return whether a text is stored as `codec` would store it now."""
    beginning = codec.beginning
    return text is None or (text.startswith(beginning) if beginning else not text.startswith(MARK))


def is_wanted_object(codec: Codec, document: Mapping[str, Any]) -> bool:
    """Return whether an object is stored as `codec` would store it now."""
    text = document.get(MEMBER)
    if not isinstance(text, str):
        return not document or codec.beginning is None
    return is_wanted_text(codec, text)
