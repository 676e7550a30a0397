"""From where files were read: paths that mean the same file only on the machine on which they were read."""

from __future__ import annotations

import hashlib
import socket
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

from exai.blobs.base import digest
from exai.files.paths import ReadFile
from exai.models import FileId, FileSource, StoredFile

ID_FILES: Final = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
ID_CHARS: Final = 32


@dataclass(frozen=True, slots=True)
class GivenFiles:
    """The ids of files that a caller named, each once, and from where those were read that were named by a path."""

    ids: tuple[FileId, ...]
    sources: Mapping[FileId, FileSource] = field(default_factory=dict)


@cache
def machine_id() -> str:
    """Return the same short text for every process on this machine or in this container, and another one elsewhere."""
    known = next(filter(None, map(_content, ID_FILES)), None)
    # Copies of a machine may have its id, so the host name counts, too. A machine without an id may change its name.
    parts = f"{uuid.getnode():x}" if known is None else f"{known} {socket.gethostname()}"
    return hashlib.sha256(f"exai {parts}".encode()).hexdigest()[:ID_CHARS]


def _content(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except (OSError, ValueError):
        return ""


def source_of(file: ReadFile, lines: str | None = None) -> FileSource:
    """Return from where a file was just read; `lines` is the part of it that is stored."""
    status = file.status
    place = str(file.path), machine_id()
    return FileSource(*place, digest(file.data), status.st_size, status.st_mtime_ns, time.time_ns(), lines)


def sources_of(files: Iterable[StoredFile]) -> dict[FileId, FileSource]:
    """Return the sources of those files that have one, by id."""
    return {file.id: file.source for file in files if file.source is not None}
