"""Blobs in a local directory: written beside their place, synced, then renamed into it.

The invariant is that a file under its final name is whole, whatever was killed while it was written.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import stat
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

    async def older_than(self, age_s: float) -> AsyncIterator[list[Path]]:
        """Yield the places of blobs not touched for `age_s`, in batches of at most `SWEEP_BATCH`."""
        found = await self._run(self._untouched_since, time.time() - age_s)
        for start in range(0, len(found), SWEEP_BATCH):
            yield found[start : start + SWEEP_BATCH]

    def key(self, place: Path) -> str:
        """Return the storage path of a blob's place."""
        return place.relative_to(self.root).as_posix()

    async def remove(self, place: Path, age_s: float) -> bool:
        """Remove a blob by the place that `older_than` gave, unless it was put again since; whether it is gone."""
        return await self._run(self._remove, place, time.time() - age_s)

    def _untouched_since(self, moment: float) -> list[Path]:
        return [path for path in self.root.glob("*/*/*") if _touched_at(path) < moment] if self.root.exists() else []

    def _path(self, owner: Owner, sha256: str) -> Path:
        return self.root / storage_path(owner, sha256)

    def _put(self, path: Path, data: bytes) -> None:
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size == len(data):
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

    def _remove(self, path: Path, moment: float) -> bool:
        # Taken aside before it is looked at again: a put that came before has touched it, and one that comes after
        # does not find it and writes it anew.
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


def _touched_at(path: Path) -> float:
    """Return when a file was last touched, the end of time for what is no file or is gone."""
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
