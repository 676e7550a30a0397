"""Read JSON Lines of any size, with one line in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

from exai.importers.reading.walking import MAX_PART_BYTES

CHUNK_BYTES: Final = 1_048_576
HEAD_BYTES: Final = 4_096


@dataclass(frozen=True, slots=True)
class JsonLine:
    """A line: its number from 1, its beginning, and all of it, or None if it is too long.

    `has_end` is false for a last line without a line feed, which may still be written.
    """

    number: int
    head: bytes
    raw: bytes | None
    has_end: bool

    @property
    def where(self) -> str:
        """Return the place of the line."""
        return f"line {self.number}"


def read_json_lines(stream: BinaryIO, limit_bytes: int = MAX_PART_BYTES) -> Iterator[JsonLine]:
    """Yield the lines that are not blank. Of a longer line than the limit only the beginning is kept."""
    number, size = 0, 0
    parts: list[bytes] = []
    head = b""
    while True:
        piece = stream.readline(CHUNK_BYTES)
        if size == 0:
            head = piece[:HEAD_BYTES]
        size += len(piece)
        if size <= limit_bytes:
            parts.append(piece)
        else:
            parts.clear()
        if piece and not piece.endswith(b"\n"):
            continue
        if size:
            number += 1
            raw = b"".join(parts).strip() if size <= limit_bytes else None
            if raw != b"":
                yield JsonLine(number, head, raw, bool(piece))
        if not piece:
            return
        size, parts = 0, []
