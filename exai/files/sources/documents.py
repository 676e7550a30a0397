"""The text of PDF and docx files, read by a process of its own.

Invariant: nothing of a document is parsed in the daemon's process.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Final

from exai.files import extraction
from exai.files.sources.bounds import Bounds
from exai.files.sources.programs import inherited, run

MAX_DOCUMENT_BYTES: Final = 16 * 1_048_576
TEXT_BYTES: Final = 16 * 1_048_576
KINDS: Final = {".pdf": (b"%PDF-", "pdf"), ".docx": (b"PK\x03\x04", "docx")}
SIGNATURE_BYTES: Final = 1_024


@dataclass(frozen=True, slots=True)
class DocumentText:
    """The text of a document, None if there is none; `note` describes it, or states why there is none."""

    text: str | None
    note: str


def kind_of(name: str, data: bytes) -> str | None:
    """Return the kind of a document by its name and its first bytes; None for any other file."""
    signature, kind = KINDS.get(PurePath(name).suffix.lower(), (b"", None))
    return kind if kind and signature in data[:SIGNATURE_BYTES] else None


def text_of(kind: str, data: bytes, bounds: Bounds) -> DocumentText:
    """Return the text of a document; blocks, within the limits of the reading and of the process."""
    places = os.pathsep.join(place for place in sys.path if place)
    output = run(
        [sys.executable, "-P", extraction.__file__, kind],
        Path(extraction.__file__).parent,
        {**inherited(), "PYTHONPATH": places, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONIOENCODING": "utf-8"},
        bounds,
        given=data,
        limit_bytes=TEXT_BYTES,
    )
    if output.is_cut:
        return DocumentText(None, f"{kind} that takes too long to read")
    if output.status != 0:
        return DocumentText(None, f"damaged {kind}, or one that takes too much memory to read")
    found = json.loads(output.data)
    text = found.get("text")
    return DocumentText(text if isinstance(text, str) else None, str(found.get("note") or found.get("error")))
