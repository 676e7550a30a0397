"""Store the bytes of files in Postgres: content-addressed, in parts that are read and written separately.

Invariant: bytes are visible only through the row of a content, which is written after all of its parts. Parts of an
interrupted upload are swept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import ClassVar, Final

from exai.db.driver.pool import Database
from exai.models import Owner, StoredFile, Unused

PART_BYTES: Final = 1_048_576
READ_BYTES: Final = 4 * PART_BYTES
"""Maximum number of bytes read by one statement, so that a slow network transfers them within its timeout."""

IDENTITY_CHARS: Final = 12

SWEEP_BATCH: Final = 20
"""Removing a content of 32 MiB removes 16,000 rows."""

CONTINUATION: Final = bytes(range(0x80, 0xC0))


class PostgresBlobs:
    """A blob store in the database of the files' rows."""

    name: ClassVar[str] = "postgres"
    is_shared: ClassVar[bool] = True
    inline_bytes: ClassVar[int] = 65_536
    puts_known: ClassVar[bool] = False

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def shown(self) -> str:
        """Return that the bytes are beside the rows."""
        return "in the database"

    async def check(self) -> str:
        """Return where the bytes are; whether the database can be used is a question of its own."""
        return self.shown

    async def identity(self) -> str:
        """Return a name for this database that no other one has, except a physical copy of it: 1 round trip."""
        (row,) = await self._database.fetch("database_identity")
        return space_of(row["identity"])

    async def put(self, owner: Owner, sha256: str, data: bytes, blob_id: str) -> str | None:
        """Store the parts, one round trip each; the statement that stores the file's row makes them a content."""
        del owner, sha256
        for number in range(-(-len(data) // PART_BYTES)):
            part = data[number * PART_BYTES : (number + 1) * PART_BYTES]
            characters = len(part.translate(None, CONTINUATION))
            await self._database.fetch("put_part", blob_id, len(data), number, characters, part)
        return None

    async def read(self, owner: Owner, file: StoredFile, offset: int, size_bytes: int) -> bytes:
        """Return the bytes from `offset` on: 1 round trip for each `READ_BYTES`."""
        pieces = []
        for begin in range(offset, offset + size_bytes, READ_BYTES):
            wanted = min(READ_BYTES, offset + size_bytes - begin)
            rows = await self._database.fetch("read_bytes", owner, file.sha256, begin, wanted)
            pieces += [row["data"] for row in rows]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def read_all(self, owner: Owner, files: Mapping[str, StoredFile]) -> Mapping[str, bytes]:
        """Return whole contents by SHA-256: 1 round trip for each `READ_BYTES`, and for each that is larger its own."""
        found: dict[str, bytes] = {}
        batch: list[str] = []
        batch_bytes = 0
        for sha256, file in files.items():
            if file.size_bytes > READ_BYTES:
                found[sha256] = await self.read(owner, file, 0, file.size_bytes)
                continue
            if batch_bytes + file.size_bytes > READ_BYTES:
                found |= await self._read_batch(owner, batch)
                batch, batch_bytes = [], 0
            batch.append(sha256)
            batch_bytes += file.size_bytes
        return found | await self._read_batch(owner, batch) if batch else found

    async def _read_batch(self, owner: Owner, digests: Sequence[str]) -> dict[str, bytes]:
        parts: dict[str, list[bytes]] = {sha256: [] for sha256 in digests}
        for row in await self._database.fetch("read_contents", owner, digests):
            parts[row["sha256"]].append(row["data"])
        return {sha256: b"".join(pieces) for sha256, pieces in parts.items()}

    async def characters(self, owner: Owner, file: StoredFile) -> Sequence[int]:
        """Return how many characters begin in each part: 1 round trip, no bytes."""
        return [row["characters"] for row in await self._database.fetch("part_characters", owner, file.sha256)]

    async def size(self, owner: Owner, file: StoredFile) -> int | None:
        """Return the size of the parts together: 1 round trip, no bytes."""
        (row,) = await self._database.fetch("stored_size", owner, file.sha256)
        return None if row["size_bytes"] is None else int(row["size_bytes"])

    async def link(self, owner: Owner, file: StoredFile, lifetime_s: int) -> None:
        """Return None: nothing serves the database's bytes."""
        del owner, file, lifetime_s

    async def remove(self, owner: Owner, file: StoredFile) -> bool:
        """Do nothing: bytes go with their row."""
        del owner, file
        return True

    async def sweep(
        self,
        age_s: float,
        find_used: Callable[[Sequence[str]], Awaitable[frozenset[str]]],
        *,
        is_rehearsal: bool = False,
    ) -> Unused:
        """Remove contents without a file, of all stores, and bytes without a content; the result has no size."""
        del find_used
        if is_rehearsal:
            (row,) = await self._database.fetch("count_unused", age_s)
            return Unused(int(row["blobs"]), int(row["size_bytes"]))
        removed = 0
        while True:
            (row,) = await self._database.fetch("sweep_contents", age_s, SWEEP_BATCH)
            removed += int(row["blobs"])
            if not row["contents"] and not row["blobs"]:
                return Unused(removed)


def space_of(identity: str) -> str:
    """Return the beginning of the keys under which a database stores objects, by what tells it from all others."""
    return hashlib.sha256(identity.encode()).hexdigest()[:IDENTITY_CHARS]
