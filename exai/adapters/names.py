"""Names of conversations, made of the ids that frameworks give.

Invariant: different ids have different names, for ids of any characters and any length.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

from exai.items import UNSTORABLE
from exai.models import ContinuationId
from exai.validation import MAX_CONTINUATION_CHARS

SEPARATOR: Final = "/"
DIGEST_MARK: Final = "~"
"""Stands before a digest, and in no part that is not shortened."""

MAX_PART_CHARS: Final = 120
SHORT_CHARS: Final = 50
SPECIAL: Final = re.compile(f"[%{SEPARATOR}{DIGEST_MARK}\0\ud800-\udfff]")
WITH_DIGEST: Final = re.compile(rf"{DIGEST_MARK}[0-9a-f]{{64}}\Z")


def conversation_name(*parts: str) -> ContinuationId:
    """Return the name of a conversation with several ids, at most four."""
    return ContinuationId(SEPARATOR.join(map(_part, parts)))


def name_prefix(*parts: str) -> str:
    """Return how the names of all conversations begin whose first ids are these."""
    return conversation_name(*parts) + SEPARATOR


def session_name(session_id: str) -> ContinuationId:
    """Return the name of a conversation with one id: that id, unless it cannot be a name."""
    return ContinuationId(storable_id(session_id))


def storable_id(text: str) -> str:
    """Return an id of any characters and length as the name of a conversation or the key of a message."""
    is_name = 0 < len(text) <= MAX_CONTINUATION_CHARS
    if is_name and UNSTORABLE.search(text) is None and WITH_DIGEST.search(text) is None:
        return text
    return _shortened(text, _escaped(text))


def _part(text: str) -> str:
    escaped = _escaped(text)
    return escaped if len(escaped) <= MAX_PART_CHARS else _shortened(text, escaped)


def _shortened(text: str, escaped: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{escaped[:SHORT_CHARS]}{DIGEST_MARK}{digest}"


def _escaped(text: str) -> str:
    return SPECIAL.sub(_percent, text)


def _percent(found: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", "surrogatepass"))
