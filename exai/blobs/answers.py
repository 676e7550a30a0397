"""Reads the errors of Supabase Storage, and those of the connection to it.

The server answers most errors with HTTP 400 and the status that is meant in `statusCode` of the body; the resumable
protocol answers with the status itself and a plain text. A 404 without `statusCode` is that of another server.
Invariant: no text of this module holds a key.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import httpx

from exai.blobs.faults import BlobMissing, StoreAway, StoreExists, StoreRefused
from exai.errors import BlobError

MAX_SHOWN_CHARS: Final = 200
MAX_ANSWER_BYTES: Final = 8 * 1_048_576
"""A page of a listing has less than 1 MiB."""

STATUS_CHARS: Final = 3
URL: Final = "EXAI_FILES__SUPABASE__URL"
KEY: Final = "EXAI_FILES__SUPABASE__KEY"
PLEASE_WAIT: Final = 429


@contextmanager
def translated() -> Iterator[None]:
    """Translate errors of the connection into `StoreAway`."""
    try:
        yield
    except httpx.TimeoutException as error:
        raise StoreAway("files", f"Supabase Storage did not answer in time ({type(error).__name__})", _REACH) from error
    except (httpx.DecodingError, httpx.InvalidURL) as error:
        raise unreadable(f"what is not HTTP as it should be ({type(error).__name__})") from error
    except httpx.TransportError as error:
        problem = f"Supabase Storage cannot be reached ({type(error).__name__})"
        raise StoreAway("files", problem, _REACH) from error


_REACH: Final = f"Check the network and {URL}; a free project may be paused"


def error_of(status: int, headers: Mapping[str, str], body: bytes) -> BlobError:
    """Return the error of an answer."""
    said = _parsed(body)
    meant = _status_in(said) or status
    text = str(said.get("message") or said.get("error") or body[:MAX_SHOWN_CHARS].decode(errors="replace")).strip()
    problem = f"Supabase Storage answered {meant}: {text[:MAX_SHOWN_CHARS] or 'nothing'}"
    if meant in (401, 403) or _is_signature(said, text):
        return StoreRefused(KEY, problem, "Copy the secret key, or the service_role key, of the project again")
    if _status_in(said) == 404:
        cure = "It may be in another bucket; else restore it from a backup"
        return BlobMissing("files", f"{problem}: the object, or the bucket, is missing", cure)
    if meant == 409:
        return StoreExists("files", problem, "Nothing has to be done")
    if meant == 413:
        return StoreRefused("files", problem, "Raise the size limit of files in the project, or of the bucket")
    if meant == PLEASE_WAIT or meant >= 500:
        return StoreAway("files", problem, "Try again later", wait_s=_seconds(headers))
    return StoreRefused("files", problem, f"Check {URL} and EXAI_FILES__SUPABASE__BUCKET")


def json_of(body: bytes) -> Any:
    """Return the JSON of a good answer; that of a server behind another one may be a page."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise unreadable("no JSON") from None


def object_of(value: object) -> dict[str, Any]:
    """Return an object of JSON. Raises `StoreRefused` for anything else."""
    if not isinstance(value, dict):
        raise unreadable("no object")
    return value


def rows_of(value: object) -> list[dict[str, Any]]:
    """Return the rows of a listing, each with a name. Raises `StoreRefused` for anything else."""
    if not isinstance(value, list):
        raise unreadable("no list")
    rows = [object_of(each) for each in value]
    if not all(isinstance(row.get("name"), str) for row in rows):
        raise unreadable("a row without a name")
    return rows


async def body_of(response: httpx.Response) -> bytes:
    """Return the content of a streamed answer. Raises `StoreRefused` for one that is far too long."""
    body = bytearray()
    async for piece in response.aiter_bytes(65_536):
        body += piece
        if len(body) > MAX_ANSWER_BYTES:
            raise unreadable(f"more than {MAX_ANSWER_BYTES:,} bytes")
    return bytes(body)


def unreadable(found: str) -> StoreRefused:
    """Return the error for an answer of another form."""
    return StoreRefused(URL, f"answers with {found}, so it is not Supabase Storage", "Give the project's own address")


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _status_in(said: Mapping[str, Any]) -> int | None:
    status = str(said.get("statusCode", ""))
    return int(status) if len(status) == STATUS_CHARS and status.isascii() and status.isdigit() else None


def _is_signature(said: Mapping[str, Any], text: str) -> bool:
    """Return whether a 400 means that the key is wrong: the server does not answer 401 to one that it cannot read."""
    names = {str(said.get("code")), str(said.get("error"))}
    return bool(names & {"InvalidJWT", "Unauthorized", "InvalidSignature"}) or "jw" in text.lower().split(" ")[0]


def _seconds(headers: Mapping[str, str]) -> float | None:
    try:
        seconds = float(headers.get("Retry-After", ""))
    except ValueError:
        return None
    return None if math.isnan(seconds) else max(0.0, seconds)
