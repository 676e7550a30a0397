"""The files of a backup: compressed, on demand encrypted, written and read in pieces.

Invariant: the memory used for a file does not depend on its size, and a file under its final name is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

from exai.backup.sealing import Damaged, Seal, SealedWriter, unsealed
from exai.errors import InvalidArgument

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LEVEL: Final = 3
PIECE_BYTES: Final = 1_048_576
DIRECTORY_MODE: Final = 0o700
UNFINISHED: Final = ".unfinished"

Compressor: Any = zstd.ZstdCompressor
Decompressor: Any = zstd.ZstdDecompressor
Incompressible: Any = zstd.ZstdError


class PartWriter:
    """Writes one file of a backup. `name` is its place in the backup; use `close` once all is written."""

    def __init__(self, directory: Path, name: str, seal: Seal | None) -> None:
        self._path = directory / name
        self._unfinished = self._path.with_name(self._path.name + UNFINISHED)
        with disk(self._path.parent, "written"):
            self._path.parent.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
            self._stream: BinaryIO = open(self._unfinished, "wb", opener=_private)  # noqa: SIM115 - has an opener
            self._sealed = SealedWriter(self._stream, seal, name) if seal else None
        self._compressor = Compressor(level=LEVEL)
        self._digest = hashlib.sha256()
        self.size_bytes = 0

    @property
    def sha256(self) -> str:
        """Return the digest of what was written so far, before compression."""
        return self._digest.hexdigest()

    def write(self, data: bytes) -> None:
        """Append bytes. Raises `InvalidArgument` if the disk does not take them."""
        self._digest.update(data)
        self.size_bytes += len(data)
        with disk(self._path.parent, "written"):
            self._put(self._compressor.compress(data))

    def close(self) -> int:
        """Make the file durable under its name, and return its size."""
        with disk(self._path.parent, "written"):
            self._put(self._compressor.flush())
            if self._sealed is not None:
                self._sealed.end()
            self._stream.flush()
            os.fsync(self._stream.fileno())
            size_bytes = self._stream.tell()
            self._stream.close()
            self._unfinished.replace(self._path)
        return size_bytes

    def abandon(self) -> None:
        """Remove what was written."""
        # Closing writes what is buffered, for which there may be no space.
        with contextlib.suppress(OSError):
            self._stream.close()
        with contextlib.suppress(OSError):
            self._unfinished.unlink(missing_ok=True)

    def _put(self, data: bytes) -> None:
        if self._sealed is not None:
            self._sealed.write(data)
        else:
            self._stream.write(data)


def read_part(directory: Path, name: str, seal: Seal | None) -> Iterator[bytes]:
    """Yield the content of a file in pieces of at most `PIECE_BYTES`. Raises `Damaged`, also for a file that is cut."""
    try:
        with open_regular(directory / name) as stream:
            raw = unsealed(stream, seal, name) if seal else iter(lambda: stream.read(PIECE_BYTES), b"")
            yield from _decompressed(raw)
    except FileNotFoundError:
        raise Damaged(f"{name} is missing") from None
    except OSError as error:
        raise Damaged(f"{name} cannot be read ({error.strerror or error})") from error
    except Damaged as error:
        raise Damaged(f"{name} is damaged: {error.problem}") from None


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; any other kind, such as a pipe, could block for ever. Raises `Damaged`."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Damaged("it is not a regular file")
    return os.fdopen(descriptor, "rb")


def _decompressed(raw: Iterator[bytes]) -> Iterator[bytes]:
    decompressor = Decompressor()
    try:
        for data in raw:
            if decompressor.eof:
                raise Damaged("something follows its end")
            yield decompressor.decompress(data, PIECE_BYTES)
            while not decompressor.needs_input and not decompressor.eof:
                yield decompressor.decompress(b"", PIECE_BYTES)
    except Incompressible as error:
        raise Damaged(str(error)) from None
    if not decompressor.eof or decompressor.unused_data:
        raise Damaged("it is not complete")


@contextlib.contextmanager
def disk(place: Path, done: str) -> Iterator[None]:
    """Raise errors of the file system as `InvalidArgument`, which names the place and the reason."""
    try:
        yield
    except OSError as error:
        cure = "See that there is space and that this user may write there"
        raise InvalidArgument("DIRECTORY", f"{place} cannot be {done} ({error.strerror or error})", cure) from error


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    if sys.platform == "win32":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
