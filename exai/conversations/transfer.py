"""Export and import: whole conversations as text, never more than a page of them in memory.

The invariant is that an import can be run again at any point: its batches have keys made from what they hold, so what
is stored already is found done, and what is missing is stored.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass

from exai.cache.conversations import ConversationCache
from exai.config import LimitSettings
from exai.conversations.formats import ConversationText, Format, MessageText, write_header, write_message
from exai.conversations.notices import Notices
from exai.conversations.requests import check_json, check_messages, check_names, content_hash
from exai.db.transfer import ImportBatch, Imported, TransferRepository
from exai.errors import Conflict, InvalidArgument, NotFound, shown
from exai.models import ContinuationId, ConversationId, NewMessage, Owner, TurnId

BATCH_MESSAGES = 500
BATCH_BYTES = 4 * 1_048_576


@dataclass(frozen=True, slots=True)
class ImportProgress:
    """How far an import has come; `stored` counts the messages that were not there before."""

    continuation_id: ContinuationId
    seen: int
    stored: int
    revision: int


@dataclass(frozen=True, slots=True)
class ExportPart:
    """A part of a conversation's text; `next_after_seq` is the cursor of the next part, None at the end.

    `header` is empty in all but the first part. Unlike `text` it changes when the conversation is renamed.
    """

    header: str
    text: str
    next_after_seq: int | None


class Transfer:
    """Reads and writes conversations as text, past the cache, which is only told what it no longer holds."""

    def __init__(
        self, repository: TransferRepository, cache: ConversationCache, limits: LimitSettings, notices: Notices
    ) -> None:
        self._repository, self._cache, self._limits, self._notices = repository, cache, limits, notices

    async def export(self, owner: Owner, continuation_id: ContinuationId, kind: Format) -> AsyncIterator[str]:
        """Yield a conversation as text, a page at a time, each page 1 round trip. Raises `NotFound`."""
        first = True
        async for page in self._repository.export(owner, continuation_id):
            header = write_header(page.conversation, kind) if first else ""
            first = False
            yield header + "".join(write_message(message, kind) for message in page.messages)

    async def export_part(
        self, owner: Owner, continuation_id: ContinuationId, kind: Format, *, after_seq: int, budget_bytes: int
    ) -> ExportPart:
        """Return one part of the text, at least one message long: 1 round trip. Raises `NotFound`."""
        page = await self._repository.read_forward(
            owner, continuation_id, after_seq=after_seq, budget_bytes=budget_bytes
        )
        header = write_header(page.conversation, kind) if after_seq == 0 else ""
        text = "".join(write_message(message, kind) for message in page.messages)
        last_seq = page.messages[-1].seq if page.messages else page.conversation.last_seq
        return ExportPart(header, text, last_seq if last_seq < page.conversation.last_seq else None)

    async def import_text(
        self,
        owner: Owner,
        parts: Iterable[ConversationText | MessageText],
        *,
        as_name: ContinuationId | None = None,
    ) -> AsyncIterator[ImportProgress]:
        """Store a conversation, under its own name or another, and yield after each batch, 1 round trip each.

        Raises `InvalidArgument` for a text that is none, and `Conflict` where the name holds another conversation.
        """
        source = iter(parts)
        header = next(source, None)
        if not isinstance(header, ConversationText):
            raise InvalidArgument("line 1", "is not the beginning of an exported conversation", "Export it with EXAI")
        name = as_name or ContinuationId(header.continuation_id)
        check_names(name, None, header.title or None)
        check_json("line 1, metadata", header.metadata, self._limits.message_bytes)
        seen = stored = 0
        for batch in _batches(source, self._limits):
            if batch:
                check_messages([each.message for each in batch], self._limits)
            imported = await self._repository.store_batch(_import_batch(owner, name, header, batch))
            if imported.status not in ("stored", "duplicate"):
                raise _refused(name, imported, batch)
            await self._cache.apply(
                owner, name, base_revision=imported.base_revision, revision=imported.revision, inc=imported.inc
            )
            if imported.status == "stored":
                self._notices.tell(owner, name, imported.base_revision, imported.revision, listed=seen == 0)
            seen += len(batch)
            stored += len(batch) if imported.status == "stored" else 0
            yield ImportProgress(name, seen, stored, imported.revision)


def _batches(source: Iterator[ConversationText | MessageText], limits: LimitSettings) -> Iterator[list[MessageText]]:
    """Cut messages into batches that an append may have; there is always at least one batch, maybe empty."""
    most = min(BATCH_MESSAGES, limits.append_messages)
    batch: list[MessageText] = []
    size_bytes, expected, any_batch = 0, 1, False
    for part in source:
        if isinstance(part, ConversationText):
            raise InvalidArgument("conversation", "begins a second time", "Import one conversation at a time")
        if part.seq != expected:
            raise InvalidArgument(f"{part.where}, seq", f"is {part.seq}, not {expected}", "Number the messages 1, 2, 3")
        expected += 1
        part_bytes = len(part.message.content.encode(errors="surrogatepass"))
        if batch and size_bytes + part_bytes > limits.append_bytes:
            yield batch
            batch, size_bytes, any_batch = [], 0, True
        batch.append(part)
        size_bytes += part_bytes
        if len(batch) >= most or size_bytes >= BATCH_BYTES:
            yield batch
            batch, size_bytes, any_batch = [], 0, True
    if batch or not any_batch:
        yield batch


def _import_batch(
    owner: Owner, name: ContinuationId, header: ConversationText, batch: list[MessageText]
) -> ImportBatch:
    first_seq = batch[0].seq if batch else 1
    digest = content_hash(
        name,
        first_seq,
        [(each.message.role, each.message.kind, each.message.content, dict(each.message.metadata)) for each in batch],
        [each.created_at.isoformat() if each.created_at else None for each in batch],
    )
    messages: list[NewMessage] = [each.message for each in batch]
    return ImportBatch(
        owner=owner,
        continuation_id=name,
        new_conversation_id=ConversationId(str(uuid.uuid4())),
        turn_id=TurnId(str(uuid.uuid4())),
        request_key=f"import:{digest}",
        request_hash=digest,
        first_seq=first_seq,
        messages=messages,
        times=[each.created_at for each in batch],
        title=header.title,
        metadata=header.metadata,
        tags=header.tags,
        created_at=header.created_at,
        updated_at=header.updated_at,
    )


def _refused(name: ContinuationId, imported: Imported, batch: list[MessageText]) -> Conflict | NotFound:
    if imported.status == "deleted":
        return NotFound("conversation", name, "It was deleted; bring it back first, or import under another name")
    where = f", with messages from {batch[0].seq} on that this import did not bring" if batch else ""
    return Conflict(
        "exists",
        f"the conversation {shown(name)} is here already{where}",
        "Import under another name, or delete that conversation first",
    )
