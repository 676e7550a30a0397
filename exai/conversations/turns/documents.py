"""The text of documents among the files of a conversation, such as a PDF: read here, or by the model's provider.

A document is read once: its text is stored by its content, and every later turn, model and daemon takes it from there.
A provider reads what cannot be read here, such as a scan; its copy is deleted afterwards.

Invariant: the id of a copy at a provider is stored before its text is asked for, and until the copy is deleted there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Final

import structlog

from exai.background import Background
from exai.blobs.base import Blobs
from exai.blobs.decoding import BINARY, decode
from exai.db.documents import DocumentRepository, StoredText
from exai.errors import BlobError, DatabaseError
from exai.fairness import Places
from exai.files.sources.bounds import Bounds
from exai.files.sources.documents import KINDS, MAX_DOCUMENT_BYTES, kind_of, text_of
from exai.models import Owner, StoredFile
from exai.providers.base import Model
from exai.providers.completion.extraction import SUFFIXES, ExtractFailed, FileExtract
from exai.providers.registry import Providers
from exai.resilience import remaining_s

LOCAL_S: Final = 15.0
WAIT_S: Final = 90.0
"""Longest wait of a turn for the texts of its documents; reading goes on, for the next turn."""

RESERVE_S: Final = 20.0
"""Part of a request's time that is kept for the model."""

MAX_TEXT_CHARS: Final = 2_000_000
PLACES: Final = 3
MAX_READINGS: Final = 20
"""Documents that one turn has read; the others are read by the next ones."""

SWEEP_PAUSE_S: Final = 3_600.0
SWEEP_BATCH: Final = 20
HOW: Final = (
    "a Kimi model reads such documents: ask one with this file once, and its text is kept for every model; or give "
    "the text itself"
)

TURNED_OFF: Final = "set EXAI_FILES__PROVIDER_EXTRACT=true so that Kimi may read it, or give its text"
NOT_CONFIGURED: Final = "set KIMI_API_KEY and call again with a Kimi model, which reads it, or give its text"

log = structlog.get_logger(__name__)


def is_document(file: StoredFile) -> bool:
    """Return whether a file may be a document whose text has to be read; a PDF may consist of ASCII."""
    suffix = PurePath(file.name).suffix.lower()
    return suffix == ".pdf" or (file.encoding == BINARY and suffix in SUFFIXES | KINDS.keys())


class Documents:
    """Finds the texts of documents. Never raises for a document that cannot be read."""

    def __init__(
        self,
        repository: DocumentRepository,
        blobs: Blobs,
        providers: Providers,
        background: Background,
        *,
        may_upload: bool,
    ) -> None:
        self._repository, self._blobs, self._providers = repository, blobs, providers
        self._background, self._may_upload = background, may_upload
        self._places = Places(PLACES)
        self._readings: dict[tuple[Owner, str, bool], asyncio.Task[StoredText]] = {}

    async def texts(self, owner: Owner, files: Sequence[StoredFile], model: Model | None) -> Mapping[str, StoredText]:
        """Return the texts of documents by SHA-256, or why there is none: 1 round trip if all are known.

        Raises `DatabaseError`.
        """
        wanted = {file.address: file for file in files if is_document(file)}
        if not wanted:
            return {}
        extract = self._providers.extract(model) if model is not None and self._may_upload else None
        found = dict(await self._repository.texts(owner, list(wanted)))
        readings: dict[str, asyncio.Task[StoredText]] = {}
        for sha256, file in wanted.items():
            known = found.get(sha256)
            is_settled = known is not None and (known.text is not None or known.source == "provider")
            if is_settled or (known is not None and not _may_read(extract, file)):
                continue
            if len(readings) < MAX_READINGS:
                readings[sha256] = self._reading(owner, file, extract, known)
        if readings:
            left_s = remaining_s(RESERVE_S)
            await asyncio.wait(readings.values(), timeout=WAIT_S if left_s is None else min(max(left_s, 0), WAIT_S))
        for sha256, task in readings.items():
            unread = StoredText("local", None, "is still being read; ask again in a minute")
            found[sha256] = task.result() if task.done() and not task.cancelled() else unread
        return {sha256: _explained(text, extract) for sha256, text in found.items()}

    def scan_cure(self, model: Model) -> str | None:
        """Return what a caller of `model` can do about a PDF without text; None if the model's provider reads it."""
        if not self._may_upload:
            return TURNED_OFF
        if self._providers.extract(model) is not None:
            return None
        reading = {extract.provider for extract in self._providers.extracts()}
        able = [info.name for info in self._providers.models() if info.configured and info.provider in reading]
        return f"call again with model {able[0]}, whose provider reads it" if able else NOT_CONFIGURED

    async def run(self) -> None:
        """Delete copies at providers that could not be deleted at once, now and every hour, until cancelled."""
        while True:
            for extract in self._providers.extracts():
                await self._sweep(extract)
            await asyncio.sleep(SWEEP_PAUSE_S)

    def _reading(
        self, owner: Owner, file: StoredFile, extract: FileExtract | None, known: StoredText | None
    ) -> asyncio.Task[StoredText]:
        """Return the task that reads a document, which callers share."""
        key = (owner, file.address, extract is not None)
        task = self._readings.get(key)
        if task is None:
            task = self._background.start("document-reading", self._read(owner, file, extract, known))
            self._readings[key] = task
            task.add_done_callback(lambda _: self._readings.pop(key, None))
        return task

    async def _read(
        self, owner: Owner, file: StoredFile, extract: FileExtract | None, known: StoredText | None
    ) -> StoredText:
        try:
            async with self._places.hold(owner, what="a place to read documents"):
                data = await self._blobs.get(owner, file)
                found = await asyncio.to_thread(_read_here, file, data) if known is None else known
                if found.text is None and extract is not None and extract.takes(file.name, file.size_bytes):
                    return await self._read_there(owner, file, data, extract)
                await self._repository.keep(owner, file.address, found)
        except (BlobError, DatabaseError) as error:
            return StoredText("local", None, f"cannot be read: {error}")
        except Exception as error:
            log.exception("document_not_read", sha256=file.address)
            return StoredText("local", None, f"cannot be read ({type(error).__name__})")
        return found

    async def _read_there(self, owner: Owner, file: StoredFile, data: bytes, extract: FileExtract) -> StoredText:
        """Have the provider read a document, and delete its copy there."""
        await self._sweep(extract)
        try:
            file_id = await extract.upload(file.name, data, file.media_type)
            try:
                await self._repository.remember(extract.key_id, file_id)
                text = await extract.text(file_id)
            finally:
                await self._delete(extract, file_id)
        except ExtractFailed as error:
            failed = StoredText("provider", None, f"{extract.provider} did not read it: {error}")
            if error.is_final:
                await self._repository.keep(owner, file.address, failed)
            return failed
        note = f"its text was extracted by {extract.provider}, free of charge; it is counted as input"
        if len(text) > MAX_TEXT_CHARS:
            text, note = text[:MAX_TEXT_CHARS], f"{note}; cut after {MAX_TEXT_CHARS:,} characters"
        found = StoredText("provider", _storable(text), note)
        await self._repository.keep(owner, file.address, found)
        return found

    async def _sweep(self, extract: FileExtract) -> None:
        try:
            for file_id in await self._repository.claim(extract.key_id, SWEEP_BATCH):
                await self._delete(extract, file_id)
        except DatabaseError as error:
            log.warning("remote_files_not_swept", provider=extract.provider, error=str(error))

    async def _delete(self, extract: FileExtract, file_id: str) -> None:
        if await extract.delete(file_id):
            await self._repository.forget(extract.key_id, file_id)
        else:
            log.warning("remote_file_not_deleted", provider=extract.provider, file=file_id)


def _may_read(extract: FileExtract | None, file: StoredFile) -> bool:
    return extract is not None and extract.takes(file.name, file.size_bytes)


def _read_here(file: StoredFile, data: bytes) -> StoredText:
    kind = kind_of(file.name, data)
    if kind is None:
        decoded = None if file.encoding == BINARY else decode(data, file.encoding)
        if decoded is not None:
            return StoredText("local", _storable(decoded.text), decoded.note or "")
        return StoredText("local", None, f"not text, {file.size_bytes} bytes")
    if len(data) > MAX_DOCUMENT_BYTES:
        return StoredText("local", None, f"{kind} of {len(data):,} bytes, over the limit of {MAX_DOCUMENT_BYTES:,}")
    read = text_of(kind, data, Bounds(time.monotonic, time.monotonic() + LOCAL_S))
    return StoredText("local", None if read.text is None else _storable(read.text), read.note)


def _storable(text: str) -> str:
    """Return a text without the characters that the database cannot store."""
    return text.replace("\0", "").encode(errors="replace").decode()


def _explained(found: StoredText, extract: FileExtract | None) -> StoredText:
    """Add to the reason of a missing text how to get it, unless the provider has been asked."""
    if found.text is not None or found.source == "provider" or extract is not None:
        return found
    return StoredText(found.source, None, f"{found.note}; {HOW}")
