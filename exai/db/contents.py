"""Store the bytes of files in Postgres: content-addressed, in parts that are read and written separately.

Invariant: bytes are visible only through the row of a content, which is written after all of its parts. Parts of an
interrupted upload are swept.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import ClassVar, Final

from exai.db.driver.pool import Database
from exai.models import Owner

PART_BYTES: Final = 1_048_576
READ_BYTES: Final = 4 * PART_BYTES
"""Maximum number of bytes read by one statement, so that a slow network transfers them within its timeout."""

SWEEP_BATCH: Final = 20
"""Removing a content of 32 MiB removes 16,000 rows."""

CONTINUATION: Final = bytes(range(0x80, 0xC0))


class PostgresBlobs:
    """A blob store in the database of the files' rows."""

    name: ClassVar[str] = "postgres"
    inline_bytes: ClassVar[int] = 65_536

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, owner: Owner, sha256: str, data: bytes, blob_id: str) -> str | None:
        """Store the parts, one round trip each; the statement that stores the file's row makes them a content."""
        del owner, sha256
        for number in range(-(-len(data) // PART_BYTES)):
            part = data[number * PART_BYTES : (number + 1) * PART_BYTES]
            characters = len(part.translate(None, CONTINUATION))
            await self._database.fetch("put_part", blob_id, len(data), number, characters, part)
        return None

    async def read(self, owner: Owner, sha256: str, offset: int, size_bytes: int) -> bytes:
        """Return the bytes from `offset` on: 1 round trip for each `READ_BYTES`."""
        pieces = []
        for begin in range(offset, offset + size_bytes, READ_BYTES):
            wanted = min(READ_BYTES, offset + size_bytes - begin)
            rows = await self._database.fetch("read_bytes", owner, sha256, begin, wanted)
            pieces += [row["data"] for row in rows]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def read_all(self, owner: Owner, sizes: Mapping[str, int]) -> Mapping[str, bytes]:
        """Return whole contents by SHA-256: 1 round trip for each `READ_BYTES`, and for each that is larger its own."""
        found: dict[str, bytes] = {}
        batch: list[str] = []
        batch_bytes = 0
        for sha256, size_bytes in sizes.items():
            if size_bytes > READ_BYTES:
                found[sha256] = await self.read(owner, sha256, 0, size_bytes)
                continue
            if batch_bytes + size_bytes > READ_BYTES:
                found |= await self._read_batch(owner, batch)
                batch, batch_bytes = [], 0
            batch.append(sha256)
            batch_bytes += size_bytes
        return found | await self._read_batch(owner, batch) if batch else found

    async def _read_batch(self, owner: Owner, digests: Sequence[str]) -> dict[str, bytes]:
        parts: dict[str, list[bytes]] = {sha256: [] for sha256 in digests}
        for row in await self._database.fetch("read_contents", owner, digests):
            parts[row["sha256"]].append(row["data"])
        return {sha256: b"".join(pieces) for sha256, pieces in parts.items()}

    async def characters(self, owner: Owner, sha256: str) -> Sequence[int]:
        """Return how many characters begin in each part: 1 round trip, no bytes."""
        return [row["characters"] for row in await self._database.fetch("part_characters", owner, sha256)]

    async def sweep(self, age_s: float, find_used: Callable[[Sequence[str]], Awaitable[frozenset[str]]]) -> int:
        """Remove contents without a file and bytes without a content; returns of how many contents."""
        del find_used
        removed = 0
        while True:
            (row,) = await self._database.fetch("sweep_contents", age_s, SWEEP_BATCH)
            removed += int(row["blobs"])
            if not row["contents"] and not row["blobs"]:
                return removed
