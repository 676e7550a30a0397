"""Blobs in a local directory: written beside their place, synced, then renamed into it.

The invariant is that a file under its final name is whole, whatever was killed while it was written.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

from exai.blobs.base import digest, storage_path
from exai.errors import BlobError
from exai.models import Owner

DIRECTORY_MODE = 0o700
SWEEP_BATCH = 500

T = TypeVar("T")


class LocalBlobs:
    """A `BlobStore` in `root`, which is made when the first blob comes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    async def put(self, owner: Owner, sha256: str, data: bytes) -> None:
        """Keep `data`; see `BlobStore`."""
        await self._run(self._put, self._path(owner, sha256), data)

    async def get(self, owner: Owner, sha256: str) -> bytes:
        """Return what was put; a blob that is missing or has changed on disk is a `BlobError`."""
        data = await self._run(Path.read_bytes, self._path(owner, sha256))
        if digest(data) != sha256:
            raise BlobError("files", f"the blob {sha256} has changed on disk", "Restore it from a backup")
        return data

    async def delete(self, owner: Owner, sha256: str) -> None:
        """Forget it; see `BlobStore`."""
        await self._run(self._delete, self._path(owner, sha256))

    async def older_than(self, age_s: float) -> AsyncIterator[list[Path]]:
        """Yield the places of blobs not touched for `age_s`, in batches of at most `SWEEP_BATCH`."""
        batch: list[Path] = []
        before = time.time() - age_s
        for path in await self._run(self._walk):
            if (await self._run(Path.stat, path)).st_mtime < before:
                batch.append(path)
            if len(batch) == SWEEP_BATCH:
                yield batch
                batch = []
        if batch:
            yield batch

    def key(self, place: Path) -> str:
        """Return the storage path of a blob's place."""
        return place.relative_to(self.root).as_posix()

    async def remove(self, path: Path) -> None:
        """Remove a blob by the place that `older_than` gave."""
        await self._run(self._delete, path)

    def _walk(self) -> list[Path]:
        return [path for path in self.root.glob("*/*/*") if path.is_file()] if self.root.exists() else []

    def _path(self, owner: Owner, sha256: str) -> Path:
        return self.root / storage_path(owner, sha256)

    def _put(self, path: Path, data: bytes) -> None:
        if path.exists() and path.stat().st_size == len(data):
            # Its row may be new: without this a sweep could take bytes for forgotten that were just given again.
            os.utime(path)
            return
        path.parent.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
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

    def _delete(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    async def _run(self, work: Callable[..., T], *args: object) -> T:
        """Do disk work in a thread, and tell its errors in a sentence."""
        try:
            return await asyncio.to_thread(work, *args)
        except FileNotFoundError as error:
            raise BlobError(
                "files", "a blob is missing on disk", "Restore it from a backup", path=str(error.filename)
            ) from error
        except OSError as error:
            cure = f"See that there is space and that {self.root} can be written"
            raise BlobError("files", f"{error.strerror or error}", cure) from error


def _sync_directory(directory: Path) -> None:
    """Make a rename durable; without this a power cut may bring the old directory back."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
