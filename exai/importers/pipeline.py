"""Import sources: recognise their files, read them as streams in a thread, and store what they hold.

Invariant: at most some batches of records are in memory, and no record is lost without being counted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from exai.conversations import ConversationStore, Transfer
from exai.conversations.formats import ConversationText, ExportItem, MessageText
from exai.errors import Conflict, InvalidArgument
from exai.files.service import FileService
from exai.importers.reading.bundles import LEADS_OUT, UNREADABLE, Bundle, ReadMeter, open_bundle
from exai.importers.reading.documents import SourceDocument
from exai.importers.recognition import RecognisedFile, SourceKind, may_be_source, recognised_files
from exai.importers.records import DamagedRecord, PassedOver, SourceConversation, SourceItem, SourceMessage
from exai.importers.report import ImportReport
from exai.importers.sources import READERS, langgraph, own
from exai.importers.storing import Storing
from exai.models import Owner
from exai.settings.load import LimitSettings

BATCH_ITEMS: Final = 200
BATCH_BYTES: Final = 4 * 1_048_576
BATCH_S: Final = 0.5
OTHER_ENDINGS: Final = (".json", ".md", ".markdown")
"""Endings of files that exports and directories of sessions have beside their conversations."""

OTHER_FILES: Final = "files without conversations"
NOTHING: Final = "has no file that can be imported"
UNKNOWN: Final = "is not recognised as an export; name its kind if it is one"

OnProgress = Callable[[ImportReport], None]
"""Called after each batch with the report so far."""


@dataclass(frozen=True, slots=True)
class ImportTarget:
    """Where an import stores: the services of an open application."""

    conversations: ConversationStore
    files: FileService
    transfer: Transfer
    limits: LimitSettings


async def import_sources(
    target: ImportTarget | None,
    owner: Owner,
    paths: Sequence[Path],
    kind: SourceKind | None = None,
    on_progress: OnProgress = lambda _: None,
    *,
    label: str | None = None,
    addresses: Sequence[str] = (),
) -> ImportReport:
    """Import files, directories and archives; without a target everything is read and counted, and nothing stored.

    `addresses` are Postgres databases of LangGraph's checkpointer. `label` is the name of the source in errors, by
    default its path.
    Raises `NotFound` or `InvalidArgument` for a path that cannot be read, and `DatabaseError` when the store fails; an
    import that was interrupted is continued by calling this again.
    """
    importing = SourceImport(target, owner, on_progress)
    importing.report.total_bytes = await asyncio.to_thread(_size_bytes, paths, label)
    for path in paths:
        with ExitStack() as stack:
            # The directory of an archive may be long.
            bundle = await asyncio.to_thread(stack.enter_context, open_bundle(path, label))
            files = await asyncio.to_thread(recognised_files, bundle, kind)
            importing.refuse(bundle)
            if not files:
                importing.report.report(DamagedRecord(label or str(path), NOTHING))
            has_sources = any(isinstance(each, RecognisedFile) for each in files)
            for found in files:
                if isinstance(found, str) and has_sources and found.lower().endswith(OTHER_ENDINGS):
                    importing.report.count(PassedOver(OTHER_FILES))
                else:
                    await importing.file(bundle, found)
    for address in addresses:
        await importing.address(address)
    return importing.report


class SourceImport:
    """One import; `report` says how far it has come."""

    def __init__(self, target: ImportTarget | None, owner: Owner, on_progress: OnProgress) -> None:
        self.report = ImportReport(is_rehearsal=target is None)
        self._target, self._owner, self._on_progress = target, owner, on_progress
        self._storing: Storing | None = None
        if target is not None:
            self._storing = Storing(target.conversations, target.files, target.limits, owner, self.report)

    def refuse(self, bundle: Bundle) -> None:
        """Report the links of a bundle that are not followed."""
        for name in filter(may_be_source, bundle.refused()):
            self.report.report(DamagedRecord(f"{bundle.label}/{name}", LEADS_OUT))

    async def file(self, bundle: Bundle, found: RecognisedFile | str) -> None:
        """Import one file of a bundle. A file that cannot be read on is reported."""
        if isinstance(found, str):
            self.report.report(SourceDocument(bundle, found).damaged("", UNKNOWN))
            return
        self.report.sources[found.kind] += 1
        document = SourceDocument(bundle, found.name, ReadMeter())
        before = self.report.read_bytes
        try:
            if found.kind == own.KIND:
                await self._exports(document, before)
            else:
                items = await asyncio.to_thread(READERS[found.kind], document)
                await self._records(items, found.kind, document.meter, before)
        except UNREADABLE as error:
            self.report.report(document.damaged("", f"cannot be read on ({getattr(error, 'strerror', None) or error})"))
        finally:
            if self._storing is not None:
                await self._storing.end()
            self.report.read_bytes = before + bundle.size_bytes(found.name)
            self._on_progress(self.report)

    async def address(self, address: str) -> None:
        """Import the threads of a Postgres database."""
        self.report.sources[langgraph.KIND] += 1
        meter = ReadMeter()
        try:
            await self._records(langgraph.read_address(address, meter), langgraph.KIND, meter, self.report.read_bytes)
        finally:
            if self._storing is not None:
                await self._storing.end()

    async def _records(self, items: Iterator[SourceItem], kind: str, meter: ReadMeter, before: int) -> None:
        error: BaseException | None = None
        while error is None:
            batch, error = await asyncio.to_thread(_batch, items)
            for item in batch:
                self.report.count(item)
                if isinstance(item, DamagedRecord | PassedOver):
                    continue
                if self._storing is not None:
                    await self._storing.take(item, kind)
                elif isinstance(item, SourceConversation):
                    self.report.forks += item.fork is not None
                    self.report.conversations += item.fork is None
            self.report.read_bytes = before + meter.read_bytes
            self._on_progress(self.report)
        if isinstance(error, UNREADABLE):
            raise error

    async def _exports(self, document: SourceDocument, before: int) -> None:
        for exported in own.read_exports(document):
            try:
                if self._target is None:
                    await asyncio.to_thread(self._count, exported.items)
                else:
                    await self._export(self._target, exported.items)
            except (InvalidArgument, Conflict) as error:
                self.report.report(DamagedRecord(exported.where, str(error)))
            self.report.read_bytes = before + document.meter.read_bytes
            self._on_progress(self.report)

    async def _export(self, target: ImportTarget, items: Iterator[ExportItem]) -> None:
        seen = stored = 0
        is_begun = False
        async for progress in target.transfer.import_text(self._owner, items):
            self.report.messages += progress.seen - seen
            self.report.stored += progress.stored - stored
            self.report.conversations += not is_begun
            seen, stored, is_begun = progress.seen, progress.stored, True
            self._on_progress(self.report)

    def _count(self, items: Iterator[ExportItem]) -> None:
        for item in items:
            self.report.conversations += isinstance(item, ConversationText)
            self.report.messages += isinstance(item, MessageText)


def _batch(items: Iterator[SourceItem]) -> tuple[list[SourceItem], BaseException | None]:
    """Return the next records, and at the end `StopIteration` or what prevents reading on; blocks."""
    batch: list[SourceItem] = []
    size_bytes, until = 0, time.monotonic() + BATCH_S
    while len(batch) < BATCH_ITEMS and size_bytes < BATCH_BYTES and time.monotonic() < until:
        try:
            item = next(items)
        except (StopIteration, *UNREADABLE) as error:
            return batch, error
        batch.append(item)
        if isinstance(item, SourceMessage):
            size_bytes += len(item.text) + len(item.record)
    return batch, None


def _size_bytes(paths: Sequence[Path], label: str | None) -> int:
    """Return the size of all files that may be read, for the estimate."""
    total = 0
    for path in paths:
        with open_bundle(path, label) as bundle:
            total += sum(bundle.size_bytes(name) for name in bundle.names() if may_be_source(name))
    return total
