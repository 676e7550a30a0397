"""Checks that the stores have the bytes that rows refer to, and repairs defects where possible.

Invariant: nothing is deleted here. A content whose bytes are missing or changed is marked, so that its bytes are stored
again when the same content is given again.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final

from exai.blobs.base import BlobStore
from exai.errors import BlobError
from exai.files.moving import BATCH, FIRST
from exai.files.service import FileService
from exai.models import Owner, StoredFile, Unused

PIECE_BYTES: Final = 4 * 1_048_576
"""Contents are verified in pieces, so that a large one is never held as a whole."""

CONCURRENT: Final = 4
"""Contents measured at a time: few, so that a small pool with a slow network admits them within its time limit."""


@dataclass(frozen=True, slots=True)
class Verified:
    """One content, and the problem with its bytes, None without one. `is_lost`: they are missing or changed."""

    owner: Owner
    file: StoredFile
    problem: str | None = None
    is_lost: bool = False


@dataclass(frozen=True, slots=True)
class Swept:
    """The contents that a sweep has removed, or would remove, and those whose bytes are missing."""

    orphans: int
    unused: Unused
    missing: tuple[Verified, ...]


async def sweep(files: FileService, *, is_rehearsal: bool) -> Swept:
    """Remove orphaned files and unused bytes, and mark contents without bytes; a rehearsal changes nothing.

    Raises a `DatabaseError`, or the `BlobError` of a store that cannot be asked.
    """
    orphans, unused = await files.sweep(is_rehearsal=is_rehearsal)
    missing = [each async for each in find_missing(files)]
    if not is_rehearsal:
        await mark(files, missing)
    return Swept(orphans, unused, tuple(missing))


async def mark(files: FileService, found: Sequence[Verified]) -> int:
    """Mark the contents that are lost, and return how many were not marked before.

    Those of a store of one daemon are left out, because they may be in the directory of another one.
    """
    private = files.blobs.private
    lost = [(each.owner, each.file) for each in found if each.is_lost and each.file.store not in private]
    return await files.repository.mark_lost(lost) if lost else 0


async def find_missing(files: FileService) -> AsyncIterator[Verified]:
    """Yield the contents of which a store has no bytes, or not all; reads none."""
    async for batch in _batches(files, files.blobs.names):
        for start in range(0, len(batch), CONCURRENT):
            some = batch[start : start + CONCURRENT]
            for found in await asyncio.gather(*(_measured(files, *each) for each in some)):
                if found.problem is not None:
                    yield found


async def verify(files: FileService, stores: Sequence[str]) -> AsyncIterator[Verified]:
    """Read every content of some stores, compare it with its digest, and yield it."""
    async for batch in _batches(files, stores):
        for owner, file in batch:
            yield await _verified(files, owner, file)


async def _batches(files: FileService, stores: Sequence[str]) -> AsyncIterator[Sequence[tuple[Owner, StoredFile]]]:
    after = FIRST
    while found := await files.repository.stored(stores, after, BATCH):
        yield found
        owner, file = found[-1]
        after = owner, file.sha256


async def _measured(files: FileService, owner: Owner, file: StoredFile) -> Verified:
    size_bytes = await files.blobs.of(file).size(owner, file)
    return Verified(owner, file) if size_bytes == file.size_bytes else _lost(owner, file, size_bytes)


async def _verified(files: FileService, owner: Owner, file: StoredFile) -> Verified:
    try:
        store = files.blobs.of(file)
        size_bytes = await store.size(owner, file)
        if size_bytes != file.size_bytes:
            return _lost(owner, file, size_bytes)
        if await stored_digest(store, owner, file) != file.sha256:
            return Verified(owner, file, "the bytes have changed", is_lost=True)
    except BlobError as error:
        return Verified(owner, file, str(error))
    return Verified(owner, file)


async def stored_digest(store: BlobStore, owner: Owner, file: StoredFile) -> str:
    """Return the SHA-256 of the bytes that a store has of a content, read in pieces."""
    found = hashlib.sha256()
    for offset in range(0, file.size_bytes, PIECE_BYTES):
        piece = await store.read(owner, file, offset, min(PIECE_BYTES, file.size_bytes - offset))
        await asyncio.to_thread(found.update, piece)
    return found.hexdigest()


def _lost(owner: Owner, file: StoredFile, size_bytes: int | None) -> Verified:
    found = "the bytes are missing" if size_bytes is None else f"{size_bytes:,} of {file.size_bytes:,} bytes are there"
    return Verified(owner, file, found, is_lost=True)
