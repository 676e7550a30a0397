"""The files of the page: read once, compressed once, and named by a digest of all of them.

Invariant: the address of a file contains the digest, so that a browser may cache it without a limit, and requests
other addresses after an update.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

STATIC: Final = Path(__file__).parent / "static"
INDEX: Final = "index.html"
BUNDLE: Final = "vendor.js"
DIGEST_CHARS: Final = 16
COMMENT: Final = re.compile(rb"^[ \t]*(?:/\*\*(?:[^*]|\*(?!/))*\*/|//[^\n]*)[ \t]*\n", re.MULTILINE)
"""Comments that fill their lines, in modules that were not minified: 4 % of what a browser would load."""

LEAST_COMPRESSED_BYTES: Final = 512
MEDIA_TYPES: Final = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """One file, also compressed if that makes it smaller."""

    content: bytes
    compressed: bytes | None
    media_type: str


@dataclass(frozen=True, slots=True)
class Assets:
    """The files by name, the template of the page, and the digest of all."""

    files: Mapping[str, Asset]
    template: str
    digest: str

    @property
    def modules(self) -> list[str]:
        """Return the names of the scripts."""
        return sorted(name for name in self.files if name.endswith(".js"))


@cache
def read_assets() -> Assets:
    """Read and compress all files; takes some 30 ms the first time."""
    found = {path.name: _served(path) for path in sorted(STATIC.iterdir()) if path.suffix in MEDIA_TYPES}
    index = (STATIC / INDEX).read_text(encoding="utf-8")
    digest = hashlib.sha256(index.encode())
    for name, content in found.items():
        digest.update(b"\0%b\0%b" % (name.encode(), content))
    files = {name: _asset(name, content) for name, content in found.items()}
    return Assets(files, index, digest.hexdigest()[:DIGEST_CHARS])


def _served(path: Path) -> bytes:
    content = path.read_bytes()
    return COMMENT.sub(b"", content) if path.suffix == ".js" and path.name != BUNDLE else content


def _asset(name: str, content: bytes) -> Asset:
    compressed = gzip.compress(content, mtime=0) if len(content) >= LEAST_COMPRESSED_BYTES else None
    return Asset(content, compressed, MEDIA_TYPES[Path(name).suffix])
