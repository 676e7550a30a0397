"""The files of a source: one file, those of a directory, or those of a zip archive, each opened as a stream of bytes.

Compressed files and texts in UTF-16 or UTF-32 are read as what they contain. A meter counts the bytes that are read.
"""

from __future__ import annotations

import codecs
import errno
import gzip
import io
import lzma
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol, cast

from exai.errors import InvalidArgument, NotFound

MARKS: Final = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF8, "utf-8"),
)
MARK_BYTES: Final = 4
CHUNK_BYTES: Final = 262_144
MAX_FILES: Final = 1_000_000
MAX_DIRECTORY_BYTES: Final = 32 * 1_048_576
"""Of the names in a zip archive, which are read at once."""

UNREADABLE: Final = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    OSError,
)
"""What a damaged, encrypted or unknown compressed file raises."""

LEADS_OUT: Final = "is a link out of the directory, which is not followed"


@dataclass(slots=True)
class ReadMeter:
    """The bytes that were read, and those that are there to read."""

    read_bytes: int = 0
    total_bytes: int = 0


class Bundle(Protocol):
    """Files that belong together, by their names with slashes."""

    label: str

    def names(self) -> Sequence[str]:
        """Return the names of all files."""

    def size_bytes(self, name: str) -> int:
        """Return the size of a file, as it is stored."""

    def path(self, name: str) -> Path | None:
        """Return the path of a file on disk, None inside an archive."""

    def open_raw(self, name: str) -> BinaryIO:
        """Open a file. Raises one of `UNREADABLE`."""

    def refused(self) -> Sequence[str]:
        """Return the names of links that lead out of a directory; they are not followed."""


@dataclass(slots=True)
class DiskBundle:
    """One file, or all files below a directory."""

    root: Path
    label: str
    _names: list[str] = field(default_factory=list)
    _refused: list[str] = field(default_factory=list)

    def names(self) -> Sequence[str]:
        """Return the names of all files; links to directories, and out of this one, are not followed."""
        if not self._names and self.root.is_file():
            self._names = [self.root.name]
        elif not self._names:
            self._refused.clear()
            for name in _below(self.root):
                (self._names if self._is_inside(name) else self._refused).append(name)
        return self._names

    def refused(self) -> Sequence[str]:
        """Return the names of links that lead out of the directory."""
        self.names()
        return self._refused

    def size_bytes(self, name: str) -> int:
        """Return the size of a file."""
        try:
            return self.path(name).stat().st_size
        except OSError:
            return 0

    def path(self, name: str) -> Path:
        """Return the path of a file."""
        return self.root if self.root.is_file() else self.root / name

    def open_raw(self, name: str) -> BinaryIO:
        """Open a file."""
        # It may have become a link since the directory was read.
        if not self._is_inside(name):
            raise PermissionError(errno.EPERM, LEADS_OUT, name)
        return self.path(name).open("rb")

    def _is_inside(self, name: str) -> bool:
        """Return whether a file is below the directory, or is the file that was given."""
        path = self.path(name)
        return path == self.root or not path.is_symlink() or path.resolve().is_relative_to(self.root.resolve())


@dataclass(slots=True)
class ZipBundle:
    """The files of a zip archive."""

    archive: zipfile.ZipFile
    label: str
    _sizes: dict[str, int] = field(default_factory=dict)

    def names(self) -> Sequence[str]:
        """Return the names of all files."""
        if not self._sizes:
            self._sizes = {each.filename: each.file_size for each in self.archive.infolist() if not each.is_dir()}
        return list(self._sizes)

    def size_bytes(self, name: str) -> int:
        """Return the size of a file when it is unpacked, as the archive states it."""
        self.names()
        return self._sizes.get(name, 0)

    def path(self, name: str) -> None:
        """Return None: the file has no path of its own."""

    def refused(self) -> Sequence[str]:
        """Return nothing: an archive's links are not followed."""
        return ()

    def open_raw(self, name: str) -> BinaryIO:
        """Open a file."""
        return cast("BinaryIO", self.archive.open(name))


@contextmanager
def open_bundle(path: Path, label: str | None = None) -> Iterator[Bundle]:
    """Open a file, a directory or a zip archive, named `label` in errors. Raises `NotFound` or `InvalidArgument`."""
    shown = label or str(path)
    try:
        if path.is_file() and zipfile.is_zipfile(path):
            with _ArchiveFile(io.FileIO(path)) as file, zipfile.ZipFile(file) as archive:
                yield ZipBundle(archive, path.name)
            return
        if not path.exists():
            raise NotFound("file", shown, "Give the path of an export, of a directory of sessions, or of a database")
    except (OSError, zipfile.BadZipFile) as error:
        problem = f"{shown} cannot be read ({getattr(error, 'strerror', None) or error})"
        raise InvalidArgument("PATH", problem, "Correct that, or give another file") from error
    yield DiskBundle(path, path.name or str(path))


@contextmanager
def open_text(bundle: Bundle, name: str, meter: ReadMeter | None = None) -> Iterator[BinaryIO]:
    """Open a file as UTF-8 without a byte order mark, unpacked if it is compressed. Raises one of `UNREADABLE`."""
    with bundle.open_raw(name) as raw:
        counted = io.BufferedReader(_Counted(raw, meter or ReadMeter()), CHUNK_BYTES)
        opened = _unpacked(cast("BinaryIO", counted), name)
        buffered = opened if isinstance(opened, io.BufferedReader) else io.BufferedReader(cast("io.RawIOBase", opened))
        head = buffered.peek(MARK_BYTES)[:MARK_BYTES]
        mark, encoding = next(((mark, code) for mark, code in MARKS if head.startswith(mark)), (b"", "utf-8"))
        buffered.read(len(mark))
        if encoding == "utf-8":
            yield buffered
        else:
            yield io.BufferedReader(_Transcoded(buffered, encoding), CHUNK_BYTES)


def read_file(bundle: Bundle, name: str, most_bytes: int) -> bytes:
    """Return the bytes of a file, at most `most_bytes` of them. Raises one of `UNREADABLE`."""
    with bundle.open_raw(name) as raw:
        return raw.read(most_bytes)


def _below(root: Path) -> Iterator[str]:
    count = 0
    for directory, below, names in os.walk(root):
        below.sort()
        for name in sorted(names):
            path = Path(directory, name)
            if path.is_file():
                yield path.relative_to(root).as_posix()
                count += 1
                if count >= MAX_FILES:
                    raise InvalidArgument("PATH", f"{root} has over {MAX_FILES:,} files", "Give a part of it")


def _unpacked(stream: BinaryIO, name: str) -> BinaryIO:
    ending = Path(name).suffix.lower()
    if ending == ".gz":
        return cast("BinaryIO", gzip.GzipFile(fileobj=stream))
    if ending == ".xz":
        return cast("BinaryIO", lzma.LZMAFile(stream))
    if ending == ".zst":
        module = next((each for each in ("compression.zstd", "backports.zstd") if _is_there(each)), None)
        if module is None:
            raise NotImplementedError("Zstandard needs the extra server: pip install 'exai[server]'")
        return cast("BinaryIO", import_module(module).open(stream))
    return stream


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


class _ArchiveFile(io.BufferedReader):
    """The file of a zip archive. Its end states the size of the directory, for which memory is taken."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"its directory has {size:,} bytes; the limit is {MAX_DIRECTORY_BYTES:,}")
        return super().read(size)


class _Counted(io.RawIOBase):
    """A stream that counts what is read from it."""

    def __init__(self, inner: BinaryIO, meter: ReadMeter) -> None:
        self._inner, self._meter = inner, meter

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._inner.read(len(buffer))
        self._meter.read_bytes += len(data)
        buffer[: len(data)] = data
        return len(data)


class _Transcoded(io.RawIOBase):
    """A text in another encoding as UTF-8."""

    def __init__(self, inner: BinaryIO, encoding: str) -> None:
        self._inner, self._decoder = inner, codecs.getincrementaldecoder(encoding)("replace")
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            data = self._inner.read(CHUNK_BYTES)
            self._left = self._decoder.decode(data, not data).encode("utf-8", "surrogatepass")
            if not data:
                break
        taken = self._left[: len(buffer)]
        self._left = self._left[len(taken) :]
        buffer[: len(taken)] = taken
        return len(taken)
