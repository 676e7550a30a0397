"""Reads a whole backup and compares it with its manifest; nothing is restored before this has succeeded."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from exai.backup.manifest import LISTING, Manifest, PartRecord
from exai.backup.parts import read_part
from exai.backup.progress import ShowsProgress
from exai.backup.rows import lines
from exai.backup.sealing import Damaged, Seal
from exai.backup.writing import place_of

MAX_PROBLEMS: Final = 20
MAX_CONTENT_BYTES: Final = 1_073_741_824
"""The greatest value of EXAI_FILES__MAX_BYTES: a content is restored in one piece."""

SHA256: Final = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One content of a listing."""

    owner: str
    sha256: str
    size_bytes: int
    has_row: bool
    problem: str | None


class BackupReader:
    """A complete backup."""

    def __init__(self, directory: Path, manifest: Manifest, seal: Seal | None) -> None:
        self.directory, self.manifest, self.seal = directory, manifest, seal

    def entries(self) -> Iterator[Entry]:
        """Yield the contents of files, by owner and digest."""
        for some in lines(self.pieces(self.manifest.listing)):
            for line in some:
                yield _entry_of(line)

    def pieces(self, part: PartRecord) -> Iterator[bytes]:
        """Yield the content of a part, before compression. Raises `Damaged`."""
        return read_part(self.directory, part.file, self.seal)

    def bytes_of(self, sha256: str) -> Iterator[bytes]:
        """Yield the bytes of a content. Raises `Damaged`."""
        return read_part(self.directory, place_of(sha256, self.seal), self.seal)

    def has(self, sha256: str) -> bool:
        """Return whether the backup has the bytes of a content."""
        return (self.directory / place_of(sha256, self.seal)).is_file()

    async def verify(self, progress: ShowsProgress) -> list[str]:
        """Return what is wrong, at most `MAX_PROBLEMS` sentences; empty if the backup is what was written."""
        progress.expect(self.manifest.expected_bytes)
        problems: list[str] = []
        for part in (*(table.part for table in self.manifest.tables), self.manifest.listing):
            found = await asyncio.to_thread(self._examine, part)
            problems += [found] if found else []
            progress.add(part.size_bytes, part.file)
        if not problems:
            try:
                for entry in self.entries():
                    found = await asyncio.to_thread(self._examine_content, entry)
                    problems += [found] if found else []
                    progress.add(entry.size_bytes, "files")
                    if len(problems) >= MAX_PROBLEMS:
                        break
            except Damaged as error:
                problems.append(error.problem)
        return problems

    def _examine(self, part: PartRecord) -> str | None:
        try:
            size_bytes, digest = _measured(self.pieces(part), part.size_bytes)
        except Damaged as error:
            return error.problem
        return None if (size_bytes, digest) == (part.size_bytes, part.sha256) else f"{part.file} has other content"

    def _examine_content(self, entry: Entry) -> str | None:
        if entry.problem is not None:
            return None
        if entry.size_bytes > MAX_CONTENT_BYTES:
            return f"{LISTING} names a content of {entry.size_bytes:,} bytes; the limit is {MAX_CONTENT_BYTES:,}"
        try:
            size_bytes, digest = _measured(self.bytes_of(entry.sha256), entry.size_bytes)
        except Damaged as error:
            return error.problem
        name = place_of(entry.sha256, self.seal)
        return None if (size_bytes, digest) == (entry.size_bytes, entry.sha256) else f"{name} has other content"


def _entry_of(line: bytes) -> Entry:
    """Return an entry of the listing. Raises `Damaged`: without a passphrase the listing may be forged."""
    try:
        fields: dict[str, Any] = orjson.loads(line)
        entry = Entry(**fields)
        if SHA256.fullmatch(entry.sha256) and entry.size_bytes >= 0 and isinstance(entry.owner, str):
            return entry
    except (TypeError, ValueError):
        pass
    raise Damaged(f"{LISTING} is damaged: a line of it names no content")


def _measured(pieces: Iterator[bytes], expected_bytes: int) -> tuple[int, str]:
    """Return the size and digest of a file, read at most to the first byte too many: little may unpack to very much."""
    digest, size_bytes = hashlib.sha256(), 0
    for piece in pieces:
        digest.update(piece)
        size_bytes += len(piece)
        if size_bytes > expected_bytes:
            break
    return size_bytes, digest.hexdigest()
