"""Compare stored files with the files on disk from which they were read.

Invariant: only files below the allowed roots are opened, and only those that were read on this machine. A file whose
size and time of change are those of its reading is not read again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from exai.errors import InvalidArgument, NotConfigured
from exai.files.origins import machine_id
from exai.files.paths import OpenFile, Roots
from exai.files.sources.bounds import Bounds
from exai.models import FileId, FileSource, StoredFile

MAX_COMPARED: Final = 200
"""Files compared at once, those read last."""

CHUNK_BYTES: Final = 1_048_576
COARSE_NS: Final = 2_000_000_000
"""A file may be changed again without a new time for so long after a change, where times are coarse."""

FIELD: Final = "files"
DiskState = Literal["changed", "gone", "outside", "unknown"]


@dataclass(frozen=True, slots=True)
class ChangedFile:
    """A stored file that is not known to be equal to the one on disk.

    `gone`: no file is there. `outside`: the path leads outside the allowed roots. `unknown`: it was not compared.
    """

    file_id: FileId
    path: str
    state: DiskState
    lines: str | None = None
    read_at: str = ""

    @property
    def sentence(self) -> str:
        """Return what a caller should know."""
        stored = f"the model was shown it as stored at {self.read_at}"
        if self.state == "changed":
            return f"{self.path} has changed on disk since; {stored} (reread: true reads it again)"
        if self.state == "gone":
            return f"{self.path} is no longer on disk; {stored}"
        if self.state == "outside":
            return f"{self.path} is not below an allowed root now and was not compared; {stored}"
        return f"{self.path} could not be compared with the file on disk; {stored}"


def newest_read(files: Iterable[StoredFile]) -> tuple[StoredFile, ...]:
    """Return the last reading of each path, or part of one, on this machine; those read last first.

    A part that was read before the whole file is left out.
    """
    read = [(file.source, file) for file in files if file.source is not None and file.source.machine == machine_id()]
    newest: dict[tuple[str, str | None], StoredFile] = {}
    for source, file in sorted(read, key=lambda each: each[0].read_ns, reverse=True):
        if (source.path, None) not in newest:
            newest.setdefault((source.path, source.lines), file)
    return tuple(newest.values())


def compare(roots: Roots, bounds: Bounds, files: Sequence[StoredFile]) -> tuple[ChangedFile, ...]:
    """Return those of the files that are not as they were read; blocks."""
    states: dict[tuple[str, str], DiskState | None] = {}
    found = []
    for file in files[:MAX_COMPARED]:
        source = file.source
        if source is None:
            continue
        key = source.path, source.sha256
        if key not in states:
            states[key] = "unknown" if bounds.is_spent else _state(roots, bounds, source)
        if (state := states[key]) is not None:
            read_at = datetime.fromtimestamp(source.read_ns // 10**9, UTC).isoformat().replace("+00:00", "Z")
            found.append(ChangedFile(file.id, source.path, state, source.lines, read_at))
    return tuple(found)


def _state(roots: Roots, bounds: Bounds, source: FileSource) -> DiskState | None:
    """Return how the file on disk differs, None if it does not."""
    try:
        bounds.touch(FIELD, source.path)
    except InvalidArgument:
        return "unknown"
    try:
        target, _ = roots.find(FIELD, source.path)
    except (InvalidArgument, NotConfigured):
        return "outside"
    try:
        target.lstat()
        with roots.opened(FIELD, source.path) as file:
            return _compared(file, bounds, source)
    except (FileNotFoundError, NotADirectoryError):
        return "gone"
    except (InvalidArgument, NotConfigured, OSError):
        return "unknown"


def _compared(file: OpenFile, bounds: Bounds, source: FileSource) -> DiskState | None:
    if file.status.st_size != source.size_bytes:
        return "changed"
    is_certain = source.read_ns - source.modified_ns > COARSE_NS
    if file.status.st_mtime_ns == source.modified_ns and is_certain:
        return None
    whole = hashlib.sha256()
    while chunk := os.read(file.descriptor, CHUNK_BYTES):
        whole.update(chunk)
        bounds.bytes -= len(chunk)
        if bounds.is_spent:
            return "unknown"
    return None if whole.hexdigest() == source.sha256 else "changed"
