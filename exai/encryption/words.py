"""The words of an encrypted text, as hashes that the database indexes as if they were words.

A text becomes hashes in the order of its words, and a query its own terms with hashes in place of words, so that the
database's search (phrases, `or`, excluded terms, ranking, missing terms) applies unchanged. A word is a run of letters
and digits, folded and without marks; identifiers are split, and scripts without spaces into pairs of letters, as in the
database (`units_v1`), though not by the same tables. Beginnings of words have no hash, so a query cannot ask for them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from exai.encryption.keyring import SETTING, Keyring
from exai.errors import InvalidArgument

HASH_BYTES: Final = 8
MAX_WORD_CHARS: Final = 200
LETTERS: Final = str.maketrans("0123456789", "ghijklmnop")
"""Hashes are of letters only, so that nothing splits them."""

_PART: Final = re.compile(r"[^\W_]+")
_INNER: Final = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|[0-9]+|[^A-Za-z0-9]+")
_TERM: Final = re.compile(r'(-)?"([^"]*)(?:"|$)|(-)?([^\s"]+)')
_QUOTES: Final = str.maketrans("\u201c\u201d\u201e\u201f\uff02", '"""""')
_UNSPACED: Final = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3040, 0x30FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)


class HashedQuery(NamedTuple):
    """A query with hashes, what each of its terms was, and the words in it that may be marked in a text."""

    text: str
    labels: Mapping[str, str]
    words: tuple[str, ...]


class HashedWords:
    """Hashes the words of texts and queries."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    def text(self, owner: str, text: str) -> str:
        """Return the hashes of a text's words, in their order."""
        known: dict[str, str] = {}
        hashes = []
        for word in words_of(text):
            found = known.get(word)
            if found is None:
                found = known[word] = self._hash(owner, word)
            hashes.append(found)
        return " ".join(hashes)

    def query(self, owner: str, text: str) -> HashedQuery:
        """Return a query with hashes. Raises `InvalidArgument` for the beginning of a word."""
        terms, labels, shown = [], {}, []
        for minus, quoted, typed_minus, typed in _TERM.findall(text.translate(_QUOTES)):
            if typed.lower() == "or":
                terms.append("or")
                continue
            if typed.endswith("*") and typed.strip("*"):
                raise InvalidArgument(
                    "query",
                    f"asks for beginnings of words ({typed}), and words are encrypted ({SETTING})",
                    "Write whole words",
                )
            words = list(words_of(quoted or typed))
            if not words:
                continue
            hashes = " ".join(self._hash(owner, word) for word in words)
            labels[hashes] = (quoted or typed).strip()
            is_excluded = bool(minus or typed_minus)
            terms.append(("-" if is_excluded else "") + (f'"{hashes}"' if len(words) > 1 else hashes))
            shown += [] if is_excluded else words
        return HashedQuery(" ".join(terms), labels, tuple(dict.fromkeys(shown)))

    def _hash(self, owner: str, word: str) -> str:
        return self._keyring.hashed(owner, "word", word.encode())[:HASH_BYTES].hex().translate(LETTERS)


def words_of(text: str) -> Iterator[str]:
    """Yield the words of a text in their order; of a script without spaces pairs of letters."""
    folded = unicodedata.normalize("NFKD", text)
    if not folded.isascii():
        folded = "".join(each for each in folded if unicodedata.category(each) not in ("Mn", "Cf"))
    for run in _PART.findall(folded):
        for part in _INNER.findall(run) if run.isascii() else _parts(run):
            yield from (
                _pairs(part.casefold()[:MAX_WORD_CHARS])
                if _is_unspaced(part[0])
                else (part.casefold()[:MAX_WORD_CHARS],)
            )


def _parts(run: str) -> Iterator[str]:
    """Yield the parts of a run: where a script without spaces begins or ends, and digits."""
    start = 0
    for at in range(1, len(run) + 1):
        if at == len(run) or _kind(run[at]) != _kind(run[at - 1]):
            yield run[start:at]
            start = at


def _kind(letter: str) -> int:
    return 2 if _is_unspaced(letter) else 1 if letter.isdigit() else 0


def _pairs(run: str) -> Iterator[str]:
    if len(run) == 1:
        yield run
    for at in range(len(run) - 1):
        yield run[at : at + 2]


def _is_unspaced(letter: str) -> bool:
    point = ord(letter)
    return point >= _UNSPACED[0][0] and any(first <= point <= last for first, last in _UNSPACED)
