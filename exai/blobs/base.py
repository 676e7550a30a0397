"""The seam between files and the place of their bytes.

The invariant is that a key is derived from an owner and a content's SHA-256 alone, never from a name that a caller
chose, so that no name can reach outside the store and equal contents are stored once.
"""

from __future__ import annotations

import hashlib
from typing import Final, Protocol

from exai.models import Owner

OWNER_CHARS: Final = 32


class BlobStore(Protocol):
    """Bytes by owner and SHA-256. Methods raise `BlobError`; `put` may be repeated."""

    async def put(self, owner: Owner, sha256: str, data: bytes) -> None:
        """Keep `data`; when this returns it survives a power cut."""

    async def get(self, owner: Owner, sha256: str) -> bytes:
        """Return what was put, checked against its digest."""


def digest(data: bytes) -> str:
    """Return the SHA-256 of `data` in lower-case hexadecimal, 64 characters."""
    return hashlib.sha256(data).hexdigest()


def storage_path(owner: Owner, sha256: str) -> str:
    """Return the key of a blob: its owner's digest, then two levels so that no directory grows large."""
    return f"{digest(owner.encode())[:OWNER_CHARS]}/{sha256[:2]}/{sha256}"
