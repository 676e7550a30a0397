"""The interface between files and the stores of their bytes.

The row of a content names its store, so a store stays readable after another one has been configured.

Invariant: bytes are identified by owner and SHA-256 only, never by a name from a caller. Hence no name can refer to a
path outside a store, and equal contents are stored once.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Final, Protocol

from exai.encryption.codec import PLAIN, Codec
from exai.encryption.contents import open_parts, stored_range
from exai.errors import BlobError, ContentUnreadable
from exai.models import Owner, StoredFile, Unused

OWNER_CHARS: Final = 32
PART_BYTES: Final = 1_048_576
"""Bytes are numbered, and characters counted, by parts of this size in every store."""

NOTHING_INLINE: Final = -1
"""`BlobStore.inline_bytes` of stores outside the database."""

CONTINUATION: Final = bytes(range(0x80, 0xC0))

FindUsedPaths = Callable[[Sequence[str]], Awaitable[frozenset[str]]]
"""Returns those of the storage paths that belong to a content."""


class BlobStore(Protocol):
    """Bytes by owner and SHA-256. Methods raise `BlobError` or a `DatabaseError`; each may be repeated.

    Invariant: bytes become visible whole, by the row that `put`'s caller writes afterwards, or not at all.
    """

    name: ClassVar[str]
    """Name of the store in the row of a content."""

    is_shared: ClassVar[bool]
    """Whether every daemon of the same database reads the same bytes."""

    inline_bytes: ClassVar[int]
    """Bytes up to this size are stored by the statement that stores their row; `put` is for more."""

    puts_known: ClassVar[bool]
    """Whether `put` is called for contents that have a row too: it is cheap then, and restores missing bytes."""

    @property
    def shown(self) -> str:
        """Return where the bytes are, as people read it; without credentials."""

    async def check(self) -> str:
        """Check that the store can be used, and return its description. Raises `BlobError` or a `DatabaseError`."""

    async def put(self, owner: Owner, sha256: str, data: bytes, blob_id: str) -> str | None:
        """Store `data` durably. Return its storage path, None in the database.

        `blob_id` names this attempt, so that it is never mixed with the remains of another one.
        """

    async def read(self, owner: Owner, file: StoredFile, offset: int, size_bytes: int) -> bytes:
        """Return the bytes from `offset` on, fewer at the end; nothing else is read."""

    async def read_all(self, owner: Owner, files: Mapping[str, StoredFile]) -> Mapping[str, bytes | BlobError]:
        """Return the existing contents by SHA-256, or the error of one that cannot be read."""

    async def characters(self, owner: Owner, file: StoredFile) -> Sequence[int]:
        """Return how many characters of UTF-8 begin in each part of `PART_BYTES`."""

    async def size(self, owner: Owner, file: StoredFile) -> int | None:
        """Return how many bytes the store has of a content, None if it has none; reads no bytes."""

    async def link(self, owner: Owner, file: StoredFile, lifetime_s: int) -> str | None:
        """Return an address from which the content can be downloaded for a while; None if the store serves none."""

    async def remove(self, owner: Owner, file: StoredFile) -> bool:
        """Remove the bytes of a content whose row is removed; return whether they were here."""

    async def sweep(self, age_s: float, find_used: FindUsedPaths, *, is_rehearsal: bool = False) -> Unused:
        """Remove bytes that belong to no content and were not stored for `age_s`; a rehearsal only counts them."""


class Blobs:
    """The configured store, and the others, which are still read."""

    def __init__(self, chosen: BlobStore, *others: BlobStore, codec: Codec = PLAIN) -> None:
        self.chosen, self.codec = chosen, codec
        self._stores: Mapping[str, BlobStore] = {store.name: store for store in (chosen, *others)}

    @property
    def private(self) -> tuple[str, ...]:
        """Return the names of the stores that other daemons cannot read."""
        return tuple(name for name, store in self._stores.items() if not store.is_shared)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of all stores of this daemon."""
        return tuple(self._stores)

    async def get(self, owner: Owner, file: StoredFile) -> bytes:
        """Return all bytes of a file, checked against their digest. Raises `BlobError` or a `DatabaseError`."""
        if file.seal is not None:
            return await self.read(owner, file, 0, file.size_bytes)
        data = await self.of(file).read(owner, file, 0, file.size_bytes)
        if len(data) != file.size_bytes or await asyncio.to_thread(digest, data) != file.sha256:
            raise BlobError("files", f"the bytes of {file.sha256} have changed", "Restore them from a backup")
        return data

    async def get_all(self, owner: Owner, files: Iterable[StoredFile]) -> Mapping[str, bytes | str]:
        """Return all whole contents by SHA-256, or the reason why one cannot be returned. Raises `DatabaseError`."""
        by_store: dict[str, dict[str, StoredFile]] = {}
        sealed: dict[str, StoredFile] = {}
        for file in files:
            by_store.setdefault(file.store, {})[file.address] = stored_form(file)
            if file.seal is not None:
                sealed[file.address] = file
        found: dict[str, bytes | str] = {}
        for name, contents in by_store.items():
            if name in self._stores:
                read = await self._stores[name].read_all(owner, contents)
                found |= await asyncio.to_thread(_checked, contents, read)
            else:
                found |= dict.fromkeys(contents, f"it is in the store {name!r}, which this daemon does not have")
        for address, file in sealed.items():
            data = found.pop(address)
            found[file.sha256] = data if isinstance(data, str) else await self._opened(owner, file, data)
        return found

    async def _opened(self, owner: Owner, file: StoredFile, data: bytes) -> bytes | str:
        """Return a whole encrypted content, or the reason why it cannot be decrypted."""
        try:
            return await asyncio.to_thread(open_parts, self.codec, owner, file.seal, data, (0, file.size_bytes))
        except ContentUnreadable as error:
            return str(error)

    async def read(self, owner: Owner, file: StoredFile, offset: int, size_bytes: int) -> bytes:
        """Return some bytes of a file. Raises as `get`."""
        size_bytes = max(0, min(size_bytes, file.size_bytes - offset))
        if file.seal is not None:
            begin, stored_bytes = stored_range(file.seal, offset, size_bytes)
            data = await self.of(file).read(owner, stored_form(file), begin, stored_bytes)
            if len(data) != stored_bytes:
                raise BlobError("files", f"the bytes of {file.address} are not all there", "Restore them from a backup")
            return await asyncio.to_thread(open_parts, self.codec, owner, file.seal, data, (offset, size_bytes))
        data = await self.of(file).read(owner, file, offset, size_bytes) if size_bytes else b""
        if len(data) != size_bytes:
            raise BlobError("files", f"the bytes of {file.sha256} are not all there", "Restore them from a backup")
        return data

    async def characters(self, owner: Owner, file: StoredFile) -> Sequence[int]:
        """Return how many characters of UTF-8 begin in each part of `PART_BYTES`."""
        if file.seal is not None:
            counts: Sequence[int] = file.seal.characters
            return counts
        return await self.of(file).characters(owner, file)

    async def sweep(self, age_s: float, find_used: FindUsedPaths, *, is_rehearsal: bool = False) -> Unused:
        """Remove bytes without a content from every store; see `BlobStore.sweep`."""
        total = Unused()
        # The database first: bytes in other stores are unused once it has removed the rows of their contents.
        for store in sorted(self._stores.values(), key=lambda store: -store.inline_bytes):
            total += await store.sweep(age_s, find_used, is_rehearsal=is_rehearsal)
        return total

    def of(self, file: StoredFile) -> BlobStore:
        """Return the store that holds a file. Raises `BlobError` for one that this daemon does not have."""
        return self.named(file.store)

    def named(self, name: str) -> BlobStore:
        """Return a store by its name. Raises `BlobError` for one that this daemon does not have."""
        store = self._stores.get(name)
        if store is None:
            cure = f"Set EXAI_FILES__STORE={name}, or the address and key of that store beside another one"
            raise BlobError("files", f"the store {name!r} is not configured", cure)
        return store


def stored_form(file: StoredFile) -> StoredFile:
    """Return a file as the stores know it: of an encrypted content the digest and the size of its stored form."""
    if file.seal is None:
        return file
    return replace(file, sha256=file.address, size_bytes=file.seal.stored_bytes, seal=None, stored_sha256="")


def digest(data: bytes) -> str:
    """Return the SHA-256 of `data` in lower-case hexadecimal, 64 characters."""
    return hashlib.sha256(data).hexdigest()


def _checked(files: Mapping[str, StoredFile], read: Mapping[str, bytes | BlobError]) -> dict[str, bytes | str]:
    return {sha256: _bytes_or_reason(sha256, file.size_bytes, read.get(sha256, b"")) for sha256, file in files.items()}


def _bytes_or_reason(sha256: str, size_bytes: int, data: bytes | BlobError) -> bytes | str:
    if isinstance(data, BlobError):
        return f"its bytes cannot be read ({data.problem})"
    if not data and size_bytes:
        return "its bytes are not there"
    return data if digest(data) == sha256 else "its bytes have changed since it was stored"


def characters_in(data: bytes) -> int:
    """Return how many characters of UTF-8 begin in `data`."""
    return len(data.translate(None, CONTINUATION))


def characters_by_part(data: bytes) -> tuple[int, ...]:
    """Return how many characters of UTF-8 begin in each part of `data`."""
    return tuple(characters_in(data[begin : begin + PART_BYTES]) for begin in range(0, len(data), PART_BYTES))


def storage_path(owner: Owner, sha256: str) -> str:
    """Return the key of a blob: its owner's digest, then two levels so that no directory grows large."""
    return f"{digest(owner.encode())[:OWNER_CHARS]}/{sha256[:2]}/{sha256}"
