"""Export and import complete conversations as text, with at most one page in memory.

Files precede the messages that use them, their bytes are checked against their digests, and imported messages refer to
the ids that the files have in this store.

Invariant: an import can be run again at any point. The request key of a batch is derived from its content, so a batch
that is stored is detected, and the missing ones are stored.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import TypeAlias, get_args

from exai.blobs.base import PART_BYTES
from exai.blobs.base import digest as blob_digest
from exai.conversations.deduplication import content_hash
from exai.conversations.formats import (
    ConversationText,
    ExportItem,
    FileText,
    Format,
    MessageText,
    write_file,
    write_header,
    write_message,
)
from exai.conversations.large import LargeContent, Lightened, check_field, pieces_in, stored_form, without_large
from exai.conversations.publishing import Publisher
from exai.conversations.shelf import ImportedFiles, Shelf
from exai.db.transfer import ImportBatch, TransferRepository
from exai.errors import BlobError, Conflict, InvalidArgument, shown
from exai.files.pieces import is_piece, pieces_of
from exai.models import (
    FILE_IDS,
    ContinuationId,
    ConversationId,
    ConversationKey,
    FileId,
    NewMessage,
    Owner,
    StoredFile,
    TurnId,
)
from exai.settings.load import LimitSettings
from exai.validation import (
    MAX_CONTINUATION_CHARS,
    MAX_LIST,
    MAX_TITLE_CHARS,
    check_choice,
    check_conversation,
    check_json,
    check_message,
    check_name,
    check_number,
    check_optional_name,
    check_owner,
    check_tags,
)

BATCH_MESSAGES = 500
BATCH_BYTES = 4 * 1_048_576

TakenText: TypeAlias = tuple[MessageText, Lightened | None]
"""A message of a text, and what is large in it, if anything is."""

EMBEDDED_BYTES = 100_000
"""Bytes of file content in one part of an export, which a model reads; further files are listed without content."""


@dataclass(frozen=True, slots=True)
class ImportProgress:
    """How far an import has come; `stored` counts the messages that were not there before.

    `restored`: the conversation had been deleted. `notes` has sentences about files that could not be stored.
    """

    continuation_id: ContinuationId
    seen: int
    stored: int
    revision: int
    restored: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ExportPart:
    """A part of a conversation's text; `next_after_seq` is the cursor of the next part, None at the end.

    `header` is empty in all but the first part. Unlike `text` it changes when the conversation is renamed.
    """

    header: str
    text: str
    next_after_seq: int | None


class Transfer:
    """Exports and imports conversations as text. Reads bypass the cache; an import removes older entries from it."""

    def __init__(
        self,
        repository: TransferRepository,
        publisher: Publisher,
        limits: LimitSettings,
        files: Shelf,
        large: LargeContent,
    ) -> None:
        self._repository, self._publisher, self._limits = repository, publisher, limits
        self._files, self._large = files, large

    def export(self, owner: Owner, continuation_id: ContinuationId, kind: Format = "jsonl") -> AsyncIterator[str]:
        """Yield a conversation with its files as text, a page at a time, each page and part of a file 1 round trip.

        Raises `InvalidArgument` at once, and `NotFound`, or `BlobError` for a file whose bytes have changed, later.
        """
        check_conversation(owner, continuation_id)
        check_choice("kind", kind, get_args(Format))
        return self._pages(owner, continuation_id, kind)

    async def _pages(self, owner: Owner, continuation_id: ContinuationId, kind: Format) -> AsyncIterator[str]:
        first = True
        async for page in self._repository.export(ConversationKey(owner, continuation_id)):
            header = write_header(page.conversation, kind) if first else ""
            if page.has_files:
                yield header
                header = ""
                async for text in self._files_of(owner, continuation_id, kind):
                    yield text
            first = False
            plain: list[str] = [header]
            for message in page.messages:
                if pieces_of(message):
                    # By itself, because it may be large.
                    yield "".join(plain)
                    plain = []
                plain += [write_message(each, kind) for each in await self._large.whole(owner, [message])]
            yield "".join(plain)

    async def export_part(
        self, owner: Owner, continuation_id: ContinuationId, kind: Format, *, after_seq: int, budget_bytes: int
    ) -> ExportPart:
        """Return one part of the text, at least one message long: 1 round trip. Raises `NotFound`.

        Files are in the first part, small ones whole and others only named, which costs round trips of its own.
        """
        check_conversation(owner, continuation_id)
        check_choice("kind", kind, get_args(Format))
        check_number("after_seq", after_seq)
        check_number("budget_bytes", budget_bytes, least=1)
        page = await self._repository.read_forward(
            ConversationKey(owner, continuation_id), after_seq=after_seq, budget_bytes=budget_bytes
        )
        header = write_header(page.conversation, kind) if after_seq == 0 else ""
        messages = await self._large.whole(owner, page.messages, budget_bytes, from_oldest=True)
        text = "".join(write_message(message, kind) for message in messages)
        if page.has_files:
            files = [each async for each in self._files_of(owner, continuation_id, kind, EMBEDDED_BYTES)]
            text = "".join(files) + text
        last_seq = messages[-1].seq if messages else page.conversation.last_seq
        return ExportPart(header, text, last_seq if last_seq < page.conversation.last_seq else None)

    async def _files_of(
        self, owner: Owner, continuation_id: ContinuationId, kind: Format, most_bytes: int | None = None
    ) -> AsyncIterator[str]:
        """Yield a conversation's files in parts, without content beyond `most_bytes` or if a file cannot be read."""
        cursor: str | None = None
        left_bytes = most_bytes
        while True:
            page = await self._files.list(owner, continuation_id=continuation_id, limit=MAX_LIST, cursor=cursor)
            for file in page.files:
                # The id names the stored form that the content had when it was taken out.
                if any(is_piece(owner, file.id, form, file.media_type) for form in (file.address, file.sha256)):
                    # Its content is in the message from which it was taken.
                    continue
                if left_bytes is not None and file.size_bytes > left_bytes:
                    yield write_file(file, 0, None, kind)
                    continue
                left_bytes = None if left_bytes is None else left_bytes - file.size_bytes
                async for part in self._parts_of(owner, file, kind):
                    yield part
            cursor = page.next_cursor
            if cursor is None:
                return

    async def _parts_of(self, owner: Owner, file: StoredFile, kind: Format) -> AsyncIterator[str]:
        whole = hashlib.sha256()
        for offset in range(0, max(file.size_bytes, 1), PART_BYTES):
            try:
                data = await self._files.read_bytes(owner, file, offset, PART_BYTES)
            except BlobError:
                if offset:
                    raise
                yield write_file(file, 0, None, kind)
                return
            await asyncio.to_thread(whole.update, data)
            if offset + len(data) == file.size_bytes and whole.hexdigest() != file.sha256:
                raise BlobError(
                    "files", f"the bytes of {file.name} ({file.id}) have changed", "Delete it, or restore it"
                )
            yield await asyncio.to_thread(write_file, file, offset, data, kind)

    async def import_text(
        self,
        owner: Owner,
        parts: Iterable[ExportItem],
        *,
        as_name: ContinuationId | None = None,
    ) -> AsyncIterator[ImportProgress]:
        """Store a conversation, under its own name or another, and yield after each batch, 1 round trip each.

        Messages that exist already are compared and left unchanged; a deleted conversation with the same messages is
        restored. Raises `InvalidArgument` for a malformed text, `Conflict` if the name has other messages.
        """
        source = iter(parts)
        header = next(source, None)
        if not isinstance(header, ConversationText):
            raise InvalidArgument("line 1", "is not the beginning of an exported conversation", "Export it with EXAI")
        name = as_name or ContinuationId(header.continuation_id)
        check_owner(owner)
        where = header.where
        check_name("continuation_id" if as_name else f"{where}, continuation_id", name, MAX_CONTINUATION_CHARS)
        check_optional_name(f"{where}, title", header.title or None, MAX_TITLE_CHARS)
        check_json(f"{where}, metadata", header.metadata, self._limits.metadata_bytes)
        check_tags(header.tags, f"{where}, tags")
        files = ImportedFiles(self._files, owner)
        first = next(source, None)
        while isinstance(first, FileText):
            await files.take(first)
            first = next(source, None)
        files.check_whole()
        rest = source if first is None else chain([first], source)
        seen = stored = 0
        restored = False
        for batch in _batches(rest, self._limits, partial(self._large.lighten, owner)):
            await self._large.store(owner, pieces_in(taken for _, taken in batch))
            imported = await self._repository.store_batch(_import_batch(owner, name, header, batch, files.names))
            if imported.commit is None:
                raise _refused(name, batch)
            await self._publisher.publish(imported.commit)
            seen += len(batch)
            stored += imported.stored
            restored = restored or imported.restored
            yield ImportProgress(name, seen, stored, imported.commit.revision, restored, tuple(files.notes))
        await files.link(name)


def _batches(
    source: Iterator[ExportItem], limits: LimitSettings, take: Callable[[NewMessage], Lightened | None]
) -> Iterator[list[TakenText]]:
    """Cut messages into batches that an append may have; there is always at least one batch, maybe empty.

    Large content is taken out of them.
    """
    most = min(BATCH_MESSAGES, limits.append_messages)
    batch: list[TakenText] = []
    size_bytes, expected, any_batch = 0, 1, False
    for part in source:
        if isinstance(part, ConversationText):
            raise InvalidArgument("conversation", "begins a second time", "Import one conversation at a time")
        if isinstance(part, FileText):
            raise InvalidArgument(part.where, "a file comes behind messages", "Put files before the first message")
        if part.seq != expected:
            raise InvalidArgument(f"{part.where}, seq", f"is {part.seq}, not {expected}", "Number the messages 1, 2, 3")
        expected += 1
        check_field(f"{part.where}, metadata", part.message)
        taken = take(part.message)
        message = without_large(part.message, taken)
        part_bytes = check_message(part.where, message, limits, separator=", ") + _piece_bytes(taken)
        if batch and size_bytes + part_bytes > limits.append_bytes:
            yield batch
            batch, size_bytes, any_batch = [], 0, True
        batch.append((part, taken))
        size_bytes += part_bytes
        if len(batch) >= most or size_bytes >= BATCH_BYTES:
            yield batch
            batch, size_bytes, any_batch = [], 0, True
    if batch or not any_batch:
        yield batch


def _import_batch(
    owner: Owner,
    name: ContinuationId,
    header: ConversationText,
    batch: list[TakenText],
    files: Mapping[str, FileId],
) -> ImportBatch:
    texts = [text for text, _ in batch]
    first_seq = texts[0].seq if texts else 1
    marks = [(each.message.key, each.message.item) for each in texts]
    digest = content_hash(
        name,
        first_seq,
        [(each.message.role, each.message.kind, each.message.content, dict(each.message.metadata)) for each in texts],
        [each.created_at.isoformat() if each.created_at else None for each in texts],
        *([marks] if any(any(each) for each in marks) else []),
    )
    messages = [stored_form(_renamed(text.message, files), taken) for text, taken in batch]
    return ImportBatch(
        owner=owner,
        continuation_id=name,
        new_conversation_id=ConversationId(str(uuid.uuid4())),
        turn_id=TurnId(str(uuid.uuid4())),
        request_key=f"import:{digest}",
        request_hash=digest,
        first_seq=first_seq,
        messages=messages,
        times=[each.created_at for each in texts],
        title=header.title,
        metadata=header.metadata,
        tags=header.tags,
        created_at=header.created_at,
        updated_at=header.updated_at,
        digests=[
            blob_digest(text.message.content.encode()) if taken and taken.content else None for text, taken in batch
        ],
        file_ids=[piece.id for piece in pieces_in(taken for _, taken in batch)],
    )


def _piece_bytes(taken: Lightened | None) -> int:
    return sum(len(piece.data) for piece in taken.pieces) if taken else 0


def _renamed(message: NewMessage, files: Mapping[str, FileId]) -> NewMessage:
    """Return a message that names its files as they are called here."""
    ids = message.metadata.get(FILE_IDS)
    if not files or not isinstance(ids, list):
        return message
    names = [files.get(each, each) if isinstance(each, str) else each for each in ids]
    return replace(message, metadata={**message.metadata, FILE_IDS: names})


def _refused(name: ContinuationId, batch: list[TakenText]) -> Conflict:
    where = f", with other messages from {batch[0][0].seq} on" if batch else ""
    return Conflict(
        "exists",
        f"the conversation {shown(name)} is here already{where}",
        "Import under another name, or delete that conversation first",
    )
