"""Rank single-byte encodings by how well the text that they yield fits one language.

Each byte beyond ASCII is a letter of some language in most encodings. In the right one all of them are letters of the
same language, common ones in words, capitals at the beginning of words, and marks between words.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

from exai.blobs.languages import DRAWINGS, LANGUAGES, LATIN, MARKS, RARE, USUAL_MARKS

PRIORS: Final = {
    "cp1252": 0.0,
    "cp1251": 0.0,
    "cp1250": -0.5,
    "cp1254": -0.5,
    "cp1253": -0.5,
    "cp1257": -1.0,
    "koi8_r": -0.5,
    "koi8_u": -0.6,
    "cp866": -0.7,
    "cp850": -3.0,
    "cp852": -3.2,
    "cp437": -3.1,
    "cp857": -3.3,
    "cp1125": -1.3,
    "iso8859_2": -0.7,
    "iso8859_5": -1.3,
    "iso8859_7": -1.0,
    "iso8859_15": -1.2,
    "cp1255": -0.5,
    "cp1256": -0.5,
}
"""Logarithms that decide between encodings in which the text is equally likely, the most usual one first."""

FOREIGN: Final = math.log(1 / 5_000)
"""Of a letter that the language does not have."""

MARK: Final = math.log(1 / 60)
USUAL_MARK: Final = math.log(1 / 5)
MISPLACED: Final = math.log(1 / 100)
"""Of a mark within a word, a capital behind a small letter, or a letter beside one of another script."""

CAPITAL: Final = math.log(1 / 4)
FURTHER_CAPITAL: Final = math.log(3 / 4)
ONLY_MARKS: Final = -3.0
"""Of text without letters, in other encodings than the first."""

RARE_LANGUAGE: Final = -2.0

IMPOSSIBLE: Final = math.log(1 / 100_000)
"""Of a control character, an undefined byte, or a drawing beside a letter."""

DRAWING: Final = math.log(1 / 20)
REPEATED_DRAWING: Final = math.log(1 / 2)
MOSTLY_DRAWN: Final = 0.8
DRAWN: Final = re.compile("[─═│║█▄▀░▒▓]{2}")

MOST_CHARS: Final = 2_000
LEAST_FIT: Final = 0.95
LEAST_MEAN: Final = {True: -5.5, False: -4.0}
SURE_FIT: Final = 0.98
SURE_MEAN: Final = -3.5
"""Mean logarithms of a character's likelihood, the first for languages in Latin letters; a wrong language has less."""

LEAST_MARGIN: Final = 3.0
"""Logarithm by which the first encoding must be likelier than the next one with another text."""

BESIDE_LETTERS: Final = "™®²³ºª°µ·–—\xa0،؛؟"
BEYOND: Final = re.compile(r"[^\0-\x7f]")
_PLACES: Final = {mark: place for place, marks in MARKS.items() for mark in marks}


@dataclass(frozen=True, slots=True)
class Ranked:
    """An encoding with the language that its text fits best; `fit` is the share of characters that belong there.

    `score` is the logarithm of the likelihood, `mean` that of a character; `is_drawn` is set for boxes and trees.
    """

    encoding: str
    language: str
    score: float
    fit: float
    mean: float
    is_drawn: bool

    @property
    def is_latin(self) -> bool:
        """Whether the language is written in Latin letters, most of which are ASCII."""
        return self.language in LATIN

    @property
    def is_plain(self) -> bool:
        """Whether the text reads like its language."""
        return self.fit >= LEAST_FIT and self.mean >= LEAST_MEAN[self.is_latin]

    @property
    def is_sure(self) -> bool:
        """Whether the text consists of common letters of its language."""
        return self.fit >= SURE_FIT and self.mean >= SURE_MEAN


def rank(sample: bytes) -> list[Ranked]:
    """Return the encodings that may be right, the likeliest first; `score` is the logarithm of the likelihood."""
    ranked = [_best(encoding, prior, sample) for encoding, prior in PRIORS.items()]
    return sorted(ranked, key=lambda each: -each.score)


def is_certain(ranked: list[Ranked], sample: bytes) -> bool:
    """Return whether no other encoding yields another text that is nearly as likely."""
    first = ranked[0]
    text = sample.decode(first.encoding, errors="replace")
    near = [each for each in ranked[1:] if first.score - each.score < LEAST_MARGIN]
    return all(sample.decode(each.encoding, errors="replace") == text for each in near)


def _best(encoding: str, prior: float, sample: bytes) -> Ranked:
    """Return the language that a decoded sample fits best."""
    text = sample.decode(encoding, errors="replace")
    found = list(BEYOND.finditer(text))[:MOST_CHARS]
    shared, letters, odd = 0.0, dict[str, int](), 0
    for match in found:
        at = match.start()
        char, before, after = match.group(), text[max(0, at - 1) : at], text[at + 1 : at + 2]
        likelihood, is_letter = _of_char(char, before, after)
        before_it = text[max(0, at - 2) : at]
        is_case_odd = char.islower() and before.isupper() and before_it[:-1].isalpha()
        if is_letter and (is_case_odd or before_it == char * 2):
            likelihood += MISPLACED
        shared += likelihood
        if is_letter:
            small = char.lower()
            letters[small] = letters.get(small, 0) + 1
        odd += likelihood <= MISPLACED
    scores = {
        name: sum(count * language.get(letter, FOREIGN) for letter, count in letters.items())
        + (RARE_LANGUAGE if name in RARE else 0.0)
        for name, language in LANGUAGES.items()
    }
    name = max(scores, key=lambda each: scores[each])
    foreign = sum(count for letter, count in letters.items() if letter not in LANGUAGES[name])
    fit = 1 - (odd + foreign) / max(1, len(found))
    likelihood = shared + scores[name]
    if not letters and prior:
        prior += ONLY_MARKS
    drawn = sum(match.group() in DRAWINGS for match in found)
    is_drawn = drawn > len(found) * MOSTLY_DRAWN and DRAWN.search(text) is not None
    return Ranked(encoding, name, prior + likelihood, fit, likelihood / max(1, len(found)), is_drawn)


def _of_char(char: str, before: str, after: str) -> tuple[float, bool]:
    """Return the contribution of a character at its position to the likelihood, and whether it is a letter."""
    if char.isalpha() and char not in "ªºµ":
        is_case_odd = (char.isupper() and before.islower()) or (char.islower() and after.isupper())
        odd = is_case_odd or _is_other_script(char, before) or _is_other_script(char, after)
        capital = FURTHER_CAPITAL if before.isupper() else CAPITAL
        return (MISPLACED if odd else 0.0) + (capital if char.isupper() else 0.0), True
    place = _PLACES.get(char)
    if place is None:
        return _of_drawing(char, before, after), False
    if place == "apart" and (before.isalpha() or after.isalpha()) and char not in BESIDE_LETTERS:
        return MARK + MISPLACED, False
    is_inside = before.isalpha() and after.isalpha()
    if is_inside and char not in "’·–—\xa0":
        return MARK + MISPLACED, False
    is_placed = after.isalnum() if place == "opening" else not after.isalpha() or place != "closing"
    if char in "“’":
        is_placed = True
    usual = USUAL_MARK if char in USUAL_MARKS else MARK
    return (usual if is_placed else MARK + MISPLACED), False


def _of_drawing(char: str, before: str, after: str) -> float:
    if char not in DRAWINGS or before.isalnum():
        return IMPOSSIBLE
    if char == before:
        return REPEATED_DRAWING
    is_beside_another = (before in DRAWINGS and before != "") or (after in DRAWINGS and after != "")
    return DRAWING if is_beside_another or not after.isalnum() else IMPOSSIBLE


def _is_other_script(char: str, other: str) -> bool:
    """Return whether a letter stands beside one of another script, as Cyrillic beside Latin."""
    return other.isalpha() and (char < "\u0370") != (other < "\u0370")
