"""Read a part of a file: characters of a text, bytes of other contents.

Invariant: of a long file only the bytes of the part are read, unless its encoding allows no other way.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from exai.account import hold
from exai.blobs.base import PART_BYTES, Blobs
from exai.blobs.decoding import BINARY, MARKED_UTF_8, ONE_BYTE, PLAIN_UTF_8, decode
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


async def _long_part(blobs: Blobs, owner: Owner, file: StoredFile, offset: int, limit: int) -> FilePart:
    """Read from the start of the part that contains the first character."""
    counts = await blobs.of(file).characters(owner, file)
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
