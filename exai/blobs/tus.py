"""Uploads bytes by the resumable protocol (tus 1.0.0) of Supabase Storage.

Invariant: after any interruption the server is asked how much it has, and no byte is assumed to have arrived. The
address of an upload is used on the configured server only, also if the server names another host.
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Mapping
from typing import Final
from urllib.parse import urlsplit

import httpx

from exai.blobs.answers import body_of, error_of, translated
from exai.blobs.faults import BlobMissing, StoreAway, StoreRefused

PIECE_BYTES: Final = 6 * 1_048_576
"""The server takes pieces of exactly this size, except the last one."""

PATH: Final = "/upload/resumable"
VERSION: Final = {"Tus-Resumable": "1.0.0"}
MAX_PROBLEMS: Final = 6
"""Interruptions of one upload that are mended before it is given up; each piece that arrives resets the count."""

CONFLICTS: Final = (409, 423)
"""The offset is another one, or another request still holds the upload."""

FORGOTTEN: Final = (404, 410)

IsStored = Callable[[], Awaitable[bool]]
PauseAfter = Callable[[int], Awaitable[None]]


class ResumableUpload:
    """One upload of one object. `is_stored` asks for the object: the server forgets an upload that is finished."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        metadata: Mapping[str, str],
        data: bytes,
        *,
        is_stored: IsStored,
        pause: PauseAfter,
    ) -> None:
        self._client, self._data, self._is_stored, self._pause = client, data, is_stored, pause
        self._metadata = ",".join(f"{name} {_base64(text)}" for name, text in metadata.items())
        self._url: str | None = None
        self._offset = self._forgotten = 0

    async def run(self) -> None:
        """Send all pieces. Raises `StoreAway` after too many interruptions, or what the server refused with."""
        problems = 0
        while self._url is None or self._offset < len(self._data):
            try:
                if self._url is None:
                    await self._begin()
                else:
                    await self._send()
                    problems = 0
            except StoreAway:
                problems += 1
                if problems > MAX_PROBLEMS:
                    raise
                await self._pause(problems)
                if await self._find_out():
                    return

    async def _begin(self) -> None:
        headers = {
            **VERSION,
            "Upload-Length": str(len(self._data)),
            "Upload-Metadata": self._metadata,
            "x-upsert": "true",
        }
        response = await self._request("POST", PATH, headers)
        self._url, self._offset = own_address(self._client.base_url, response.headers.get("Location", "")), 0

    async def _send(self) -> None:
        headers = {
            **VERSION,
            "Upload-Offset": str(self._offset),
            "Content-Type": "application/offset+octet-stream",
        }
        piece = self._data[self._offset : self._offset + PIECE_BYTES]
        response = await self._request("PATCH", self._known_url, headers, piece)
        arrived = _offset_of(response)
        if not self._offset < arrived <= len(self._data):
            raise StoreAway("files", f"Supabase Storage took no bytes of an upload (offset {arrived})", "Try again")
        self._offset = arrived

    async def _find_out(self) -> bool:
        """Ask how much has arrived; return whether everything has. An upload that the server forgot begins again."""
        if self._url is None:
            return False
        try:
            offset = _offset_of(await self._request("HEAD", self._url, dict(VERSION)))
        except StoreAway:
            return False
        except (BlobMissing, StoreRefused):
            # It has expired, or it was complete and only the answer was lost.
            if await self._is_stored():
                return True
            self._url, self._offset = None, 0
            self._forgotten += 1
            if self._forgotten > MAX_PROBLEMS:
                raise StoreAway("files", "Supabase Storage forgets an upload again and again", "Try again") from None
            return False
        if offset > len(self._data):
            raise StoreRefused("files", f"Supabase Storage has too many bytes of an upload ({offset:,})", "Try again")
        self._offset = offset
        return False

    @property
    def _known_url(self) -> str:
        if self._url is None:
            raise AssertionError("begun before it is continued")
        return self._url

    async def _request(self, method: str, url: str, headers: Mapping[str, str], data: bytes = b"") -> httpx.Response:
        with translated():
            async with self._client.stream(method, url, headers=headers, content=data) as response:
                body = await body_of(response)
        if response.is_success:
            return response
        if response.status_code in CONFLICTS:
            raise StoreAway("files", "Supabase Storage expects another part of an upload", "Try again")
        if response.status_code in FORGOTTEN:
            raise BlobMissing("files", "Supabase Storage does not know an upload, or its bucket", "Try again")
        raise error_of(response.status_code, response.headers, body)


def own_address(base: httpx.URL, location: str) -> str:
    """Return the address of an upload on the configured server.

    Behind a proxy servers name their inner host, `http` for `https`, or leave the prefix of their path out. The key
    must not go to another host, so only the path is taken from there.
    """
    try:
        path = urlsplit(location).path
        at = path.rfind(PATH)
        if at >= 0 and path[at + len(PATH) :].strip("/") and not {".", ".."} & set(path[at:].split("/")):
            return str(base.copy_with(path=base.path.rstrip("/") + path[at:]))
    except (ValueError, httpx.InvalidURL):
        pass
    raise StoreRefused("EXAI_FILES__SUPABASE__URL", "names no address for an upload", "Check the address")


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _offset_of(response: httpx.Response) -> int:
    try:
        offset = int(response.headers["Upload-Offset"])
        if offset >= 0:
            return offset
        raise ValueError
    except (KeyError, ValueError):
        raise StoreAway("files", "Supabase Storage did not say how much of an upload it has", "Try again") from None
