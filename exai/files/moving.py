"""Moves the bytes of files from one blob store into another.

Invariant: bytes are in the new store before the row refers to them there, and stay in the old one until a sweep finds
no reference to them: the work can be interrupted at any time and continues when it is started again.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import structlog

from exai.account import hold
from exai.background import running
from exai.blobs.base import BlobStore, characters_by_part
from exai.blobs.decoding import encoding_of
from exai.db.files import NewFile
from exai.errors import BlobError, ExaiError
from exai.files.service import FileService
from exai.models import Owner, StoredFile

BATCH: Final = 50
FIRST: Final = ("", "")
"""Before all contents, in the order of owner and SHA-256."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Moved:
    """One content, and why it could not be moved, None if it was."""

    owner: Owner
    file: StoredFile
    problem: str | None = None


@asynccontextmanager
async def moving(files: FileService) -> AsyncIterator[None]:
    """Move files while the block runs, or until all are moved; see `move_private`."""
    async with running("files-move", move_private(files)):
        yield


async def move_private(files: FileService) -> int:
    """Move what only this daemon can read into the selected store, if all daemons can read that; return the number.

    Files in the directories of other daemons are moved by those daemons.
    """
    moved = 0
    try:
        if files.blobs.chosen.is_shared:
            async for each in move(files, files.blobs.private, files.blobs.chosen):
                moved += each.problem is None
    except ExaiError as error:
        log.warning("files_not_moved", moved=moved, error=str(error))
    if moved:
        log.info("files_moved", files=moved)
    return moved


async def move(files: FileService, sources: Sequence[str], target: BlobStore) -> AsyncIterator[Moved]:
    """Move all contents of some stores into another one, checked against their digests, and yield each.

    A content that cannot be read stays where it is. Raises a `DatabaseError`, or the target's `BlobError`.
    """
    after = FIRST
    while found := await files.repository.stored(sources, after, BATCH):
        for owner, file in found:
            yield await _move(files, owner, file, target)
        owner, file = found[-1]
        after = owner, file.sha256


async def _move(files: FileService, owner: Owner, file: StoredFile, target: BlobStore) -> Moved:
    with hold(file.size_bytes, "files being moved"):
        try:
            data = await files.blobs.get(owner, file)
        except BlobError as error:
            return Moved(owner, file, str(error))
        blob_id = str(uuid.uuid4())
        is_inline = len(data) <= target.inline_bytes
        path = None if is_inline else await target.put(owner, file.sha256, data, blob_id)
        new = NewFile(
            str(uuid.uuid4()),
            file.sha256,
            file.size_bytes,
            file.media_type,
            file.name,
            blob_id,
            encoding=file.encoding or encoding_of(data),
            characters=characters_by_part(data),
            data=data if is_inline else None,
            storage_path=path,
            is_move=True,
        )
        await files.repository.put(owner, target.name, [new])
    return Moved(owner, file)
