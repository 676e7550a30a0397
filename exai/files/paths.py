"""Reads files of this machine by path, below the roots that the settings allow.

Invariant: the file that was checked is the file that is read. Links are resolved first, and the location of the open
file decides. EXAI's data of all owners (its data directory and the settings file it read) is outside every root,
however large a root is, and so are the system's process and device directories.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from exai.errors import ConfigError, InvalidArgument, NotConfigured, shown

ROOTS_SETTING: Final = "EXAI_FILES__ROOTS"
SYSTEM: Final = tuple(map(Path, ("/proc", "/sys", "/dev")))
MAX_PATH_CHARS: Final = 4_096


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A regular file below `root`, open for reading."""

    descriptor: int
    status: os.stat_result
    path: Path
    root: Path


@dataclass(frozen=True, slots=True)
class ReadFile:
    """A file that was read: its name below its root, its bytes, and its state when it was opened."""

    name: str
    data: bytes
    path: Path
    status: os.stat_result


class Roots:
    """The directories that may be read, without the closed paths within them."""

    def __init__(self, roots: Sequence[Path], closed: Sequence[Path] = ()) -> None:
        self._roots, self._closed = tuple(roots), tuple(closed)

    def check(self) -> None:
        """Raise `ConfigError` for a root from which nothing can be read."""
        for root in self._roots:
            if self._is_closed(root.resolve()):
                raise ConfigError(
                    ROOTS_SETTING,
                    f"{root} is in a directory that EXAI or the system keeps to itself",
                    "Allow a directory that holds nothing but files to be read",
                )

    def read(self, field: str, path: str, limit_bytes: int) -> ReadFile:
        """Return a file with its bytes; blocks. Raises `InvalidArgument` or `NotConfigured`."""
        with self.opened(field, path) as file:
            if file.status.st_size > limit_bytes:
                raise too_large(field, file.status.st_size, limit_bytes)
            with os.fdopen(file.descriptor, "rb", closefd=False) as stream:
                data = stream.read(limit_bytes + 1)
        if len(data) > limit_bytes:
            raise too_large(field, len(data), limit_bytes)
        return ReadFile(file.path.relative_to(file.root).as_posix(), data, file.path, file.status)

    @contextmanager
    def opened(self, field: str, path: str) -> Iterator[OpenFile]:
        """Open a regular file for reading. Raises `InvalidArgument` or `NotConfigured`."""
        resolved, root = self.find(field, path)
        quoted = shown(path)
        try:
            descriptor = os.open(resolved, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            raise InvalidArgument(
                field, f"{quoted} is not there", "Give a file's full path, or an id of file_put"
            ) from None
        except OSError as error:
            raise InvalidArgument(
                field, f"{quoted} cannot be read ({error.strerror})", "Check its permissions"
            ) from None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise InvalidArgument(field, f"{quoted} is not a regular file", "Give a file")
            if _place(descriptor, resolved) != resolved:
                raise InvalidArgument(field, f"{quoted} was replaced while it was opened", "Try again")
            if any(_is_linked(status, each) for each in self._closed):
                raise self._outside(field, path)
            yield OpenFile(descriptor, status, resolved, root)
        finally:
            os.close(descriptor)

    def find(self, field: str, path: str) -> tuple[Path, Path]:
        """Return the target of a path and its root, whether or not a file exists there. Raises as `read`."""
        if not self._roots:
            raise NotConfigured(
                "reading files by their path", f"Set {ROOTS_SETTING} to the directories that may be read"
            )
        resolved = _resolved(path)
        roots = [root.resolve() for root in self._roots]
        within = [root for root in roots if resolved is not None and resolved.is_relative_to(root)]
        if resolved is None or not within or self._is_closed(resolved):
            raise self._outside(field, path)
        return resolved, max(within, key=lambda root: len(root.parts))

    @property
    def directories(self) -> tuple[Path, ...]:
        """Return the roots, with their links resolved."""
        return tuple(dict.fromkeys(root.resolve() for root in self._roots))

    def allows(self, path: Path) -> bool:
        """Return whether the target of a path may be read, whether or not anything exists there."""
        try:
            self.find("path", str(path))
        except (InvalidArgument, NotConfigured):
            return False
        return True

    def _outside(self, field: str, path: str) -> InvalidArgument:
        # The same error whether or not the file exists: nothing is disclosed about files outside.
        roots = ", ".join(str(root.resolve()) for root in self._roots)
        if not Path(path).is_absolute():
            other = ", or a file_id" if field.startswith("files") else ""
            here = "start `exai connect` in the directory that is meant (over HTTP: name it in EXAI-Directory)"
            cure = f"Give an absolute path below {roots}, {here}{other}"
            return InvalidArgument(field, f"{shown(path)} is not an absolute path", cure)
        cure = f"Give a path below {roots}, or add a directory to {ROOTS_SETTING}"
        return InvalidArgument(field, f"{shown(path)} is not below an allowed root", cure)

    def _is_closed(self, resolved: Path) -> bool:
        """Return whether a path is closed or below a closed one, by any of its names, such as a second mount's."""
        if any(resolved.is_relative_to(each) for each in (*SYSTEM, *(each.resolve() for each in self._closed))):
            return True
        closed = list(_stats(self._closed))
        return any(os.path.samestat(each, other) for each in _stats((resolved, *resolved.parents)) for other in closed)


def joined(directory: str, path: str) -> str:
    """Return a path below the directory in which its caller works; unchanged if it is absolute or "" is given."""
    return path if not directory or Path(path).is_absolute() else str(Path(directory, path))


def is_directory(path: Path) -> bool:
    """Return whether a directory exists there; False also if that cannot be found out."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def too_large(field: str, size_bytes: int, limit_bytes: int) -> InvalidArgument:
    """Return the error for a file over the limit."""
    return InvalidArgument(field, f"is {size_bytes:,} bytes; the limit is {limit_bytes:,}", "Give a smaller file")


def _is_linked(status: os.stat_result, closed: Path) -> bool:
    """Return whether an open file is `closed`, or is one of the files in it under another name."""
    own = next(_stats([closed]), None)
    if own is None or own.st_dev != status.st_dev:
        return False
    if status.st_nlink < 2 or not stat.S_ISDIR(own.st_mode):
        return os.path.samestat(status, own)
    places = (Path(directory, name) for directory, _, names in os.walk(closed) for name in names)
    return any(os.path.samestat(status, each) for each in _stats(places))


def _stats(paths: Iterable[Path]) -> Iterator[os.stat_result]:
    for path in paths:
        try:
            yield path.stat()
        except (OSError, ValueError):
            continue


def _resolved(path: str) -> Path | None:
    """Return the target of a path as far as it exists; None if the path is not absolute."""
    if len(path) > MAX_PATH_CHARS:
        return None
    try:
        return Path(path).resolve() if Path(path).is_absolute() else None
    except (OSError, ValueError, RuntimeError):
        # Older versions of Python raise RuntimeError for a loop of links.
        return None


def _place(descriptor: int, opened: Path) -> Path:
    """Return the location of an open file: a directory on its path may have become a link since the check."""
    by_number = Path(f"/proc/self/fd/{descriptor}")
    return by_number.resolve() if by_number.exists() else opened.resolve()
