"""The stored form of an encrypted text, and of an encrypted JSON object.

`$exai1$KEY$BODY` is encrypted under the key named KEY; BODY is base64 of nonce, ciphertext and tag. A message has two
more fields, which the database adds when it numbers the message (`exai.place_v1`): the id of its conversation, and a
hash of that id and its number under a secret inside the ciphertext. So a message is bound to its place although its
number is not known when it is encrypted, and only a holder of the key can place it elsewhere. A title has one more
field: a hash of the name of the conversation for which it was encrypted.

A text that is not encrypted, but begins as if it were, is stored after `$exai0$`, so that it is read as it was given.

An object is `{"$exai": "$exai1$KEY$BODY..."}`; other members are not encrypted.
"""

from __future__ import annotations

import hashlib
from binascii import a2b_base64, b2a_base64
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

MARK: Final = "$exai1$"
UNPLACED: Final = "\x01"
"""Begins the text of a message on its way to the database, which replaces its secret."""

ESCAPE: Final = "$exai0$"
"""Begins the stored form of a text that is not encrypted, but could be taken for one."""

MARKS: Final = (MARK, ESCAPE)
"""The beginnings of texts that are not stored as they were given."""

MARK_BYTES: Final = b"$exai"
"""Is in every page with such a text, for no encoding of JSON changes it."""

AMBIGUOUS: Final = (*MARKS, UNPLACED + MARK)

MEMBER: Final = "$exai"
SECRET_BYTES: Final = 16
PLACE_BYTES: Final = 16


class Sealed(NamedTuple):
    """The parts of an encrypted text; `bound` are the fields after its body."""

    key: str
    body: bytes
    bound: tuple[str, ...]


def is_sealed_object(value: Mapping[str, Any]) -> bool:
    """Return whether an object is the stored form of an encrypted one."""
    text = value.get(MEMBER)
    return isinstance(text, str) and text.startswith(MARK)


def is_sealed_text(text: str | None) -> bool:
    """Return whether a text is the stored form of an encrypted one."""
    return text is not None and text.startswith(MARK)


def escaped(text: str) -> str:
    """Return a text in the form in which it is stored without encryption."""
    return ESCAPE + text if text.startswith(AMBIGUOUS) else text


def parse(text: str) -> Sealed | None:
    """Return the parts of an encrypted text, None if it is not complete."""
    _, _, *fields = text.split("$")
    if len(fields) < 2:
        return None
    key, encoded, *bound = fields
    try:
        return Sealed(key, a2b_base64(encoded), tuple(bound))
    except ValueError:
        return None


def write(key: str, body: bytes, *bound: str) -> str:
    """Return an encrypted text."""
    return "$".join(("", "exai1", key, encode(body), *bound))


def encode(data: bytes) -> str:
    """Return base64 on one line."""
    return b2a_base64(data, newline=False).decode()


def placed(secret: bytes, conversation_id: str, seq: int) -> str:
    """Return what binds a message to its place, as `exai.place_v1` computes it."""
    place = bytes.fromhex(conversation_id.replace("-", "")) + seq.to_bytes(8, "big", signed=True)
    return encode(hashlib.sha256(secret + place).digest()[:PLACE_BYTES])
