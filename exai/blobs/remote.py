"""A blob store made of objects in a bucket, which are read and written over a network.

Invariant: each attempt to store a content has a key of its own, so that no object is ever written twice with different
bytes, no upload mixes with the remains of another one, and a sweep cannot remove what another daemon stores meanwhile.
Keys begin with the identity of the database (`space`), and a sweep sees no others: databases that share a bucket, by
intention or by mistake, leave each other's objects alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from itertools import count
from typing import ClassVar, Final, Protocol, TypeVar

from exai.blobs.base import NOTHING_INLINE, OWNER_CHARS, PART_BYTES, FindUsedPaths, characters_in, digest
from exai.blobs.faults import BlobMissing, StoreAway, StoreRefused
from exai.errors import BlobError
from exai.models import Owner, Recorder, StoredFile, Unused
from exai.resilience import Breaker, BreakerOpen, RetryBudget, backoff_s, bounded, remaining_s

MAX_ATTEMPTS: Final = 4
BACKOFF_S: Final = 0.25
BACKOFF_MAX_S: Final = 4.0
WAIT_MAX_S: Final = 20.0
"""A store that asks for more patience is reported at once."""

REQUEST_S: Final = 60.0
CONCURRENT_READS: Final = 8
SWEEP_BATCH: Final = 500

T = TypeVar("T")
Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object of a listing; `modified_at` is its time in seconds since 1970."""

    key: str
    size_bytes: int
    modified_at: float


class RemoteBucket(Protocol):
    """Objects by key. Methods raise `StoreAway`, `StoreRefused` or `BlobMissing`, and do not repeat themselves."""

    @property
    def shown(self) -> str:
        """Return the name and place of the bucket."""

    async def check(self) -> str:
        """Ask whether the bucket can be used; changes nothing."""

    async def put(self, key: str, data: bytes) -> None:
        """Store an object; a repetition with the same bytes is no error."""

    async def read(self, key: str, offset: int, size_bytes: int) -> bytes:
        """Return some bytes of an object."""

    async def size(self, key: str) -> int:
        """Return the size of an object."""

    async def link(self, key: str, lifetime_s: int, name: str) -> str:
        """Return an address for a download."""

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; a missing one is no error."""

    def list(self, space: str) -> AsyncIterator[Sequence[StoredObject]]:
        """Return all objects whose keys begin with `space`, in parts."""


class Retries:
    """Repeats a request to one store while that may help, within the request's deadline."""

    def __init__(self, store: str, recorder: Recorder, *, sleep: Sleep = asyncio.sleep) -> None:
        self._store, self._sleep = store, sleep
        self._budget = RetryBudget()
        self._breaker = Breaker(
            f"storage.{store}", recorder=recorder, failures=(StoreAway,), answers=(StoreRefused, BlobMissing)
        )

    async def run(self, what: str, work: Callable[[], Awaitable[T]], limit_s: float | None = REQUEST_S) -> T:
        """Return the result of `work`, called again after a `StoreAway`. Raises its errors."""
        self._budget.request()
        for attempt in count(1):
            try:
                async with self._admitted():
                    return await self._once(what, work, limit_s)
            except StoreAway as error:
                wait_s = error.wait_s if error.wait_s is not None else backoff_s(attempt, BACKOFF_S, BACKOFF_MAX_S)
                left_s = remaining_s()
                is_hopeless = wait_s > WAIT_MAX_S or (left_s is not None and left_s <= wait_s)
                if attempt == MAX_ATTEMPTS or is_hopeless or not self._budget.take():
                    raise
            await self._sleep(wait_s)
        raise AssertionError("the loop ends with a result or an error")

    def _admitted(self) -> AbstractAsyncContextManager[object]:
        try:
            self._breaker.check()
        except BreakerOpen as error:
            raise BlobError("files", f"{self._store}: {error.problem}", error.cure) from error
        return self._breaker.attempt()

    async def _once(self, what: str, work: Callable[[], Awaitable[T]], limit_s: float | None) -> T:
        try:
            return await bounded(work(), limit_s, what)
        except TimeoutError as error:
            problem = f"{self._store} did not answer within {limit_s:g} s ({what})"
            raise StoreAway("files", problem, "Try again, and check the network") from error


class RemoteBlobs:
    """A `BlobStore` in a bucket."""

    name: ClassVar[str]
    is_shared: ClassVar[bool] = True
    inline_bytes: ClassVar[int] = NOTHING_INLINE
    puts_known: ClassVar[bool] = False

    def __init__(self, bucket: RemoteBucket, recorder: Recorder, *, space: str, sleep: Sleep = asyncio.sleep) -> None:
        self._bucket, self._space = bucket, space
        self._retries = Retries(self.name, recorder, sleep=sleep)
        self._reading = asyncio.Semaphore(CONCURRENT_READS)

    @property
    def shown(self) -> str:
        """Return the name and place of the bucket."""
        return self._bucket.shown

    async def check(self) -> str:
        """Ask the bucket, without retries: the next probe is one."""
        return await bounded(self._bucket.check(), REQUEST_S, "check")

    async def put(self, owner: Owner, sha256: str, data: bytes, blob_id: str) -> str:
        """Store `data` under a key of its own; an empty content needs no object."""
        key = f"{self._space}/{digest(owner.encode())[:OWNER_CHARS]}/{sha256}-{blob_id}"
        if data:
            # No limit for the whole: the bucket limits each request.
            await self._retries.run("upload", lambda: self._bucket.put(key, data), None)
        return key

    async def read(self, owner: Owner, file: StoredFile, offset: int, size_bytes: int) -> bytes:
        """Return a range of bytes of a content; an empty range costs no request."""
        del owner
        size_bytes = min(size_bytes, file.size_bytes - offset)
        if size_bytes <= 0:
            return b""
        key = self._key(file)
        async with self._reading:
            return await self._retries.run("download", lambda: self._bucket.read(key, offset, size_bytes))

    async def read_all(self, owner: Owner, files: Mapping[str, StoredFile]) -> Mapping[str, bytes | BlobError]:
        """Return whole contents by SHA-256, several at a time, or the error of one that cannot be read."""
        found: dict[str, bytes | BlobError] = {}

        async def read(sha256: str, file: StoredFile) -> None:
            try:
                found[sha256] = await self.read(owner, file, 0, file.size_bytes)
            except BlobMissing:
                pass
            except BlobError as error:
                found[sha256] = error

        async with asyncio.TaskGroup() as group:
            for sha256, file in files.items():
                group.create_task(read(sha256, file), name=f"download {sha256}")
        return found

    async def characters(self, owner: Owner, file: StoredFile) -> Sequence[int]:
        """Count the characters of each part; reads all of the content, a part at a time."""
        return [
            characters_in(await self.read(owner, file, offset, PART_BYTES))
            for offset in range(0, file.size_bytes, PART_BYTES)
        ]

    async def size(self, owner: Owner, file: StoredFile) -> int | None:
        """Return the size of the object, None if it is missing."""
        del owner
        if not file.size_bytes:
            return 0
        key = self._key(file)
        try:
            async with self._reading:
                return await self._retries.run("look-up", lambda: self._bucket.size(key))
        except BlobMissing:
            return None

    async def link(self, owner: Owner, file: StoredFile, lifetime_s: int) -> str | None:
        """Return an address that needs no key, and ends by itself."""
        del owner
        if not file.size_bytes:
            return None
        key = self._key(file)
        return await self._retries.run("link", lambda: self._bucket.link(key, lifetime_s, file.name))

    async def remove(self, owner: Owner, file: StoredFile) -> bool:
        """Remove the object of a content; a missing one is no error."""
        del owner
        if file.size_bytes and file.storage_path is not None:
            key = file.storage_path
            await self._retries.run("removal", lambda: self._bucket.delete([key]))
        return True

    async def sweep(self, age_s: float, find_used: FindUsedPaths, *, is_rehearsal: bool = False) -> Unused:
        """Remove objects without a content that were stored before `age_s`."""
        before = time.time() - age_s
        old: list[StoredObject] = []
        total = Unused()
        async for listed in self._bucket.list(self._space):
            old += [each for each in listed if each.modified_at < before]
            while len(old) >= SWEEP_BATCH:
                total += await self._remove(old[:SWEEP_BATCH], find_used, is_rehearsal)
                del old[:SWEEP_BATCH]
        return total + await self._remove(old, find_used, is_rehearsal) if old else total

    async def _remove(self, objects: Sequence[StoredObject], find_used: FindUsedPaths, is_rehearsal: bool) -> Unused:
        used = await find_used([each.key for each in objects])
        unused = [each for each in objects if each.key not in used]
        if unused and not is_rehearsal:
            keys = [each.key for each in unused]
            await self._retries.run("removal", lambda: self._bucket.delete(keys))
        return Unused(len(unused), sum(each.size_bytes for each in unused))

    def _key(self, file: StoredFile) -> str:
        if file.storage_path is None:
            raise BlobMissing("files", f"the row of {file.sha256} has no storage path", "Store the file again")
        return file.storage_path
