"""Export and import conversations page by page.

Invariant: at most one page is held in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

import orjson

from exai.db.driver.pool import Database
from exai.db.records import StoredPage
from exai.db.rows import Columns, RowsByPart, columns_of, commit_of, json_of, keys_of, sources_json
from exai.encryption.codec import PLAIN, Codec, require_readable
from exai.encryption.envelope import MARK
from exai.errors import NotFound
from exai.models import Commit, ContinuationId, ConversationId, ConversationKey, FileId, NewMessage, Owner, TurnId

EXPORT_PAGE_MESSAGES: Final = 500
EXPORT_PAGE_BYTES: Final = 4 * 1_048_576

ImportStatus = Literal["stored", "duplicate", "exists", "gap", "conflict_key"]


@dataclass(frozen=True, slots=True)
class ImportBatch:
    """Some consecutive messages of one conversation, from `first_seq` on; the first batch begins at 1.

    The batch at 1 makes the conversation and alone looks at `title`, `metadata`, `tags` and the two times. `times` is
    when each message was written, None where that is not known. `digests` are those of messages before content was
    taken out of them, and `file_ids` the files that hold it. `request_key` is of the batch.
    """

    owner: Owner
    continuation_id: ContinuationId
    new_conversation_id: ConversationId
    turn_id: TurnId
    request_key: str
    request_hash: str
    first_seq: int
    messages: Sequence[NewMessage]
    times: Sequence[datetime | None]
    title: str | None = None
    metadata: Mapping[str, Any] | None = None
    tags: Sequence[str] = ()
    created_at: datetime | None = None
    updated_at: datetime | None = None
    digests: Sequence[str | None] = ()
    file_ids: Sequence[FileId] = ()


@dataclass(frozen=True, slots=True)
class Imported:
    """The result of a batch. `commit` is set for `stored` and `duplicate`.

    `stored` is the number of its messages that are new. `exists`: the conversation holds other messages. `gap`: an
    earlier batch is missing. `restored`: the conversation had been deleted and was brought back.
    """

    status: ImportStatus
    stored: int
    restored: bool
    commit: Commit | None


class TransferRepository:
    """Export and import."""

    def __init__(self, database: Database) -> None:
        self._database, self._codec = database, database.codec

    async def read_forward(
        self,
        key: ConversationKey,
        *,
        after_seq: int = 0,
        up_to_seq: int | None = None,
        limit: int = EXPORT_PAGE_MESSAGES,
        budget_bytes: int = EXPORT_PAGE_BYTES,
    ) -> StoredPage:
        """Messages after `after_seq`, oldest first: at least one if there is one, else within both limits.

        `has_older`: there are messages before the page. Raises `NotFound`, or a `DatabaseError`:
        `ContentUnreadable` if a message of the page cannot be decrypted.
        """
        size_bytes = self._codec.stored_bytes(budget_bytes)
        rows = await self._database.fetch("read_forward", *key, after_seq, up_to_seq, limit, size_bytes, False)
        answer = RowsByPart(rows, self._codec)
        conversation = answer.conversation
        if conversation is None:
            raise NotFound("conversation", key.continuation_id, "conversation_list lists them")
        messages, has_files = tuple(answer.part("message")), bool(answer.part("files"))
        require_readable(messages)
        return StoredPage(conversation, messages, after_seq > 0, answer.head["server_epoch"], has_files=has_files)

    async def export(self, key: ConversationKey) -> AsyncIterator[StoredPage]:
        """All pages of a conversation as it was when this began, oldest first, each read when it is asked for.

        There is at least one page, for an empty conversation an empty one. Raises as `read_forward`.
        """
        page = await self.read_forward(key)
        up_to_seq = page.conversation.last_seq
        while True:
            yield page
            if not page.messages or page.messages[-1].seq >= up_to_seq:
                return
            page = await self.read_forward(key, after_seq=page.messages[-1].seq, up_to_seq=up_to_seq)

    async def store_batch(self, batch: ImportBatch) -> Imported:
        """Store one batch, once per request key. Raises a `DatabaseError`."""
        columns = columns_of(batch.messages, batch.owner, self._codec)
        head = await self._send(batch, columns, replaces=self._codec is PLAIN)
        if head["status"] == "exists" and self._codec is not PLAIN:
            head = await self._send(batch, await self._stored_alike(batch, columns), replaces=False)
            if head["status"] == "exists":
                # A deleted conversation with other messages loses its name. The stored forms are bound to its messages.
                head = await self._send(batch, columns, replaces=True)
        status: ImportStatus = head["status"]
        restored: bool = head["restored"]
        # The first batch alone creates a conversation or brings one back.
        is_repeated = status != "stored" and not restored
        commit = commit_of(head, self._codec, is_listed=batch.first_seq == 1, is_repeated=is_repeated)
        return Imported(status, head["stored"], restored, commit if status in ("stored", "duplicate") else None)

    async def _stored_alike(self, batch: ImportBatch, columns: Columns) -> Columns:
        """Return the columns of a batch with the stored form of those contents that are stored, encrypted.

        The database finds equal contents only if they are equal in this form.
        """
        roles, given, kinds, metadata = columns
        last_seq = batch.first_seq + len(batch.messages) - 1
        contents = list(given)
        after_seq = batch.first_seq - 1
        while after_seq < last_seq:
            size_bytes = self._codec.stored_bytes(EXPORT_PAGE_BYTES)
            where = (batch.owner, batch.continuation_id, after_seq, last_seq, EXPORT_PAGE_MESSAGES, size_bytes, True)
            rows = await self._database.fetch("read_forward", *where)
            opened = RowsByPart(rows, self._codec).part("message")
            stored = {row["seq"]: row["content"] for row in rows if row["part"] == "message"}
            for message in opened:
                place = message.seq - batch.first_seq
                if stored[message.seq].startswith(MARK) and _is_content(batch, place, message.content):
                    contents[place] = stored[message.seq]
            if not opened:
                break
            after_seq = opened[-1].seq
        return roles, contents, kinds, metadata

    async def _send(self, batch: ImportBatch, columns: Columns, *, replaces: bool) -> dict[str, Any]:
        rows = await self._database.fetch(
            "import_batch", batch.owner, batch.continuation_id, batch.new_conversation_id, batch.turn_id,
            *_request_of(batch, self._codec), json_of(_header(batch, self._codec)), batch.first_seq,
            *columns,
            [at.isoformat() if at else None for at in batch.times],
            list(batch.digests) or [None] * len(batch.messages),
            sources_json(batch.file_ids, {}, batch.owner, self._codec) if batch.file_ids else None,
            keys_of(batch.messages), replaces,
        )  # fmt: skip
        head: dict[str, Any] = orjson.loads(rows[0]["data"])
        return head


def _is_content(batch: ImportBatch, place: int, content: str) -> bool:
    """Return whether a message has this content, with or without what was taken out, as import_v1 decides."""
    digest = batch.digests[place] if batch.digests else None
    is_whole = digest is not None and hashlib.sha256(content.encode()).hexdigest() == digest
    return is_whole or batch.messages[place].content == content


def _request_of(batch: ImportBatch, codec: Codec) -> tuple[str, str]:
    """Return key and hash of a batch's request, without a digest of its content if that is encrypted."""
    digest = codec.blind(batch.owner, batch.request_hash)
    return batch.request_key.replace(batch.request_hash, digest), digest


def _header(batch: ImportBatch, codec: Codec) -> dict[str, Any]:
    name = (batch.owner, batch.continuation_id)
    return {
        "title": codec.title(*name, batch.title),
        "metadata": dict(codec.document(*name, batch.metadata or {})),
        "tags": list(batch.tags),
        "created_at": batch.created_at.isoformat() if batch.created_at else None,
        "updated_at": batch.updated_at.isoformat() if batch.updated_at else None,
    }
