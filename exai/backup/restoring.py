"""Restores a backup into an empty database and the selected store of files.

The database is brought to the revision of the backup, filled in one transaction, and migrated to this release.

Invariant: nothing is changed before the whole backup has been verified. A restoration that is broken off leaves no
row, and can be repeated.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from exai.backup.manifest import TableRecord
from exai.backup.progress import ShowsProgress
from exai.backup.rows import END, NULL, WordKeys, escaped, lines, unescaped
from exai.backup.verifying import BackupReader
from exai.backup.writing import POSTGRES
from exai.blobs.base import PART_BYTES, BlobStore, characters_in
from exai.db.backup.loading import Loading, open_loading
from exai.db.backup.snapshot import SequenceState
from exai.errors import InvalidArgument
from exai.models import Owner

CONTENTS: Final = "exai.contents"
WORDS: Final = "exai.message_words"
BLOBS: Final = ("id", "size_bytes")
PARTS: Final = ("blob_id", "number", "characters", "data")
OWNER: Final = "owner"
KEYS: Final = "exai.encryption_keys"
LOST: Final = "lost"
"""The path of a content whose bytes are in no store."""


@dataclass(slots=True)
class Restored:
    """What a restoration has done. `left_out` names columns that this database does not have."""

    rows: int = 0
    contents: int = 0
    missing: int = 0
    left_out: list[str] = field(default_factory=list)


class BackupRestorer:
    """Restores one backup into the database at `url`; `store` is None if contents belong into the database."""

    def __init__(
        self, backup: BackupReader, store: BlobStore | None, owners: Mapping[str, str], progress: ShowsProgress
    ) -> None:
        self._backup, self._store, self._progress = backup, store, progress
        self._owners = {escaped(old): escaped(new) for old, new in owners.items()}
        self._new = frozenset(self._owners.values())
        self._names = owners
        self._renamed: set[bytes] = set()
        self._taken: set[bytes] = set()
        self._restored = Restored()
        self._keys = WordKeys(owners) if owners else None

    async def restore(self, url: str) -> Restored:
        """Fill the database, which is at the revision of the backup. Raises a `DatabaseError` or `BlobError`."""
        manifest = self._backup.manifest
        if self._names and any(table.name == KEYS and table.rows for table in manifest.tables):
            raise InvalidArgument(
                "--owner",
                "cannot rename owners, because the content of this backup is encrypted for each owner",
                "Restore it with the names it has, then export conversations and import them for the other owner",
            )
        self._progress.expect(manifest.expected_bytes)
        async with open_loading(url) as loading:
            known = {table.name: table for table in manifest.tables}
            for name in loading.tables:
                if name == CONTENTS:
                    await self._load_contents(loading, known[name])
                elif name in known:
                    await self._load(loading, known[name])
            self._check_tables(loading, known)
            for schema, name, last_value in manifest.sequences:
                await loading.set_sequence(SequenceState(schema, name, last_value))
            await loading.set_paths()
            self._check_owners()
            for old, new in _in_turn(self._names):
                await loading.rename_owner(old, new)
        return self._restored

    def _check_tables(self, loading: Loading, known: Mapping[str, TableRecord]) -> None:
        for name, record in known.items():
            if name not in loading.tables and record.rows:
                raise InvalidArgument(
                    "DIRECTORY", f"has rows of {name}, which this database does not have", "Report it"
                )

    def _check_owners(self) -> None:
        unknown = [name for name in self._names if escaped(name) not in self._renamed]
        if unknown:
            problem = f"names owners without a row in the backup: {', '.join(unknown)}"
            raise InvalidArgument("--owner", problem, "Write OLD=NEW with names of the backup as OLD")
        if self._taken:
            names = ", ".join(sorted(map(unescaped, self._taken)))
            problem = f"would mix rows of two owners: the backup has rows of {names} already"
            raise InvalidArgument("--owner", problem, "Give a NEW without rows in the backup, or rename that one too")

    async def _load(self, loading: Loading, record: TableRecord) -> None:
        target = loading.tables[record.name]
        columns = [column for column in record.columns if column in target.columns]
        self._restored.left_out += [f"{record.name}.{each}" for each in record.columns if each not in target.columns]
        rows = await loading.copy(target, columns, self._rows(record, columns))
        self._counted(record, rows)

    def _counted(self, record: TableRecord, rows: int) -> None:
        if rows != record.rows:
            raise InvalidArgument("DIRECTORY", f"{record.name} has {rows} rows instead of {record.rows}", "Verify it")
        self._restored.rows += rows

    async def _rows(self, record: TableRecord, columns: Sequence[str]) -> AsyncIterator[bytes]:
        """Yield the rows of a table in pieces, with only these columns and with renamed owners."""
        is_whole = list(columns) == list(record.columns)
        owner = record.columns.index(OWNER) if OWNER in columns and self._owners else None
        keys = self._keys if record.name == WORDS else None
        places = [record.columns.index(column) for column in columns]
        pieces = self._backup.pieces(record.part)
        if is_whole and owner is None and keys is None:
            while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                self._progress.add(len(piece), record.name)
                yield piece
            return
        grouped = lines(pieces)
        while (some := await asyncio.to_thread(next, grouped, None)) is not None:
            changed = []
            for line in some:
                fields = (keys.replaced(line) if keys else line).split(b"\t")
                if owner is not None:
                    fields[owner] = self._renaming(fields[owner])
                changed.append(b"\t".join(fields if is_whole else [fields[place] for place in places]))
            self._progress.add(sum(map(len, some)) + len(some), record.name)
            yield END.join(changed) + END

    def _renaming(self, owner: bytes) -> bytes:
        renamed = self._owners.get(owner)
        if renamed is None:
            if owner in self._new:
                self._taken.add(owner)
            return owner
        self._renamed.add(owner)
        return renamed

    async def _load_contents(self, loading: Loading, record: TableRecord) -> None:
        """Store the bytes of all contents, and the rows that refer to them."""
        if self._store is None:
            await loading.copy(loading.tables["exai.blobs"], BLOBS, self._blobs())
            await loading.copy(loading.tables["exai.blob_parts"], PARTS, self._parts())
        target = loading.tables[record.name]
        columns = [column for column in record.columns if column in target.columns]
        rows = await loading.copy(target, columns, self._content_rows(record, columns))
        self._restored.rows += rows

    async def _blobs(self) -> AsyncIterator[bytes]:
        for entry in self._backup.entries():
            yield _line(_blob_id(entry.owner, entry.sha256), b"%d" % entry.size_bytes)

    async def _parts(self) -> AsyncIterator[bytes]:
        for entry in self._backup.entries():
            if not self._backup.has(entry.sha256):
                continue
            blob_id, pending, number = _blob_id(entry.owner, entry.sha256), bytearray(), 0
            pieces = self._backup.bytes_of(entry.sha256)
            while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                pending += piece
                while len(pending) >= PART_BYTES:
                    yield _part(blob_id, number, bytes(pending[:PART_BYTES]))
                    del pending[:PART_BYTES]
                    number += 1
            if pending:
                yield _part(blob_id, number, bytes(pending))
            self._progress.add(entry.size_bytes, "files")

    async def _content_rows(self, record: TableRecord, columns: Sequence[str]) -> AsyncIterator[bytes]:
        """Yield the rows of contents with their new places, then new rows for files from before there were any."""
        now = escaped(datetime.now(UTC).isoformat())
        for some in lines(self._backup.pieces(record.part)):
            for line in some:
                values = dict(zip(record.columns, line.split(b"\t"), strict=True))
                yield await self._content_row(values, columns, now)
        for entry in self._backup.entries():
            if not entry.has_row:
                key = {OWNER: escaped(entry.owner), "sha256": entry.sha256.encode()}
                rest = {"size_bytes": b"%d" % entry.size_bytes, "used_at": now}
                yield await self._content_row({**dict.fromkeys(record.columns, NULL), **key, **rest}, columns, now)

    async def _content_row(self, values: dict[str, bytes], columns: Sequence[str], now: bytes) -> bytes:
        """Store the bytes of a content, unless they are in the database already, and return its row."""
        owner, sha256 = unescaped(values[OWNER]), values["sha256"].decode()
        has_bytes = self._backup.has(sha256)
        if self._store is None:
            place = {"store": POSTGRES.encode(), "blob_id": _blob_id(owner, sha256), "storage_path": NULL}
        else:
            path = await self._put(self._store, owner, sha256) if has_bytes else LOST
            place = {"store": self._store.name.encode(), "blob_id": NULL, "storage_path": escaped(path)}
            self._progress.add(int(values["size_bytes"]), "files")
        lost = NULL if has_bytes else now
        self._restored.contents += 1
        self._restored.missing += not has_bytes
        values |= {**place, OWNER: self._renaming(values[OWNER]), "lost_at": lost}
        return _line(*(values[column] for column in columns))

    async def _put(self, store: BlobStore, owner: str, sha256: str) -> str:
        data = b"".join(await asyncio.to_thread(list, self._backup.bytes_of(sha256)))
        path = await store.put(Owner(self._names.get(owner, owner)), sha256, data, str(uuid.uuid4()))
        return path or LOST


def _in_turn(owners: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return renamings to be carried out one after the other, by names in between if one's NEW is another one's OLD."""
    if not owners.keys() & set(owners.values()):
        return list(owners.items())
    between = {old: str(uuid.uuid4()) for old in owners}
    return [*between.items(), *((between[old], new) for old, new in owners.items())]


def _blob_id(owner: str, sha256: str) -> bytes:
    digest = hashlib.sha256(f"{owner}\0{sha256}".encode(errors="surrogatepass")).digest()
    return str(uuid.UUID(bytes=digest[:16], version=4)).encode()


def _part(blob_id: bytes, number: int, data: bytes) -> bytes:
    return _line(blob_id, b"%d" % number, b"%d" % characters_in(data), b"\\\\x" + data.hex().encode())


def _line(*values: bytes) -> bytes:
    return b"\t".join(values) + END
