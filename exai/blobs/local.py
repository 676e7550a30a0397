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

from exai.blobs.base import NOTHING_INLINE, PART_BYTES, FindUsedPaths, characters_in, storage_path
from exai.errors import BlobError
from exai.models import Owner, StoredFile, Unused

DIRECTORY_MODE = 0o700
SWEEP_BATCH = 500

T = TypeVar("T")


class LocalBlobs:
    """A `BlobStore` in `root`, which is made when the first blob comes. Daemons with another `root` do not see it."""

    name: ClassVar[str] = "directory"
    is_shared: ClassVar[bool] = False
    inline_bytes: ClassVar[int] = NOTHING_INLINE
    puts_known: ClassVar[bool] = True

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def shown(self) -> str:
        """Return the directory."""
        return str(self.root)

    async def check(self) -> str:
        """See that a file can be written and removed again."""
        await self._run(self._try_to_write)
        return self.shown

    async def put(self, owner: Owner, sha256: str, data: bytes, blob_id: str) -> str:
        """Keep `data`; see `BlobStore`."""
        del blob_id
        key = storage_path(owner, sha256)
        await self._run(self._put, self.root / key, data)
        return key

    async def read(self, owner: Owner, file: StoredFile, offset: int, size_bytes: int) -> bytes:
        """Return some bytes of a blob; see `BlobStore`."""
        return await self._run(_read, self._place(owner, file), offset, size_bytes)

    async def read_all(self, owner: Owner, files: Mapping[str, StoredFile]) -> Mapping[str, bytes | BlobError]:
        """Return whole blobs by SHA-256, those that are there, or the error of one that cannot be read."""
        found: dict[str, bytes | BlobError] = {}
        for sha256, file in files.items():
            try:
                found[sha256] = await self.read(owner, file, 0, file.size_bytes)
            except BlobError as error:
                if not isinstance(error.__cause__, FileNotFoundError):
                    found[sha256] = error
        return found

    async def characters(self, owner: Owner, file: StoredFile) -> Sequence[int]:
        """Count the characters of each part; reads all of the blob, a part at a time."""
        return await self._run(_characters, self._place(owner, file))

    async def size(self, owner: Owner, file: StoredFile) -> int | None:
        """Return the size of the file, None if it is missing."""
        return await self._run(_size, self._place(owner, file))

    async def link(self, owner: Owner, file: StoredFile, lifetime_s: int) -> None:
        """Return None: nothing serves the directory."""
        del owner, file, lifetime_s

    async def remove(self, owner: Owner, file: StoredFile) -> bool:
        """Remove a blob; return whether there was one."""
        return await self._run(_unlink, self._place(owner, file))

    async def sweep(self, age_s: float, find_used: FindUsedPaths, *, is_rehearsal: bool = False) -> Unused:
        """Remove blobs without a content that were not touched for `age_s`, and the remains of interrupted writes."""
        found = await self._run(self._untouched_since, time.time() - age_s)
        total = Unused()
        for start in range(0, len(found), SWEEP_BATCH):
            places = {place.relative_to(self.root).as_posix(): place for place in found[start : start + SWEEP_BATCH]}
            for key in places.keys() - await find_used(list(places)):
                size_bytes = await self._run(_size, places[key]) or 0
                if is_rehearsal or await self._run(self._remove, places[key], time.time() - age_s):
                    total += Unused(1, size_bytes)
        return total

    def _place(self, owner: Owner, file: StoredFile) -> Path:
        return self.root / storage_path(owner, file.sha256)

    def _untouched_since(self, moment: float) -> list[Path]:
        return [path for path in self.root.glob("*/*/*") if _touched_at(path) < moment] if self.root.exists() else []

    def _try_to_write(self) -> None:
        self._make_directories(self.root)
        descriptor, name = tempfile.mkstemp(dir=self.root, prefix=".writing-")
        os.close(descriptor)
        Path(name).unlink()

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


def _unlink(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


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
