"""Stores blobs in Supabase Storage, over its HTTP API.

Errors are judged by `statusCode` in the body: the server answers most of them with HTTP 400. Invariant: the key is
sent to the configured address only, redirects are not followed, and a public bucket is refused.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, ClassVar, Final
from urllib.parse import quote

import httpx

from exai.blobs.answers import body_of, error_of, json_of, object_of, rows_of, translated, unreadable
from exai.blobs.faults import BlobMissing, StoreExists, StoreRefused
from exai.blobs.remote import BACKOFF_MAX_S, BACKOFF_S, RemoteBlobs, StoredObject
from exai.blobs.tus import PIECE_BYTES, IsStored, ResumableUpload
from exai.models import Recorder
from exai.resilience import backoff_s
from exai.settings.load import SupabaseStorageSettings

API: Final = "/storage/v1"
CONTENT_TYPE: Final = "application/octet-stream"
LIST_ITEMS: Final = 1_000
CONNECT_S: Final = 5.0
SILENCE_S: Final = 30.0
CONNECTIONS: Final = 16
SHOWN_CHARS: Final = 100


class SupabaseBlobs(RemoteBlobs):
    """A `BlobStore` in a private bucket of Supabase Storage."""

    name: ClassVar[str] = "supabase"


@asynccontextmanager
async def open_supabase(
    settings: SupabaseStorageSettings, recorder: Recorder, space: str
) -> AsyncIterator[SupabaseBlobs]:
    """Open the connections; the first request is made when something is stored or read."""
    if settings.url is None or settings.key is None:
        raise AssertionError("the settings were checked")
    key = settings.key.get_secret_value()
    base = settings.url.removesuffix(API) + API
    headers = {
        "apikey": key,
        "Authorization": f"Bearer {key}",
        # A range of a compressed answer would be a range of other bytes.
        "Accept-Encoding": "identity",
    }
    timeout = httpx.Timeout(SILENCE_S, connect=CONNECT_S)
    limits = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
    async with httpx.AsyncClient(base_url=base, headers=headers, timeout=timeout, limits=limits) as client:
        yield SupabaseBlobs(SupabaseBucket(client, settings.bucket), recorder, space=space)


class SupabaseBucket:
    """One bucket of Supabase Storage; made, private, if it is missing when something is stored."""

    def __init__(self, client: httpx.AsyncClient, name: str) -> None:
        self._client, self._name = client, name
        self._is_ready = False

    @property
    def shown(self) -> str:
        """Return the bucket and the project's address."""
        return f"Supabase Storage at {self._client.base_url.host}, bucket {self._name}"

    async def check(self) -> str:
        """Ask for the bucket. Raises `StoreRefused` for a public one."""
        try:
            await self._see_that_it_is_private()
        except BlobMissing:
            return f"{self.shown}, which is made with the first file"
        return self.shown

    async def put(self, key: str, data: bytes) -> None:
        """Store an object: by one request up to 6 MB, above it in parts that can be resumed."""
        if not self._is_ready:
            await self._make_ready()
        try:
            await self._send(key, data)
        except BlobMissing:
            # The bucket has been removed since it was seen.
            await self._make_ready()
            await self._send(key, data)

    async def _send(self, key: str, data: bytes) -> None:
        if len(data) <= PIECE_BYTES:
            headers = {"Content-Type": CONTENT_TYPE, "x-upsert": "true"}
            await self._ask("POST", f"/object/{self._name}/{_path(key)}", content=data, headers=headers)
            return
        metadata = {"bucketName": self._name, "objectName": key, "contentType": CONTENT_TYPE, "cacheControl": "3600"}
        await ResumableUpload(self._client, metadata, data, is_stored=self._has(key, len(data)), pause=_pause).run()

    async def read(self, key: str, offset: int, size_bytes: int) -> bytes:
        """Return some bytes of an object; a server that ignores the range is read up to its end."""
        headers = {"Range": f"bytes={offset}-{offset + size_bytes - 1}"}
        found = bytearray()
        async with self._streamed("GET", f"/object/authenticated/{self._name}/{_path(key)}", headers) as response:
            is_part = response.status_code == httpx.codes.PARTIAL_CONTENT
            stated = response.headers.get("Content-Range", f"bytes {offset}-")
            if is_part and not stated.startswith(f"bytes {offset}-"):
                # A part of a file is not compared with a digest.
                raise unreadable(f"another range ({stated[:SHOWN_CHARS]!r})")
            skipped = 0 if is_part else offset
            async for piece in response.aiter_raw():
                found += piece[skipped:]
                skipped = max(0, skipped - len(piece))
                if len(found) >= size_bytes:
                    break
        return bytes(found[:size_bytes])

    async def size(self, key: str) -> int:
        """Return the size that the server has noted for an object."""
        info = object_of(await self._ask("GET", f"/object/info/authenticated/{self._name}/{_path(key)}"))
        return _number(info["size"] if "size" in info else _metadata(info).get("size"))

    async def link(self, key: str, lifetime_s: int, name: str) -> str:
        """Return a signed address, from which a browser saves the file under its name."""
        asked = {"expiresIn": lifetime_s}
        made = object_of(await self._ask("POST", f"/object/sign/{self._name}/{_path(key)}", json=asked))
        signed = made.get("signedURL")
        if not isinstance(signed, str) or not signed.startswith("/") or not signed.isprintable():
            raise unreadable("no signedURL")
        return f"{str(self._client.base_url).rstrip('/')}{signed}&download={quote(name, safe='')}"

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; the server passes over missing ones."""
        await self._ask("DELETE", f"/object/{self._name}", json={"prefixes": list(keys)})

    async def list(self, space: str) -> AsyncIterator[Sequence[StoredObject]]:
        """List the objects of each owner's folder; a bucket that was never made has none."""
        try:
            folders = [f"{space}/{row['name']}" for row in await self._rows(space) if row.get("id") is None]
        except BlobMissing:
            return
        for folder in folders:
            yield [
                StoredObject(f"{folder}/{row['name']}", _number(_metadata(row).get("size", 0)), _time(row))
                for row in await self._rows(folder)
                if row.get("id") is not None
            ]

    async def _rows(self, folder: str) -> Sequence[dict[str, Any]]:
        """Return all rows of a folder at once: a page by number would miss rows if others were removed meanwhile."""
        rows: list[dict[str, Any]] = []
        while True:
            body = {
                "prefix": folder,
                "limit": LIST_ITEMS,
                "offset": len(rows),
                "sortBy": {"column": "name", "order": "asc"},
            }
            page = rows_of(await self._ask("POST", f"/object/list/{self._name}", json=body))
            # In the order of the server's collation, so that only a repetition shows that it does not page.
            if rows and page and page[0] == rows[-LIST_ITEMS]:
                raise unreadable("the same page of a listing again")
            rows += page
            if len(page) < LIST_ITEMS:
                return rows

    async def _make_ready(self) -> None:
        try:
            await self._see_that_it_is_private()
        except BlobMissing:
            body = {"id": self._name, "name": self._name, "public": False}
            try:
                await self._ask("POST", "/bucket", json=body)
            except StoreExists:
                await self._see_that_it_is_private()
        self._is_ready = True

    async def _see_that_it_is_private(self) -> None:
        bucket = object_of(await self._ask("GET", f"/bucket/{self._name}"))
        if bucket.get("public") is True:
            problem = f"the bucket {self._name} is public, so that everybody could read the files"
            raise StoreRefused("EXAI_FILES__SUPABASE__BUCKET", problem, "Make it private, or name another one")

    def _has(self, key: str, size_bytes: int) -> IsStored:
        async def is_stored() -> bool:
            try:
                return await self.size(key) == size_bytes
            except BlobMissing:
                return False

        return is_stored

    async def _ask(self, method: str, path: str, **more: Any) -> Any:
        """Return the JSON of an answer. Raises the error that its body names."""
        with translated():
            async with self._client.stream(method, path, **more) as response:
                body = await body_of(response)
        if response.is_success:
            return json_of(body)
        raise error_of(response.status_code, response.headers, body)

    @asynccontextmanager
    async def _streamed(self, method: str, path: str, headers: Mapping[str, str]) -> AsyncIterator[httpx.Response]:
        with translated():
            async with self._client.stream(method, path, headers=headers) as response:
                if not response.is_success:
                    raise error_of(response.status_code, response.headers, await body_of(response))
                yield response


async def _pause(problems: int) -> None:
    await asyncio.sleep(backoff_s(problems, BACKOFF_S, BACKOFF_MAX_S))


def _path(key: str) -> str:
    return quote(key, safe="/")


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise unreadable("no size")
    return value


def _metadata(row: Mapping[str, Any]) -> dict[str, Any]:
    return object_of(row.get("metadata") or {})


def _time(row: Mapping[str, Any]) -> float:
    """Return when an object was stored; one without a time is new, so that it is kept."""
    try:
        return datetime.fromisoformat(str(row.get("created_at"))).timestamp()
    except (ValueError, OverflowError, OSError):
        return math.inf
