"""A program that stores a file in a directory and kills itself before one of its steps: DATABASE-URL DIRECTORY STEP.

The steps are the changes of the directory, as Python's audit events name them, and the statement that stores the row.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from exai.blobs.local import LocalBlobs
from exai.files.loading import FileContent
from exai.models import LOCAL_OWNER
from tests.integration.blobs.conftest import service
from tests.integration.blobs.putting import DATA
from tests.support.database import opened

CHANGES = ("open", "os.mkdir", "os.rename", "os.chmod")


class Steps:
    """Counts the steps; ends the process before the last one allowed."""

    def __init__(self, directory: str, last: int) -> None:
        self.directory, self.left = directory, last

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if event in CHANGES and arguments and str(arguments[0]).startswith(self.directory):
            self.count()

    def count(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


class Blobs(LocalBlobs):
    """A store after whose writes the statement follows, which is the last step."""

    steps: Steps

    async def put(self, owner: str, sha256: str, data: bytes, blob_id: str) -> str:  # type: ignore[override]
        key = await super().put(owner, sha256, data, blob_id)  # type: ignore[arg-type]
        self.steps.count()
        return key


async def main(database_url: str, directory: str, step: str) -> None:
    async with opened(database_url) as database:
        store = Blobs(Path(directory))
        store.steps = Steps(directory, int(step))
        sys.addaudithook(store.steps)
        await service(database, {"directory": store}, "directory").put(LOCAL_OWNER, [FileContent("a.bin", DATA)])


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
