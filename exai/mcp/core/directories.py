"""The directory in which a client works, as a header of its connection or in `_meta` of a call; no I/O.

Invariant: it only resolves relative paths. Which files may be read is decided by the daemon's settings alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

from exai.mcp.core.jsonrpc import INVALID_PARAMS, Json, RpcError

DIRECTORY_HEADER: Final = "exai-directory"
"""Header of an upgrade or a POST: the client's working directory, its bytes percent-encoded."""

META_DIRECTORY: Final = "exai/directory"
"""The same for one call, in its `_meta`, as text; it takes precedence."""

MAX_HEADER_CHARS: Final = 4_096


def directory_header(directory: str) -> dict[str, str]:
    """Return the header for a directory; none for the top of a file system, in which no client works."""
    path, value = Path(directory), quote_from_bytes(os.fsencode(directory))
    return {DIRECTORY_HEADER: value} if path.is_absolute() and path.name and len(value) <= MAX_HEADER_CHARS else {}


def directory_of(headers: Mapping[str, str]) -> str:
    """Return the directory that the headers name, or ""."""
    return os.fsdecode(unquote_to_bytes(headers.get(DIRECTORY_HEADER, "")))


def directory_of_call(params: Json, of_connection: str) -> str:
    """Return the directory of a call, by default that of its connection. Raises `RpcError`."""
    meta = params.get("_meta")
    given = meta.get(META_DIRECTORY) if isinstance(meta, Mapping) else None
    if given is None:
        return of_connection
    if not isinstance(given, str):
        raise RpcError(INVALID_PARAMS, f"Invalid params: _meta.{META_DIRECTORY} must be a string, an absolute path")
    return given
