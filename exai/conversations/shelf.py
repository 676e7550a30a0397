"""The files of an export: where they are read from, and how those of an import are stored as they come."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from exai.blobs.base import digest
from exai.conversations.formats import FileText
from exai.db.files import FileList
from exai.errors import InvalidArgument
from exai.models import ContinuationId, FileId, Owner, StoredFile
from exai.validation import MAX_LIST


class Shelf(Protocol):
    """The files of conversations; `exai.files.service` has them."""

    async def list(
        self, owner: Owner, *, continuation_id: ContinuationId | None, limit: int, cursor: str | None
    ) -> FileList:
        """Return a page of a conversation's files."""

    async def read_bytes(self, owner: Owner, file: StoredFile, offset: int, size_bytes: int) -> bytes:
        """Return some bytes of a file."""

    async def store(self, owner: Owner, name: str, media_type: str, data: bytes) -> FileId:
        """Store a file, unless there is one with this content, name and media type."""

    async def store_known(
        self, owner: Owner, name: str, media_type: str, sha256: str, size_bytes: int
    ) -> FileId | None:
        """Store a file whose content is here already; None if it is not."""

    async def link(self, owner: Owner, continuation_id: ContinuationId, file_ids: Sequence[FileId]) -> int:
        """Link files to a conversation."""


class ImportedFiles:
    """The files of an import, stored in the order of the text; `names` maps their ids to those of this store."""

    def __init__(self, shelf: Shelf, owner: Owner) -> None:
        self._shelf, self._owner = shelf, owner
        self._begun: FileText | None = None
        self._data = bytearray()
        self.names: dict[str, FileId] = {}
        self.notes: list[str] = []

    async def take(self, part: FileText) -> None:
        """Store a file that is whole with this part. Raises `InvalidArgument`."""
        if part.data is None:
            known = (part.name, part.media_type, part.sha256, part.size_bytes)
            file_id = await self._shelf.store_known(self._owner, *known)
            if file_id is None:
                self.notes.append(f"file {part.name} ({part.file_id}) is only named in the text, and is not here")
            else:
                self.names[part.file_id] = file_id
            return
        if part.offset == 0:
            self.check_whole()
            self._begun, self._data = part, bytearray()
        begun = self._begun
        if begun is None or begun.file_id != part.file_id or part.offset != len(self._data):
            raise InvalidArgument(part.where, "is a part of a file whose beginning is missing", "Export it again")
        self._data += part.data
        if len(self._data) < part.size_bytes:
            return
        data = bytes(self._data)
        self._begun, self._data = None, bytearray()
        if len(data) != part.size_bytes or await asyncio.to_thread(digest, data) != part.sha256:
            raise InvalidArgument(
                part.where, f"the bytes of {part.name!r} are not those of its digest", "Export it again"
            )
        self.names[part.file_id] = await self._shelf.store(self._owner, part.name, part.media_type, data)

    def check_whole(self) -> None:
        """Raise `InvalidArgument` if the end of a file is missing."""
        if self._begun is not None:
            raise InvalidArgument(self._begun.where, f"the end of {self._begun.name!r} is missing", "Export it again")

    async def link(self, name: ContinuationId) -> None:
        """Link the files to the conversation."""
        ids = list(dict.fromkeys(self.names.values()))
        for start in range(0, len(ids), MAX_LIST):
            await self._shelf.link(self._owner, name, ids[start : start + MAX_LIST])
