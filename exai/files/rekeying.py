"""Stores the contents of files in another form: encrypted instead of plain, or plain again.

Invariant: bytes are in the store, and equal to what was encrypted, before a file refers to them; the former ones stay
until a sweep after the grace period. So the work can be interrupted at any time, begun again, and done by several
processes at once. A content is stored in the store where it was.
"""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace
from typing import Final

from exai.account import hold
from exai.blobs.base import characters_by_part, digest
from exai.blobs.decoding import encoding_of
from exai.db.files import NewFile, opened_file
from exai.db.rekey import RekeyBatch, RowKey
from exai.db.rekey_contents import ContentRekeyRepository
from exai.encryption.envelope import is_sealed_text
from exai.errors import BlobError, ContentUnreadable
from exai.files.loading import sealed
from exai.files.service import FileService
from exai.files.upkeep import stored_digest
from exai.models import Owner, StoredFile

SHOWN_CHARS: Final = 12


class ContentRekeying:
    """Stores contents of all owners in the wanted form."""

    def __init__(self, files: FileService, repository: ContentRekeyRepository) -> None:
        self._blobs, self._repository = files.blobs, repository

    async def contents(self, place: RowKey, *, is_rehearsal: bool) -> RekeyBatch:
        """Store some contents after a place in the other form, each by its own statements. Raises a `DatabaseError`."""
        found = await self._repository.scan(place)
        batch = RekeyBatch((found[-1][0], found[-1][1].sha256) if found else None)
        for owner, file in found:
            if is_sealed_text(file.encoding) == self._repository.codec.is_on:
                continue
            batch.found += 1
            try:
                is_sealed = is_sealed_text(file.encoding)
                opened = opened_file(self._repository.codec, owner, file) if is_sealed else file
                is_done = is_rehearsal or await self._converted(owner, file, opened)
                batch.contents += is_done
                batch.content_bytes += opened.size_bytes if is_done else 0
                batch.replaced += is_done and not is_rehearsal
            except (BlobError, ContentUnreadable) as error:
                name = f"content {file.sha256[:SHOWN_CHARS]} of {owner} (file {file.id})"
                batch.unreadable.append(f"{name}: {error}")
        return batch

    async def _converted(self, owner: Owner, former: StoredFile, opened: StoredFile) -> bool:
        store = self._blobs.of(former)
        with hold(2 * opened.size_bytes, "files being rekeyed"):
            data = await self._blobs.get(owner, opened)
            new, stored = await asyncio.to_thread(self._stored_form, owner, opened, data)
            path = await store.put(owner, new.sha256, stored, new.blob_id)
        if path is not None:
            # The database compares the bytes that it has itself, in the statement that replaces the rows.
            there = replace(former, sha256=new.sha256, size_bytes=new.size_bytes, storage_path=path, encoding=None)
            if await stored_digest(store, owner, there) != new.sha256:
                raise BlobError("files", "the bytes that were just stored have changed", "Try again")
        return await self._repository.replace(owner, former, replace(new, storage_path=path), store.name)

    def _stored_form(self, owner: Owner, file: StoredFile, data: bytes) -> tuple[NewFile, bytes]:
        """Return the row and the bytes of the wanted form; blocks."""
        if digest(data) != file.sha256:
            raise BlobError("files", f"the bytes of {file.sha256} have changed", "Restore them from a backup")
        plain = NewFile(
            file.id,
            file.sha256,
            len(data),
            file.media_type,
            file.name,
            str(uuid.uuid4()),
            encoding=file.encoding or encoding_of(data),
            characters=characters_by_part(data),
        )
        return sealed(self._repository.codec, owner, plain, data)
