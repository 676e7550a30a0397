"""Have a provider read the text of a document: upload it, fetch its text, delete it there.

Invariant: each step is limited in time and in the size of its reply. The caller remembers the id of an uploaded file
until `delete` has succeeded.
"""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import PurePath
from typing import Any, Final
from urllib.parse import quote

import httpx

from exai.models import Recorder
from exai.providers.base import Family
from exai.providers.completion.http_client import headers_for, reason_of
from exai.providers.reply.reading import decode

UPLOAD_S: Final = 60.0
FETCH_S: Final = 30.0
DELETE_S: Final = 5.0
POLL_S: Final = 1.0
MAX_FILE_BYTES: Final = 100_000_000
MAX_REPLY_BYTES: Final = 16 * 1_048_576
MAX_ID_CHARS: Final = 200
MAX_SAID_CHARS: Final = 200
SUFFIXES: Final = frozenset(
    {".pdf", ".doc", ".docx", ".dot", ".xls", ".xlsx", ".ppt", ".pptx", ".epub", ".mobi", ".tif", ".tiff"}
)
"""Documents among the formats that Kimi lists: https://platform.moonshot.cn/docs/api/files."""

UNDERWAY: Final = frozenset({"processing", "pending", "uploaded", "queued", "running"})
PASSING: Final = frozenset({401, 403, 408, 409, 425, 429})
"""Statuses that are unrelated to the file, in addition to those of a failing server."""


class ExtractFailed(Exception):
    """The provider did not give the text; the argument states why. `is_final`: nor would it give it in a minute."""

    def __init__(self, reason: str, *, is_final: bool = False) -> None:
        super().__init__(reason)
        self.is_final = is_final


class FileExtract:
    """The files of one key at one provider. `key_id` names the key without revealing it."""

    def __init__(self, provider: str, client: httpx.AsyncClient, base_url: str, key: str, recorder: Recorder) -> None:
        self.provider, self._client, self._url, self._recorder = provider, client, f"{base_url}/files", recorder
        self._headers = headers_for(key, "application/json")
        self._upload_headers = {name: value for name, value in self._headers.items() if name != "Content-Type"}
        self.key_id = hashlib.sha256(f"{base_url}\n{key}".encode()).hexdigest()[:32]

    def takes(self, name: str, size_bytes: int) -> bool:
        """Return whether the provider reads files of this kind and size."""
        return PurePath(name).suffix.lower() in SUFFIXES and 0 < size_bytes <= MAX_FILE_BYTES

    async def upload(self, name: str, data: bytes, media_type: str) -> str:
        """Upload a document and return its id there. Raises `ExtractFailed`."""
        suffix = PurePath(name).suffix.lower()
        # Only the ending of the name is sent, from which the provider determines the format.
        parts = {"purpose": (None, "file-extract"), "file": (f"document{suffix}", data, media_type)}
        try:
            found = _document(await self._send("POST", self._url, UPLOAD_S, parts))
        except ExtractFailed:
            self._recorder.count("provider_extracts_total", provider=self.provider, outcome="refused")
            raise
        file_id = found.get("id")
        if not isinstance(file_id, str) or not 0 < len(file_id) <= MAX_ID_CHARS or not file_id.isprintable():
            raise ExtractFailed("its reply names no file")
        return file_id

    async def text(self, file_id: str) -> str:
        """Return the text of an uploaded document once it has been read. Raises `ExtractFailed`."""
        try:
            async with asyncio.timeout(FETCH_S):
                await self._read(file_id)
                received = await self._send("GET", f"{self._at(file_id)}/content", FETCH_S)
        except TimeoutError:
            raise ExtractFailed(f"the document was not read within {FETCH_S:g} s") from None
        text = _text(received)
        if not text.strip():
            raise ExtractFailed("it found no text in the document", is_final=True)
        self._recorder.count("provider_extracts_total", provider=self.provider, outcome="ok")
        return text

    async def delete(self, file_id: str) -> bool:
        """Delete an uploaded document; return whether it is gone."""
        try:
            await self._send("DELETE", self._at(file_id), DELETE_S)
        except _Gone:
            return True
        except ExtractFailed:
            return False
        return True

    async def _read(self, file_id: str) -> None:
        """Wait until the provider has read a document."""
        state = _document(await self._send("GET", self._at(file_id), FETCH_S))
        while state.get("status") in UNDERWAY:
            await asyncio.sleep(POLL_S)
            state = _document(await self._send("GET", self._at(file_id), FETCH_S))

    def _at(self, file_id: str) -> str:
        return f"{self._url}/{quote(file_id, safe='')}"

    async def _send(self, method: str, url: str, limit_s: float, parts: Any = None) -> bytes:
        received = b""
        headers = self._headers if parts is None else self._upload_headers
        request = self._client.stream(method, url, headers=headers, files=parts)
        try:
            async with asyncio.timeout(limit_s), request as response:
                async for chunk in response.aiter_raw():
                    received += chunk
                    if len(received) > MAX_REPLY_BYTES:
                        raise ExtractFailed(f"its reply is larger than {MAX_REPLY_BYTES:,} bytes", is_final=True)
        except TimeoutError:
            raise ExtractFailed(f"no reply within {limit_s:g} s") from None
        except httpx.HTTPError as error:
            raise ExtractFailed(reason_of(error)) from error
        status = response.status_code
        if status == httpx.codes.NOT_FOUND:
            raise _Gone("HTTP 404")
        if not response.is_success:
            raise ExtractFailed(f"HTTP {status}{_said(received)}", is_final=status < 500 and status not in PASSING)
        return received


def extract_of(
    family: Family, client: httpx.AsyncClient, base_url: str, key: str, recorder: Recorder
) -> FileExtract | None:
    """Return what reads documents at a provider that offers it."""
    return FileExtract(family.name, client, base_url, key, recorder) if family.extracts_text else None


class _Gone(ExtractFailed):
    """The file is not there."""


def _document(received: bytes) -> dict[str, Any]:
    try:
        found = decode(received)
    except ValueError:
        raise ExtractFailed("its reply is not JSON") from None
    return found if isinstance(found, dict) else {}


def _text(received: bytes) -> str:
    """Return the content of the JSON that Kimi answers, else the reply itself."""
    try:
        found = decode(received)
    except ValueError:
        return received.decode(errors="replace")
    content = found.get("content") if isinstance(found, dict) else None
    return content if isinstance(content, str) else received.decode(errors="replace")


def _said(received: bytes) -> str:
    try:
        error = _document(received).get("error")
    except ExtractFailed:
        return ""
    said = error.get("message") if isinstance(error, dict) else None
    return f": {said[:MAX_SAID_CHARS]}" if isinstance(said, str) else ""
