"""Rows in Postgres' text format for COPY: found in pieces of any size, and changed column by column.

Invariant: a value that is not changed is passed on byte for byte.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

NULL: Final = rb"\N"
END: Final = b"\n"

KEY_CHARS: Final = 8

_ESCAPES: Final = {
    0x5C: "\\\\",
    0x08: "\\b",
    0x0C: "\\f",
    0x0A: "\\n",
    0x0D: "\\r",
    0x09: "\\t",
    0x0B: "\\v",
}
_MEANT: Final = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


def lines(pieces: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Yield the whole rows of each piece, without their ends; line feeds within values are escaped."""
    rest: list[bytes] = []
    for piece in pieces:
        first, *others = piece.split(END)
        rest.append(first)
        if others:
            # Joined once for each row: a row may be longer than many pieces.
            yield [b"".join(rest), *others[:-1]]
            rest = [others[-1]]
    if any(rest):
        yield [b"".join(rest)]


def escaped(value: str) -> bytes:
    """Return a text as a value of a row."""
    return value.translate(_ESCAPES).encode(errors="surrogatepass")


def unescaped(value: bytes) -> str:
    """Return the text of a value of a row."""
    text = value.decode(errors="surrogatepass")
    if "\\" not in text:
        return text
    found, marked = [], iter(text)
    for character in marked:
        if character == "\\":
            following = next(marked, "\\")
            found.append(_MEANT.get(following, following))
        else:
            found.append(character)
    return "".join(found)


class WordKeys:
    """Replaces the keys of owners with which the words of the index begin, as `exai.owner_key_v1` makes them."""

    def __init__(self, owners: Mapping[str, str]) -> None:
        self._keys = {_quoted_key(old): _quoted_key(new) for old, new in owners.items()}
        self._pattern = re.compile(b"|".join(map(re.escape, self._keys)))

    def replaced(self, line: bytes) -> bytes:
        """Return a row whose words have the keys of the new owners."""
        return self._pattern.sub(lambda found: self._keys[found[0]], line)


def _quoted_key(owner: str) -> bytes:
    digest = hashlib.sha256(owner.encode(errors="surrogatepass")).digest()
    return b"'" + base64.b64encode(digest)[:KEY_CHARS]
