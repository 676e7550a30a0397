"""Moves the bytes of files from a daemon's directory into the database, where every daemon can read them.

Invariant: bytes are in the database before any row refers to them there, and stay in the directory until a
sweep finds no reference to them: the work can be interrupted at any time and continues at the next start.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from exai.background import running
from exai.errors import BlobError, ExaiError, InvalidArgument
from exai.files.service import FileContent, FileService
from exai.models import Owner, StoredFile

DATABASE = "postgres"
BATCH = 50

log = structlog.get_logger(__name__)


@asynccontextmanager
async def moving(files: FileService) -> AsyncIterator[None]:
    """Move files while the block runs, or until all are moved; see `move`."""
    async with running("files-move", move(files)):
        yield


async def move(files: FileService) -> int:
    """Move the files of the directory into the database if that is the selected store; return their number.

    Files in the directories of other daemons are moved by those daemons.
    """
    after, moved = "", 0
    try:
        while files.blobs.chosen.name == DATABASE and (found := await files.repository.elsewhere(after, BATCH)):
            for owner, _, file in found:
                moved += await _move(files, owner, file)
            after = found[-1][1]
    except ExaiError as error:
        log.warning("files_not_moved", moved=moved, error=str(error))
    if moved:
        log.info("files_moved", files=moved)
    return moved


async def _move(files: FileService, owner: Owner, file: StoredFile) -> bool:
    try:
        data = await files.blobs.get(owner, file)
        await files.put(owner, [FileContent(file.name, data, file.media_type)])
    except (BlobError, InvalidArgument):
        return False
    return True
