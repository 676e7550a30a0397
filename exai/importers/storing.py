"""Store neutral records: each conversation under its name, each message once by its key.

A source that has grown is imported again by the same code. What is stored is never changed: if a conversation goes on
in another way here than in the source, the rest of the source's messages become a fork.

Invariant: an import can be interrupted at any point and run again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from exai.conversations import ConversationStore
from exai.conversations.requests import AppendRequest, with_files
from exai.conversations.titles import opening
from exai.db.lifecycle import ConversationUpdate
from exai.errors import Conflict, InvalidArgument, NotFound
from exai.files.loading import FileContent
from exai.files.names import shown_media_type, shown_name
from exai.files.service import FileService
from exai.importers.reading.bundles import UNREADABLE
from exai.importers.reading.naming import name_of_fork
from exai.importers.records import DamagedRecord, SourceAttachment, SourceConversation, SourceMessage
from exai.importers.report import ImportReport
from exai.items import readable
from exai.models import ContinuationId, FileId, NewMessage, Owner
from exai.settings.load import LimitSettings
from exai.validation import MAX_TAG_CHARS, MAX_TAGS, MAX_TITLE_CHARS

BATCH_MESSAGES: Final = 200
BATCH_BYTES: Final = 4 * 1_048_576
TREES: Final = frozenset(("chatgpt", "claude-ai", "gemini-cli", "librechat", "open-webui"))
"""Kinds whose messages have parents, so that a conversation of theirs can go on in several ways."""

INTERLEAVED: Final = frozenset(("claude-code",))
"""Kinds whose conversations can go on after another one has begun."""

MAX_WAITING_BYTES: Final = 2 * BATCH_BYTES


@dataclass(slots=True)
class _Line:
    """A conversation while it is imported.

    `stored` is its name here, and `made_as` the title with which this import made it. `count` is the number of its
    messages that were passed, with inherited ones; `is_new` is true once all further messages are new, so that they are
    appended without a look at what is there.
    """

    source: SourceConversation
    stored: ContinuationId
    batch: list[SourceMessage] = field(default_factory=list)
    batch_bytes: int = 0
    count: int = 0
    begun: bool = False
    is_new: bool = False
    may_continue: bool = False
    made_as: str | None = None


class Storing:
    """One import into the conversations of one owner."""

    def __init__(
        self,
        conversations: ConversationStore,
        files: FileService,
        limits: LimitSettings,
        owner: Owner,
        report: ImportReport,
    ) -> None:
        self._conversations, self._files, self._limits = conversations, files, limits
        self._owner, self._report = owner, report
        self._lines: dict[str, _Line] = {}
        self._waiting_bytes = 0

    async def take(self, item: SourceConversation | SourceMessage, kind: str) -> None:
        """Take the next record; messages are stored in batches."""
        if isinstance(item, SourceConversation):
            line = self._lines.get(item.name)
            if line is not None:
                line.source = replace(item, fork=line.source.fork)
                return
            await self._flush_all()
            if item.fork is None and kind not in INTERLEAVED:
                await self.end()
            self._report.forks += item.fork is not None
            self._report.conversations += item.fork is None
            self._lines[item.name] = _Line(item, ContinuationId(item.name), may_continue=kind not in TREES)
            return
        line = self._lines[item.conversation]
        size_bytes = len(item.text) + len(item.record)
        if line.batch and not self._fits(line, item, size_bytes):
            await self.flush(item.conversation)
        line.batch.append(item)
        line.batch_bytes += size_bytes
        self._waiting_bytes += size_bytes
        if self._waiting_bytes > MAX_WAITING_BYTES:
            await self._flush_all()

    async def end(self) -> None:
        """Store what was taken. Called at the end of each file, whose conversations are then complete."""
        await self._flush_all()
        for line in self._lines.values():
            await self._name(line)
        self._lines.clear()

    async def _name(self, line: _Line) -> None:
        """Give a conversation of this import the title that its source states after its first messages."""
        title = _shown_title(line.source.title)
        if line.made_as is None or title is None or title == line.made_as:
            return
        try:
            await self._conversations.change(self._owner, line.stored, ConversationUpdate(title=title))
        except (NotFound, Conflict) as error:
            self._report.note(f"{line.stored} keeps its title ({error})")

    async def _flush_all(self) -> None:
        for name in [name for name, line in self._lines.items() if line.batch]:
            await self.flush(name)

    async def flush(self, name: str) -> None:
        """Store the messages of a conversation that wait; a refused message is reported, and the others are stored."""
        line = self._lines.get(name)
        if line is None or not line.batch:
            return
        self._waiting_bytes -= line.batch_bytes
        batch, line.batch, line.batch_bytes = line.batch, [], 0
        try:
            await self._store(line, batch)
        except (InvalidArgument, Conflict, NotFound) as error:
            if len(batch) == 1:
                self._report.report(DamagedRecord(batch[0].where, str(error)))
                return
            for each in batch:
                line.batch = [each]
                await self.flush(name)

    def _fits(self, line: _Line, item: SourceMessage, size_bytes: int) -> bool:
        files = sum(len(each.files) for each in line.batch) + len(item.files)
        return (
            len(line.batch) < min(BATCH_MESSAGES, self._limits.append_messages)
            and line.batch_bytes + size_bytes <= min(BATCH_BYTES, self._limits.append_bytes)
            and files <= self._limits.append_files
        )

    async def _store(self, line: _Line, batch: Sequence[SourceMessage]) -> None:
        if not line.begun:
            await self._begin(line, batch)
            line.begun = True
        if not line.is_new:
            batch = await self._unknown(line, batch)
        if batch:
            await self._append(line, batch)

    async def _begin(self, line: _Line, batch: Sequence[SourceMessage]) -> None:
        """Find out whether the conversation is here, and make a fork that is not."""
        fork = line.source.fork
        if fork is None:
            line.is_new = not await self._exists(line.stored)
            return
        if await self._exists(line.stored):
            line.count = await self._seq(line.stored, fork.key) or 0
            return
        origins = [self._lines[fork.name].stored] if fork.name in self._lines else []
        named = dict.fromkeys((*origins, ContinuationId(fork.name)))
        places = {each: await self._seq(each, fork.key) for each in named}
        known = [(place, seq) for place, seq in places.items() if seq is not None]
        for place, seq in known:
            if await self._seq(place, batch[0].key) == seq + 1:
                # What is a fork now was the conversation when it was imported before.
                line.stored, line.count = place, seq
                return
        line.is_new = True
        if known:
            (place, seq), *_ = known
            await self._fork(place, seq, line.stored, line.source.title)
            line.count = seq

    async def _unknown(self, line: _Line, batch: Sequence[SourceMessage]) -> Sequence[SourceMessage]:
        """Return the messages of a batch to append: none if all are stored where they belong."""
        last = await self._seq(line.stored, batch[-1].key)
        if last is not None and last == line.count + len(batch):
            line.count = last
            return ()
        if last is not None:
            # Some before it are missing, because they were damaged when they were imported before.
            line.count = last
            return batch
        known = await self._known(line, batch)
        page = await self._conversations.read(self._owner, line.stored, limit=1)
        tip = page.messages[-1] if page.messages else None
        before = await self._seq(line.stored, batch[known - 1].key) if known else line.count
        goes_on = tip is None or page.conversation.last_seq == before
        if not goes_on and line.may_continue and tip is not None and tip.key is not None:
            goes_on = True
        if goes_on:
            line.is_new = True
            return batch
        rest = batch[known:]
        name = ContinuationId(name_of_fork(line.source.name, rest[0].key))
        if not await self._exists(name):
            if before:
                await self._fork(line.stored, before, name, line.source.title)
            self._report.note(f"{line.stored} goes on in another way here; the source's messages are in {name}")
        line.stored, line.count, line.is_new = name, before or 0, True
        return rest

    async def _known(self, line: _Line, batch: Sequence[SourceMessage]) -> int:
        """Return how many messages at the beginning of a batch are stored, whose last one is not."""
        low, high = 0, len(batch) - 1
        while low < high:
            middle = (low + high) // 2
            if await self._seq(line.stored, batch[middle].key) is None:
                high = middle
            else:
                low = middle + 1
        return low

    async def _append(self, line: _Line, batch: Sequence[SourceMessage]) -> None:
        messages: list[NewMessage] = []
        file_ids: list[FileId] = []
        for each in batch:
            files = [file_id for file in each.files if (file_id := await self._file(each, file)) is not None]
            file_ids += files
            message = NewMessage(
                each.role,
                readable(each.text),
                each.kind,
                key=each.key,
                created_at=each.created_at,
                item=readable(each.record),
            )
            messages.append(with_files(message, files))
        source, title = line.source, _title(line.source, batch)
        appended = await self._conversations.append(
            AppendRequest(
                self._owner,
                messages,
                line.stored,
                title=title,
                files=list(dict.fromkeys(file_ids)),
                tool="import",
                create=True,
                metadata=source.metadata,
                tags=_tags(source.tags),
                created_at=source.created_at or batch[0].created_at,
                updated_at=_newest(source, batch),
            )
        )
        if appended.created:
            line.made_as = title or ""
        self._report.stored += len(messages) - len(appended.skipped)
        line.count = appended.seqs[-1] if appended.seqs else line.count

    async def _file(self, message: SourceMessage, file: SourceAttachment) -> FileId | None:
        """Store a file of a message, None if it cannot be stored, which is reported."""
        if file.size_bytes > self._files.max_bytes:
            reason = f"the file {file.name} has {file.size_bytes:,} bytes; the limit is {self._files.max_bytes:,}"
            self._report.report(DamagedRecord(message.where, reason))
            return None
        try:
            data = await asyncio.to_thread(file.load)
            content = FileContent(shown_name(file.name), data, file.media_type and shown_media_type(file.media_type))
            (stored,) = await self._files.put(self._owner, [content])
        except (InvalidArgument, *UNREADABLE) as error:
            self._report.report(DamagedRecord(message.where, f"the file {file.name} cannot be stored ({error})"))
            return None
        return stored.id

    async def _exists(self, name: ContinuationId) -> bool:
        try:
            await self._conversations.read(self._owner, name, limit=1)
        except NotFound:
            return False
        return True

    async def _seq(self, name: ContinuationId, key: str) -> int | None:
        """Return the number of a message in a conversation, None if it is not there."""
        try:
            found = await self._conversations.find(self._owner, [key], continuation_id=name)
        except NotFound:
            return None
        return found[0].message.seq if found else None

    async def _fork(self, origin: ContinuationId, seq: int, name: ContinuationId, title: str | None) -> None:
        await self._conversations.fork(self._owner, origin, at_seq=seq, title=_shown_title(title), name=name)


def _title(source: SourceConversation, batch: Sequence[SourceMessage]) -> str | None:
    """Return the title of the source, or the beginning of the first prompt that a person wrote."""
    shown = _shown_title(source.title)
    if shown is not None:
        return shown
    prompts = (each.text for each in batch if each.role == "user" and each.kind == "message")
    return next((title for text in prompts if not text.startswith("<") and (title := opening(readable(text)))), None)


def _shown_title(title: str | None) -> str | None:
    """Return a title of a source as it can be stored."""
    return readable(title)[:MAX_TITLE_CHARS] or None if title is not None else None


def _tags(tags: Sequence[str]) -> list[str]:
    """Return the tags that can be stored."""
    shown = (readable(each).strip()[:MAX_TAG_CHARS].strip() for each in tags)
    return list(dict.fromkeys(filter(None, shown)))[:MAX_TAGS]


def _newest(source: SourceConversation, batch: Sequence[SourceMessage]) -> datetime | None:
    times = [each.created_at for each in batch if each.created_at is not None]
    return max([*times, *([source.updated_at] if source.updated_at else [])], default=None)
