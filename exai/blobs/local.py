"""Store blobs in a local directory: written to a temporary file, synced, then renamed.

Invariant: a file under its final name is complete, also after a crash or a power failure during the write.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import stat
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, TypeVar

from exai.blobs.base import PART_BYTES, FindUsedPaths, characters_in, storage_path
from exai.errors import BlobError
from exai.models import Owner

DIRECTORY_MODE = 0o700
SWEEP_BATCH = 500

T = TypeVar("T")


class LocalBlobs:
    """A `BlobStore` in `root`, which is made when the first blob comes. Daemons with another `root` do not see it."""

    name: ClassVar[str] = "directory"
    inline_bytes: ClassVar[int] = 0

    def __init__(self, root: Path) -> None:
        self.root = root

    async def put(self, owner: Owner, sha256: str, data: bytes, blob_id: str) -> str:
        """Keep `data`; see `BlobStore`."""
        del blob_id
        key = storage_path(owner, sha256)
        await self._run(self._put, self.root / key, data)
        return key

    async def read(self, owner: Owner, sha256: str, offset: int, size_bytes: int) -> bytes:
        """Return some bytes of a blob; see `BlobStore`."""
        return await self._run(_read, self.root / storage_path(owner, sha256), offset, size_bytes)

    async def read_all(self, owner: Owner, sizes: Mapping[str, int]) -> Mapping[str, bytes | BlobError]:
        """Return whole blobs by SHA-256, those that are there, or the error of one that cannot be read."""
        found: dict[str, bytes | BlobError] = {}
        for sha256, size_bytes in sizes.items():
            try:
                found[sha256] = await self.read(owner, sha256, 0, size_bytes)
            except BlobError as error:
                if not isinstance(error.__cause__, FileNotFoundError):
                    found[sha256] = error
        return found

    async def characters(self, owner: Owner, sha256: str) -> Sequence[int]:
        """Count the characters of each part; reads all of the blob, a part at a time."""
        return await self._run(_characters, self.root / storage_path(owner, sha256))

    async def sweep(self, age_s: float, find_used: FindUsedPaths) -> int:
        """Remove blobs without a content that were not touched for `age_s`."""
        found = await self._run(self._untouched_since, time.time() - age_s)
        removed = 0
        for start in range(0, len(found), SWEEP_BATCH):
            places = {place.relative_to(self.root).as_posix(): place for place in found[start : start + SWEEP_BATCH]}
            for key in places.keys() - await find_used(list(places)):
                removed += await self._run(self._remove, places[key], time.time() - age_s)
        return removed

    def _untouched_since(self, moment: float) -> list[Path]:
        return [path for path in self.root.glob("*/*/*") if _touched_at(path) < moment] if self.root.exists() else []

    def _put(self, path: Path, data: bytes) -> None:
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size == len(data):
                # The row that will refer to these bytes may not be committed yet. Without a new time a concurrent sweep
                # could remove them as unused.
                os.utime(path)
                return
        self._make_directories(path.parent)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            Path(name).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise
        _sync_directory(path.parent)

    def _make_directories(self, directory: Path) -> None:
        """Create each directory from the root down, and remove other users' permissions also from existing ones."""
        below = [level for level in directory.parents if level.is_relative_to(self.root)]
        for level in (*reversed(below), directory):
            level.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
            if level.stat().st_mode & 0o077:
                level.chmod(DIRECTORY_MODE)

    def _remove(self, path: Path, moment: float) -> bool:
        # Renamed before its time is checked again: an earlier put has updated the time, and a later put does not find
        # the file and writes it again. Checking first would leave a gap for a put before the removal.
        aside = path.with_name(f".removing-{path.name}")
        try:
            path.replace(aside)
        except FileNotFoundError:
            return False
        if _touched_at(aside) >= moment:
            aside.replace(path)
            return False
        aside.unlink()
        return True

    async def _run(self, work: Callable[..., T], *args: object) -> T:
        """Run disk work in a thread, and translate its errors to `BlobError`."""
        try:
            return await asyncio.to_thread(work, *args)
        except FileNotFoundError as error:
            raise BlobError(
                "files",
                f"a blob is missing in {self.root}",
                "It may be in the data directory of another daemon, else restore it from a backup",
                path=str(error.filename),
            ) from error
        except OSError as error:
            cure = f"See that there is space and that {self.root} can be written"
            raise BlobError("files", f"{error.strerror or error}", cure) from error


def _read(path: Path, offset: int, size_bytes: int) -> bytes:
    with path.open("rb") as stream:
        stream.seek(offset)
        return stream.read(size_bytes)


def _characters(path: Path) -> list[int]:
    with path.open("rb") as stream:
        return [characters_in(part) for part in iter(lambda: stream.read(PART_BYTES), b"")]


def _touched_at(path: Path) -> float:
    """Return the modification time of a file, infinity if it is missing or not a regular file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return math.inf
    return status.st_mtime if stat.S_ISREG(status.st_mode) else math.inf


def _sync_directory(directory: Path) -> None:
    """Make a rename durable; without this a power cut may bring the old directory back."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
