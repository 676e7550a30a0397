"""Moves the bytes of files from a daemon's directory into the database, where every daemon has them.

The invariant is that bytes are in the database before anything about a file says so, and stay in the directory until a
sweep finds that no file names them there: the work may be broken off at any time and is taken up at the next start.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from exai.background import running
from exai.errors import BlobError, ExaiError, InvalidArgument
from exai.files import FileContent, FileService
from exai.models import Owner, StoredFile

DATABASE = "postgres"
BATCH = 50

log = structlog.get_logger(__name__)


@asynccontextmanager
async def moving(files: FileService) -> AsyncIterator[None]:
    """Move files for as long as the block runs, or until all are moved; see `move`."""
    async with running("files-move", move(files)):
        yield


async def move(files: FileService) -> int:
    """Move what is in the directory into the database if that is the chosen store; returns how many files.

    What is in the directories of other daemons is theirs to move.
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
