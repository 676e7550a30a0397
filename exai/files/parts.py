"""Read a part of a file: characters of a text, bytes of other contents.

Invariant: of a long file only the bytes of the part are read, unless its encoding allows no other way.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from exai.account import hold
from exai.blobs.base import PART_BYTES, Blobs, characters_in
from exai.blobs.decoding import BINARY, MARKED_UTF_8, ONE_BYTE, PLAIN_UTF_8, decode
from exai.errors import InvalidArgument
from exai.models import Owner, StoredFile
from exai.validation import check_offset

BYTES_PER_CHARACTER: Final = 4
"""Maximum in UTF-8."""


@dataclass(frozen=True, slots=True)
class FilePart:
    """A part of a file. `text` is None for binary content, and `data` then holds the bytes.

    Offsets count characters of a text, otherwise bytes; `next_offset` is None at the end. `note` names the decoding.
    """

    file: StoredFile
    text: str | None
    data: bytes
    next_offset: int | None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class FileLines:
    """Whole lines of a text from the line `first` on, and where in its characters they begin.

    `lines` is their number, 0 for the beginning of one; `is_last` says whether the text ends with them.
    """

    file: StoredFile
    text: str
    offset: int
    first: int
    lines: int
    is_last: bool
    note: str | None = None


async def read_part(blobs: Blobs, owner: Owner, file: StoredFile, offset: int, limit: int) -> FilePart:
    """Return at most `limit` characters or bytes of a file from `offset` on.

    Text in a variable-width encoding other than UTF-8 is decoded from the start.
    Raises `BlobError`, a `DatabaseError`, or `InvalidArgument` for an offset beyond the end of a text.
    """
    if file.encoding == BINARY or file.encoding in ONE_BYTE:
        data = await blobs.read(owner, file, offset, limit)
        end = offset + len(data)
        next_offset = end if end < file.size_bytes else None
        if file.encoding == BINARY:
            return FilePart(file, None, data, next_offset)
        check_offset("offset", offset, file.size_bytes)
        decoded = decode(data, file.encoding)
        return FilePart(file, decoded.text if decoded else "", b"", next_offset, decoded.note if decoded else None)
    if file.encoding in PLAIN_UTF_8 and file.size_bytes > PART_BYTES:
        return await _long_part(blobs, owner, file, offset, limit)
    with hold(file.size_bytes, "files being read"):
        data = await blobs.get(owner, file)
        return await asyncio.to_thread(_part_of, file, data, offset, limit)


async def read_lines(blobs: Blobs, owner: Owner, file: StoredFile, first: int, *, most: int, limit: int) -> FileLines:
    """Return at most `most` lines of a text from the line `first` (1 is the first), and about `limit` characters.

    A line that is longer than that comes alone, or its beginning if it is very long. Long UTF-8 is read in pieces,
    other texts as a whole.
    Raises `BlobError`, a `DatabaseError`, or `InvalidArgument` for a file that is no text and a line beyond its end.
    """
    if file.encoding == BINARY:
        raise InvalidArgument("line", "counts lines of a text, and the file is none", "Read it by offset")
    if file.encoding in PLAIN_UTF_8 and file.size_bytes > PART_BYTES:
        return await _long_lines(blobs, owner, file, first, most=most, limit=limit)
    with hold(file.size_bytes, "files being read"):
        data = await blobs.get(owner, file)
        decoded = await asyncio.to_thread(decode, data, file.encoding)
    if decoded is None:
        raise InvalidArgument("line", "counts lines of a text, and the file is none", "Read it by offset")
    lines = _lines_of(decoded.text)
    _check_line(first, len(lines))
    taken = _take(lines[first - 1 : first - 1 + most], limit)
    before = sum(map(len, lines[: first - 1]))
    is_last = first - 1 + len(taken) >= len(lines)
    return FileLines(file, "".join(taken), before, first, len(taken), is_last, decoded.note)


async def _long_lines(blobs: Blobs, owner: Owner, file: StoredFile, first: int, *, most: int, limit: int) -> FileLines:
    """Count the lines before the first one piece by piece, then read pieces until there are enough lines."""
    line, characters, place, rest = 1, 0, 0, b""
    while place < file.size_bytes:
        piece = await blobs.read(owner, file, place, PART_BYTES)
        if line + (found := piece.count(b"\n")) >= first:
            skipped = _end_of_line(piece, first - line)
            characters += characters_in(piece[:skipped])
            line, rest, place = first, piece[skipped:], place + len(piece)
            break
        line, characters, place = line + found, characters + characters_in(piece), place + len(piece)
    _check_line(first, line if rest or place < file.size_bytes else line - 1)
    enough = limit * BYTES_PER_CHARACTER
    while place < file.size_bytes and rest.count(b"\n") < most and len(rest) <= enough:
        piece = await blobs.read(owner, file, place, PART_BYTES)
        rest, place = rest + piece, place + len(piece)
    ends = rest.rfind(b"\n") + 1 if place < file.size_bytes else len(rest)
    mark = file.encoding == MARKED_UTF_8
    # Without the end of a line: its beginning, up to the last whole character.
    text = rest[: ends or len(rest)].decode(errors="ignore").replace("\0", "\u2400")
    lines = _lines_of(text.removeprefix("\ufeff") if mark and first == 1 else text)
    taken = _take(lines[:most], limit)
    is_last = place >= file.size_bytes and len(taken) == len(lines)
    number = len(taken) if ends else 0
    return FileLines(file, "".join(taken), characters - (mark and first > 1), first, number, is_last)


def _lines_of(text: str) -> list[str]:
    """Return the lines of a text, each with its line feed; no other character ends a line."""
    lines = [f"{line}\n" for line in text.split("\n")]
    last = lines.pop()[:-1]
    return [*lines, last] if last else lines


def _take(lines: list[str], limit: int) -> list[str]:
    """Return the first lines that have `limit` characters together, and at least one."""
    taken, size = 0, 0
    for line in lines:
        size += len(line)
        if taken and size > limit:
            break
        taken += 1
    return lines[:taken]


def _end_of_line(piece: bytes, number: int) -> int:
    """Return the place behind that many line feeds."""
    place = 0
    for _ in range(number):
        place = piece.index(b"\n", place) + 1
    return place


def _check_line(first: int, lines: int) -> None:
    if first > max(1, lines):
        raise InvalidArgument("line", f"is beyond the end, which is line {lines:,}", "Give a smaller line")


async def _long_part(blobs: Blobs, owner: Owner, file: StoredFile, offset: int, limit: int) -> FilePart:
    """Read from the start of the part that contains the first character."""
    counts = await blobs.characters(owner, file)
    mark = file.encoding == MARKED_UTF_8
    check_offset("offset", offset, sum(counts) - mark)
    before = number = 0
    while number < len(counts) - 1 and before + counts[number] <= offset + mark:
        before += counts[number]
        number += 1
    skipped = offset + mark - before
    wanted = min(skipped * BYTES_PER_CHARACTER, PART_BYTES) + (limit + 1) * BYTES_PER_CHARACTER
    data = await blobs.read(owner, file, number * PART_BYTES, wanted)
    text = await asyncio.to_thread(_characters_of, data, skipped, limit)
    end = offset + len(text)
    return FilePart(file, text, b"", end if end < sum(counts) - mark else None)


def _part_of(file: StoredFile, data: bytes, offset: int, limit: int) -> FilePart:
    decoded = decode(data, file.encoding)
    if decoded is None:
        end = offset + limit
        return FilePart(file, None, data[offset:end], end if end < len(data) else None)
    check_offset("offset", offset, len(decoded.text))
    end = offset + limit
    return FilePart(file, decoded.text[offset:end], b"", end if end < len(decoded.text) else None, decoded.note)


def _characters_of(data: bytes, skipped: int, limit: int) -> str:
    """Decode UTF-8 whose first and last characters may be incomplete."""
    begin = next((place for place, byte in enumerate(data[:BYTES_PER_CHARACTER]) if byte & 0xC0 != 0x80), 0)
    text = data[begin:].decode(errors="ignore")[skipped : skipped + limit]
    return text.replace("\0", "\u2400")
