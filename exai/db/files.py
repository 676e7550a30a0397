"""The file statements as methods: files, their links, and the rows of their contents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import asyncpg
import orjson

from exai.db.cursors import FIRST_PAGE, Cursor, read_cursor, write_cursor
from exai.db.driver.pool import Database
from exai.db.filters import stored_part_of
from exai.db.records import FilesAlong
from exai.encryption.codec import Codec
from exai.encryption.contents import read_seal
from exai.encryption.envelope import MARKS, is_sealed_text
from exai.encryption.origins import machine_forms, name_hash, open_name, open_source
from exai.errors import ContentUnreadable
from exai.models import PAGE_MESSAGES, ContinuationId, ConversationId, FileId, FileSource, Owner, StoredFile

NO_TEXT: Final = "binary"
"""As `exai.blobs.decoding.BINARY`."""

FIRST_STORE: Final = "directory"
"""Where the bytes of a file are that was stored before contents had rows."""


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file to store.

    `data` holds a small content; a larger one is already stored in the blob `blob_id`, or in another store under
    `storage_path`. With `is_move` it replaces a content in another store. `id` becomes the file's id unless a file with
    this content, name and media type exists. `source` is kept by the links to the file, not with it.
    An `id` that `is_keyed` follows from the content, so that the file has it in any case. `characters` are those that
    begin in each part of `data`.
    """

    id: str
    sha256: str
    size_bytes: int
    media_type: str
    name: str
    blob_id: str
    encoding: str | None = None
    characters: Sequence[int] = ()
    data: bytes | None = None
    storage_path: str | None = None
    is_move: bool = False
    is_keyed: bool = False
    source: FileSource | None = None


@dataclass(frozen=True, slots=True)
class Linked:
    """Result of a link: whether the conversation exists, the missing files, and the number of new links."""

    conversation: bool
    missing: tuple[FileId, ...]
    linked: int


@dataclass(frozen=True, slots=True)
class FileList:
    """A page of files, newest first; `next_cursor` is None on the last one."""

    files: tuple[StoredFile, ...]
    next_cursor: str | None

    def cursor_after(self, number: int) -> str | None:
        """Return the cursor after the first `number` items (at least 1), for a page that is cut to them."""
        if number >= len(self.files):
            return self.next_cursor
        last = self.files[number - 1]
        return write_cursor(Cursor(last.created_at, last.id))


@dataclass(frozen=True, slots=True)
class Orphan:
    """A file removed because no conversation used it."""

    owner: Owner
    sha256: str | None
    storage_path: str | None


class FileRepository:
    """Files and their links, in Postgres. Methods with an owner access only that owner's rows."""

    def __init__(self, database: Database) -> None:
        self._database, self._codec = database, database.codec

    async def put(self, owner: Owner, store: str, files: Sequence[NewFile]) -> list[StoredFile | None]:
        """Store files and the bytes that come along, in the order given: 1 round trip.

        None stands for a file whose content is neither here nor given; it is not stored.
        """
        along = files_along(store, files)
        rows = await self._database.fetch("put_files", owner, along.store, along.described, along.data)
        return [self._file(owner, row, created=row["created"]) if row["id"] else None for row in rows]

    async def get(self, owner: Owner, file_ids: Sequence[FileId]) -> dict[FileId, StoredFile]:
        """Return those of the files that exist, by id."""
        rows = await self._database.fetch("get_files", owner, list(file_ids))
        return {FileId(row["id"]): self._file(owner, row) for row in rows}

    async def get_shown(
        self, owner: Owner, file_ids: Sequence[FileId], conversation_id: ConversationId
    ) -> dict[FileId, StoredFile]:
        """Return those of the files that exist, by id, each with its source in a conversation."""
        rows = await self._database.fetch("get_shown_files", owner, list(file_ids), conversation_id)
        return {FileId(row["id"]): self._read_file(owner, row) for row in rows}

    async def list_read(
        self, owner: Owner, continuation_id: ContinuationId, machine: str, limit: int
    ) -> tuple[StoredFile, ...]:
        """Return a conversation's files that were read on this machine, those read last first, at most `limit`."""
        rows = await self._database.fetch(
            "list_read_files", owner, continuation_id, machine_forms(self._codec, owner, machine), limit
        )
        return tuple(self._read_file(owner, row) for row in rows)

    async def list(
        self,
        owner: Owner,
        *,
        continuation_id: ContinuationId | None = None,
        limit: int = PAGE_MESSAGES,
        cursor: str | None = None,
        part: str = "",
    ) -> FileList:
        """Return an owner's files, or one conversation's, newest first.

        `part` is the beginning of a file's id, or a part of a name that is not encrypted; a conversation's files are
        not narrowed by it.
        """
        after = read_cursor(cursor) if cursor else FIRST_PAGE
        page = (owner, limit + 1, after.updated_at, after.id)
        if continuation_id is None:
            rows = await self._database.fetch("list_files", *page, *stored_part_of(part.lower(), self._codec))
        else:
            rows = await self._database.fetch("list_conversation_files", *page, continuation_id)
        found = tuple(self._file(owner, row) for row in rows[:limit])
        more = len(rows) > limit
        return FileList(found, write_cursor(Cursor(found[-1].created_at, found[-1].id)) if more else None)

    def _file(self, owner: Owner, row: asyncpg.Record, *, created: bool = False) -> StoredFile:
        """Return a file as it was given, with what is needed to read it if it is encrypted."""
        file = stored_file_of(row, created=created)
        if is_sealed_text(file.encoding):
            try:
                file = opened_file(self._codec, owner, file)
            except ContentUnreadable:
                # Its readers receive the stored form, in which there is no text.
                file = replace(file, encoding=NO_TEXT)
        if not file.name.startswith(MARKS):
            return file
        try:
            return replace(file, name=open_name(self._codec, owner, file.sha256, file.name))
        except ContentUnreadable as error:
            return replace(file, name=f"[{error}]")

    def _read_file(self, owner: Owner, row: asyncpg.Record) -> StoredFile:
        file, source = self._file(owner, row), row["source"]
        if source is None:
            return file
        try:
            return replace(file, source=open_source(self._codec, owner, file.id, orjson.loads(source)))
        except ContentUnreadable:
            # Without it no change of the file on disk is noticed, as for a file that was not read from one.
            return file

    async def link(self, owner: Owner, continuation_id: ContinuationId, file_ids: Sequence[FileId]) -> Linked:
        """Link files to a conversation, all of them or, when one is missing, none."""
        rows = await self._database.fetch("link_files", owner, continuation_id, sorted(set(file_ids)))
        row = rows[0]
        return Linked(row["conversation"], tuple(FileId(each) for each in row["missing"]), row["linked"])

    async def delete(self, owner: Owner, file_id: FileId) -> bool:
        """Delete a file and its links; return False if it does not exist. The sweep removes its content."""
        return bool(await self._database.fetch("delete_file", owner, file_id))

    async def cleanup_orphans(self, grace_s: float) -> tuple[Orphan, ...]:
        """Delete a batch of files without a conversation, unused for `grace_s`; an empty result means none is left."""
        rows = await self._database.fetch("cleanup_orphaned_files", grace_s)
        return tuple(Orphan(Owner(row["owner"]), row["sha256"], row["storage_path"]) for row in rows)

    async def stored(
        self, stores: Sequence[str], after: tuple[str, str], limit: int
    ) -> Sequence[tuple[Owner, StoredFile]]:
        """Return contents in some stores as they are stored, each with a file, in the order of owner and SHA-256."""
        rows = await self._database.fetch("stored_files", *after, list(stores), limit)
        return [(Owner(row["owner"]), stored_file_of(row)) for row in rows]

    async def count_stored(self, stores: Sequence[str]) -> tuple[int, int]:
        """Return the number of contents in some stores, and their bytes."""
        (row,) = await self._database.fetch("count_stored", list(stores))
        return row["contents"], row["size_bytes"]

    async def mark_lost(self, contents: Sequence[tuple[Owner, StoredFile]]) -> int:
        """Note that the bytes of contents are missing, so that `put` stores them again; return how many."""
        columns = [
            (owner, file.sha256, file.store, file.storage_path) for owner, file in sorted(contents, key=_content_key)
        ]
        rows = await self._database.fetch("mark_lost", *map(list, zip(*columns, strict=True)))
        return len(rows)

    async def count_orphans(self, grace_s: float) -> int:
        """Return how many files `cleanup_orphans` would delete in all."""
        (row,) = await self._database.fetch("count_orphans", grace_s)
        return int(row["files"])

    async def known(self, storage_paths: Sequence[str]) -> frozenset[str]:
        """Return those of the storage paths that belong to a content; for the sweep of bytes, so for all owners."""
        rows = await self._database.fetch("known_files", list(storage_paths))
        return frozenset(row["storage_path"] for row in rows)


def files_along(store: str, files: Sequence[NewFile]) -> FilesAlong:
    """Return files as a statement takes them that stores them in `store`, beside others of its tasks."""
    described, data = [], bytearray()
    for place, file in enumerate(files):
        described.append(_described(place, file, None if file.data is None else len(data) + 1))
        data += file.data or b""
    return FilesAlong(store, orjson.dumps(described).decode(), bytes(data))


def _described(place: int, file: NewFile, at: int | None) -> dict[str, object]:
    """Return a file as put_files_v1 reads it; `at` is where its bytes begin among those that come along."""
    return {
        "place": place,
        "at": at,
        "file_id": file.id,
        "sha256": file.sha256,
        "size_bytes": file.size_bytes,
        "media_type": file.media_type,
        "name": file.name,
        "name_hash": name_hash(file.name),
        "blob_id": file.blob_id,
        "encoding": file.encoding,
        "characters": list(file.characters),
        "storage_path": file.storage_path,
        "is_move": file.is_move,
        "is_keyed": file.is_keyed,
    }


def _content_key(content: tuple[Owner, StoredFile]) -> tuple[str, str]:
    return content[0], content[1].sha256


def opened_file(codec: Codec, owner: Owner, file: StoredFile) -> StoredFile:
    """Return a file, whose content is encrypted, with what is needed to read it. Raises `ContentUnreadable`."""
    seal = read_seal(codec, owner, file.sha256, file.encoding or "")
    return replace(
        file,
        sha256=seal.sha256,
        size_bytes=seal.size_bytes,
        encoding=seal.encoding,
        seal=seal,
        stored_sha256=file.sha256,
    )


def stored_file_of(row: asyncpg.Record, *, created: bool = False) -> StoredFile:
    """Return a file of a row as it is stored."""
    return StoredFile(
        id=FileId(row["id"]),
        sha256=row["sha256"],
        size_bytes=row["size_bytes"],
        media_type=row["media_type"] or "application/octet-stream",
        name=row["name"] or "",
        created_at=row["created_at"],
        created=created,
        store=row["store"] or FIRST_STORE,
        encoding=row["encoding"],
        storage_path=row["storage_path"],
    )
