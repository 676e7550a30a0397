"""The file statements as methods: rows about contents and their links, never the bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import asyncpg

from exai.db.conversations import read_cursor, write_cursor
from exai.db.pool import Database
from exai.db.records import FIRST_PAGE, Cursor
from exai.db.rows import check_texts
from exai.errors import InvalidArgument
from exai.models import PAGE_MESSAGES, ContinuationId, FileId, Owner, StoredFile


@dataclass(frozen=True, slots=True)
class NewFile:
    """A content whose bytes are kept already. `storage_path` is its key in the blob store."""

    sha256: str
    size_bytes: int
    media_type: str
    name: str
    storage_path: str


@dataclass(frozen=True, slots=True)
class Linked:
    """What a link did: whether the conversation exists, which files do not, how many links are new."""

    conversation: bool
    missing: tuple[FileId, ...]
    linked: int


@dataclass(frozen=True, slots=True)
class FileList:
    """A page of files, newest first; `next_cursor` is None on the last one."""

    files: tuple[StoredFile, ...]
    next_cursor: str | None

    def cursor_after(self, number: int) -> str | None:
        """Return the cursor of a page that holds only so many of these, one at least."""
        if number >= len(self.files):
            return self.next_cursor
        last = self.files[number - 1]
        return write_cursor(Cursor(last.created_at, last.id))


@dataclass(frozen=True, slots=True)
class Orphan:
    """A file that was forgotten; its bytes can go."""

    owner: Owner
    sha256: str | None
    storage_path: str | None


class FileRepository:
    """Files and their links, in Postgres. Sees nothing of other owners."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, owner: Owner, files: Sequence[NewFile]) -> dict[str, StoredFile]:
        """Record contents, each once, and return them by SHA-256; one that was there keeps its id and name."""
        for index, file in enumerate(files):
            check_texts(((f"files[{index}].name", file.name), (f"files[{index}].media_type", file.media_type)))
        rows = await self._database.fetch(
            "put_files",
            owner,
            [file.sha256 for file in files],
            [str(file.size_bytes) for file in files],
            [file.media_type for file in files],
            [file.name for file in files],
            [file.storage_path for file in files],
        )
        return {row["sha256"]: _file_of(row, created=row["created"]) for row in rows}

    async def get(self, owner: Owner, file_ids: Sequence[FileId]) -> dict[FileId, StoredFile]:
        """Return those of the files that exist, by id."""
        check_ids(file_ids)
        rows = await self._database.fetch("get_files", owner, list(file_ids))
        return {FileId(row["id"]): _file_of(row) for row in rows}

    async def list(
        self,
        owner: Owner,
        *,
        continuation_id: ContinuationId | None = None,
        limit: int = PAGE_MESSAGES,
        cursor: str | None = None,
    ) -> FileList:
        """Return an owner's files, or one conversation's, newest first."""
        after = read_cursor(cursor) if cursor else FIRST_PAGE
        page = (owner, limit + 1, after.updated_at, after.id)
        if continuation_id is None:
            rows = await self._database.fetch("list_files", *page)
        else:
            rows = await self._database.fetch("list_conversation_files", *page, continuation_id)
        found = tuple(_file_of(row) for row in rows[:limit])
        more = len(rows) > limit
        return FileList(found, write_cursor(Cursor(found[-1].created_at, found[-1].id)) if more else None)

    async def link(self, owner: Owner, continuation_id: ContinuationId, file_ids: Sequence[FileId]) -> Linked:
        """Link files to a conversation, all of them or, when one is missing, none."""
        check_ids(file_ids)
        rows = await self._database.fetch("link_files", owner, continuation_id, sorted(set(file_ids)))
        row = rows[0]
        return Linked(row["conversation"], tuple(FileId(each) for each in row["missing"]), row["linked"])

    async def delete(self, owner: Owner, file_id: FileId) -> bool:
        """Forget a file and its links; False when there is none. The bytes are left to the sweep."""
        check_ids([file_id])
        return bool(await self._database.fetch("delete_file", owner, file_id))

    async def cleanup_orphans(self, grace_s: float) -> tuple[Orphan, ...]:
        """Forget some of the files without a conversation that nobody has used for `grace_s`; none: none are left."""
        rows = await self._database.fetch("cleanup_orphaned_files", grace_s)
        return tuple(Orphan(Owner(row["owner"]), row["sha256"], row["storage_path"]) for row in rows)

    async def known(self, storage_paths: Sequence[str]) -> frozenset[str]:
        """Return those of the storage paths that some file still has; for the sweep of bytes, so for all owners."""
        rows = await self._database.fetch("known_files", list(storage_paths))
        return frozenset(row["storage_path"] for row in rows)


def check_ids(file_ids: Sequence[FileId]) -> None:
    """Raise InvalidArgument for what cannot be a file's id."""
    for index, file_id in enumerate(file_ids):
        try:
            UUID(file_id)
        except ValueError:
            raise InvalidArgument(
                f"files[{index}]", "is not a file's id", "Use the id that file_put returned"
            ) from None


def _file_of(row: asyncpg.Record, *, created: bool = False) -> StoredFile:
    return StoredFile(
        id=FileId(row["id"]),
        sha256=row["sha256"],
        size_bytes=row["size_bytes"],
        media_type=row["media_type"] or "application/octet-stream",
        name=row["name"] or "",
        created_at=row["created_at"],
        created=created,
    )
