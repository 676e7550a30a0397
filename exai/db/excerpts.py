"""Mark the words of a search in an excerpt of a message.

`exai.units_v1` defines the words; this module finds their letters in the original text.

Invariant: only asterisks, ellipses and spaces are added or removed; all other text is the message's.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Final

MARK: Final = "**"
ELLIPSIS: Final = "…"
TRIM_CHARS: Final = 30
"""A word that the excerpt's end cuts is left out if it is no longer than this."""

WINDOW_CHARS: Final = 320
BEFORE_CHARS: Final = 80
EXAMINED_CHARS: Final = 100_000

TOGETHER: Final = "\u0e00"
"""Scripts that put no spaces between words come after this, so any letter may be a word's first or last."""

LETTERS: Final = str.maketrans(
    {"ø": "o", "đ": "d", "ħ": "h", "ł": "l", "ŧ": "t", "ð": "d", "ı": "i", "æ": "ae", "œ": "oe"}
    | {"ك": "ک", "ى": "ی", "ي": "ی"}
)
KNOWN_CHARACTERS: Final = 4_096

Span = tuple[int, int]


def mark(excerpt: str, words: Sequence[str], *, cut_before: bool, cut_after: bool) -> str:
    """Return the excerpt on one line, the words between double asterisks, an ellipsis where the message goes on."""
    text = " ".join(excerpt.split())
    if cut_before:
        head = text.find(" ", 0, TRIM_CHARS)
        text = text[head + 1 :]
    if cut_after:
        tail = text.rfind(" ", max(len(text) - TRIM_CHARS, 0))
        text = text[:tail] if tail > 0 else text
    marked, last = [], 0
    for start, end in _joined(_found(text, words)):
        marked += [text[last:start], MARK, text[start:end], MARK]
        last = end
    shown = "".join((*marked, text[last:]))
    return f"{f'{ELLIPSIS} ' if cut_before else ''}{shown}{f' {ELLIPSIS}' if cut_after else ''}"


def excerpt_of(text: str, words: Sequence[str]) -> tuple[str, bool, bool]:
    """Return the part of a text around the first of the words, as exai.excerpt_v1 does, and where it is cut."""
    found = _found(text[:EXAMINED_CHARS], words)
    begin = max(min((start for start, _ in found), default=0) - BEFORE_CHARS, 0) if len(text) > WINDOW_CHARS else 0
    return text[begin : begin + WINDOW_CHARS], begin > 0, begin + WINDOW_CHARS < len(text)


def _found(text: str, words: Sequence[str]) -> list[Span]:
    """Where whole words are, or, if none is whole, parts of longer ones."""
    folded, origins = _folded(text)
    spans = [
        (origins[at], origins[at + len(word) - 1] + 1)
        for word in {_folded(each)[0] for each in words}
        if word
        for at in _places(folded, word)
    ]
    return [each for each in spans if _is_whole(text, *each)] or spans


def _places(folded: str, word: str) -> Iterator[int]:
    at = folded.find(word)
    while at >= 0:
        yield at
        at = folded.find(word, at + 1)


def _folded(text: str) -> tuple[str, Sequence[int]]:
    """Return the letters without case and marks, and for each of them where in the text it comes from."""
    if text.isascii():
        return text.lower(), range(len(text))
    folded, origins = [], []
    for at, character in enumerate(text):
        for letter in _letters(character):
            folded.append(letter)
            origins.append(at)
    return "".join(folded), origins


@lru_cache(KNOWN_CHARACTERS)
def _letters(character: str) -> str:
    letters = unicodedata.normalize("NFKD", character.casefold()).casefold().translate(LETTERS)
    return "".join(letter for letter in letters if unicodedata.category(letter) not in ("Mn", "Cf"))


def _is_whole(text: str, start: int, end: int) -> bool:
    return _begins(text, start) and (end == len(text) or _begins(text, end))


def _begins(text: str, at: int) -> bool:
    """Whether a word, or a part of one such as fooBar or utf8, may begin at this character or end before it."""
    if at == 0:
        return True
    before, here = text[at - 1], text[at]
    if not (before.isalnum() and here.isalnum()) or max(before, here) > TOGETHER:
        return True
    return (here.isupper() and (before.islower() or text[at + 1 : at + 2].islower())) or (
        before.isdigit() != here.isdigit()
    )


def _joined(spans: list[Span]) -> list[Span]:
    """Return the spans in order, those that touch or overlap as one."""
    joined: list[Span] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined
