"""Names of conversations and keys of messages, made of what sources call them."""

from __future__ import annotations

import hashlib
from typing import Final

from exai.validation import MAX_CONTINUATION_CHARS

MAX_NAME_CHARS: Final = MAX_CONTINUATION_CHARS
MAX_KEY_CHARS: Final = 500
DIGEST_CHARS: Final = 32


def name_of_conversation(*parts: str) -> str:
    """Return a name of at most the allowed length; a longer one ends with its digest."""
    return _short("/".join(parts), MAX_NAME_CHARS)


def name_of_fork(conversation: str, key: str) -> str:
    """Return the name of the branch of a conversation whose first own message has this key."""
    return _short(f"{conversation}~{key}", MAX_NAME_CHARS)


def key_of(name: str) -> str:
    """Return the key of a message from what its source calls it."""
    return _short(name, MAX_KEY_CHARS)


def key_of_record(record: bytes, number: int = 0) -> str:
    """Return the key of a message without a name: the digest of its record, numbered if the record repeats."""
    return hashlib.sha256(record).hexdigest()[:DIGEST_CHARS] + (f"-{number}" if number else "")


def short_digest(record: bytes) -> int:
    """Return a digest that takes little memory."""
    return int.from_bytes(hashlib.sha256(record).digest()[:8], "big")


def _short(name: str, most: int) -> str:
    clean = name.replace("\0", "\u2400").encode("utf-8", "replace").decode()
    if len(clean) <= most:
        return clean
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:DIGEST_CHARS]
    return f"{clean[: most - DIGEST_CHARS - 1]}~{digest}"
