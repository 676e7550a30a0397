"""Makes a backup: all tables in one snapshot, and the contents of files that an earlier backup does not have.

Invariant: the manifest is written after everything else is durable. A directory without one is no backup, and is
started over by the next attempt.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import orjson

from exai.backup.manifest import (
    BYTES,
    LISTING,
    TABLES,
    Manifest,
    PartRecord,
    TableRecord,
    is_complete,
    table_file,
    write_manifest,
)
from exai.backup.parts import DIRECTORY_MODE, PartWriter, disk
from exai.backup.progress import ShowsProgress
from exai.backup.sealing import Damaged, Seal
from exai.blobs.base import BlobStore
from exai.db.backup.catalogue import TableShape
from exai.db.backup.snapshot import ListedContent, Snapshot
from exai.db.migrations.revision import expected_revision
from exai.errors import BlobError, InvalidArgument, SchemaMismatch
from exai.models import FileId, Owner, StoredFile

STARTED: Final = "incomplete"
"""The file that marks a directory as one in which a backup was begun."""

GATHERED_BYTES: Final = 524_288
READ_BYTES: Final = 4 * 1_048_576
POSTGRES: Final = "postgres"


@dataclass(frozen=True, slots=True)
class Base:
    """An earlier backup, whose contents of files are linked instead of copied."""

    directory: Path
    seal: Seal | None


@dataclass(slots=True)
class Written:
    """What became of the contents of files; `problems` names those without bytes."""

    contents: int = 0
    size_bytes: int = 0
    copied: int = 0
    linked: int = 0
    missing: int = 0
    problems: list[str] = field(default_factory=list)


MAX_PROBLEMS: Final = 20


class BackupWriter:
    """Writes one backup into a directory, which is new, empty, or holds one that was broken off."""

    def __init__(
        self, directory: Path, seal: Seal | None, stores: dict[str, BlobStore], progress: ShowsProgress
    ) -> None:
        self._directory, self._seal, self._stores, self._progress = directory, seal, stores, progress

    def prepare(self) -> None:
        """Make the directory. Raises `InvalidArgument` if it holds anything else."""
        directory = self._directory
        if is_complete(directory):
            raise InvalidArgument("DIRECTORY", f"{directory} holds a backup", "Give another directory")
        with disk(directory, "written"):
            directory.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
            if any(directory.iterdir()) and not (directory / STARTED).exists():
                raise InvalidArgument("DIRECTORY", f"{directory} is not empty", "Give one that does not exist yet")
            (directory / STARTED).touch(mode=0o600)
            for name in (TABLES, BYTES):
                shutil.rmtree(directory / name, ignore_errors=True)

    async def write(self, snapshot: Snapshot, base: Base | None) -> tuple[Manifest, Written]:
        """Write everything, and return the manifest. Raises a `DatabaseError` or `BlobError`."""
        if not snapshot.revision or snapshot.revision > expected_revision():
            state = f"at revision {snapshot.revision}" if snapshot.revision else "not migrated"
            cure = (
                "Use the release that migrated it, or a newer one" if snapshot.revision else "There is nothing to keep"
            )
            raise SchemaMismatch("database", f"the database is {state}", cure)
        created_at = datetime.now(UTC).isoformat(timespec="seconds")
        shapes = await snapshot.tables()
        self._progress.expect(sum(shape.size_bytes for shape in shapes))
        tables = [await self._table(snapshot, shape) for shape in shapes]
        written = Written()
        listing = await self._contents(snapshot, base, written)
        sequences = [(each.schema, each.name, each.last_value) for each in await snapshot.sequences()]
        manifest = Manifest(
            created_at=created_at,
            revision=snapshot.revision,
            server_version=snapshot.server_version,
            tables=tables,
            sequences=sequences,
            listing=listing,
            contents=written.contents,
            content_bytes=written.size_bytes,
            missing=written.missing,
        )
        with disk(self._directory, "written"):
            (self._directory / STARTED).unlink()
            await asyncio.to_thread(write_manifest, self._directory, manifest, self._seal)
        return manifest, written

    async def _table(self, snapshot: Snapshot, shape: TableShape) -> TableRecord:
        name = table_file(shape.name)
        part = PartWriter(self._directory, name, self._seal)
        gathered = bytearray()

        async def sink(data: bytes) -> None:
            gathered.extend(data)
            if len(gathered) >= GATHERED_BYTES:
                await asyncio.to_thread(part.write, bytes(gathered))
                self._progress.add(len(gathered), shape.name)
                gathered.clear()

        try:
            rows = await snapshot.copy(shape, sink)
            part.write(bytes(gathered))
            self._progress.add(len(gathered), shape.name)
        except BaseException:
            part.abandon()
            raise
        return TableRecord(shape.schema, shape.table, shape.columns, rows, _record(part, name))

    async def _contents(self, snapshot: Snapshot, base: Base | None, written: Written) -> PartRecord:
        """Store the contents of all files, and list them."""
        part = PartWriter(self._directory, LISTING, self._seal)
        try:
            async for content in snapshot.contents():
                problem = await self._content(snapshot, content, base, written)
                line = {
                    "owner": content.owner,
                    "sha256": content.sha256,
                    "size_bytes": content.size_bytes,
                    "has_row": content.has_row,
                    "problem": problem,
                }
                part.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        except BaseException:
            part.abandon()
            raise
        return _record(part, LISTING)

    async def _content(
        self, snapshot: Snapshot, content: ListedContent, base: Base | None, written: Written
    ) -> str | None:
        """Store one content; return why there are no bytes of it, None if there are."""
        name = place_of(content.sha256, self._seal)
        written.contents += 1
        written.size_bytes += content.size_bytes
        if (self._directory / name).exists():
            # Another owner has the same content.
            return None
        if base is not None and await asyncio.to_thread(_linked, base.directory / name, self._directory / name):
            written.linked += 1
            return None
        try:
            await self._copy(snapshot, content, name)
        except (BlobError, Damaged) as error:
            written.missing += 1
            if len(written.problems) < MAX_PROBLEMS:
                written.problems.append(f"{content.sha256} of {content.owner}, in {content.store}: {error.problem}")
            return error.problem
        written.copied += 1
        return None

    async def _copy(self, snapshot: Snapshot, content: ListedContent, name: str) -> None:
        part = PartWriter(self._directory, name, self._seal)
        try:
            async for piece in self._read(snapshot, content):
                await asyncio.to_thread(part.write, piece)
                self._progress.add(len(piece), "files")
            if (part.size_bytes, part.sha256) != (content.size_bytes, content.sha256):
                raise Damaged("its bytes are missing or have changed")
            await asyncio.to_thread(part.close)
        except BaseException:
            part.abandon()
            raise

    async def _read(self, snapshot: Snapshot, content: ListedContent) -> AsyncIterator[bytes]:
        if content.store == POSTGRES:
            async for piece in snapshot.bytes_of(content):
                yield piece
            return
        store = self._stores.get(content.store)
        if store is None:
            raise BlobError("files", f"the store {content.store!r} is not configured", "Set its address and key")
        file = file_of(content.sha256, content.size_bytes, content.store, content.storage_path)
        for offset in range(0, content.size_bytes, READ_BYTES):
            size_bytes = min(READ_BYTES, content.size_bytes - offset)
            yield await store.read(Owner(content.owner), file, offset, size_bytes)


def place_of(sha256: str, seal: Seal | None) -> str:
    """Return the name of a content's file in a backup."""
    name = seal.name_of(sha256) if seal else sha256
    return f"{BYTES}/{name[:2]}/{name}.zst"


def file_of(sha256: str, size_bytes: int, store: str, storage_path: str | None) -> StoredFile:
    """Return what a store has to know about a content."""
    at = datetime.now(UTC)
    return StoredFile(FileId(""), sha256, size_bytes, "", "", at, store=store, storage_path=storage_path)


def _record(part: PartWriter, name: str) -> PartRecord:
    stored_bytes = part.close()
    return PartRecord(name, part.size_bytes, part.sha256, stored_bytes)


def _linked(source: Path, target: Path) -> bool:
    """Give a file of an earlier backup a second name here, or copy it where that is impossible."""
    if not source.is_file():
        return False
    with disk(target.parent, "written"):
        target.parent.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)
    return True
