"""The tables of `fold_v1`, `strip_marks_v1` and `units_v1`, beside Python's Unicode data: all code points, in portions.

The tables are of Unicode 14. A Python with later data compares only what Unicode 3.2 had. To bring the tables up to
date, let `known` take everything and add to the functions what the tests print.
"""

from __future__ import annotations

import unicodedata
from collections.abc import AsyncIterator, Iterator

import pytest

from exai.db.driver.pool import Database, OneTrip, connect

TABLES = (14, 0)
CHUNK = 10_000
LEFT_OUT = frozenset(
    chr(code)
    for code in (
        0xAD, 0x34F, 0x61C, 0x640, *range(0x180B, 0x180E), *range(0x200C, 0x2010), *range(0x2060, 0x2065),
        *range(0xFE00, 0xFE10), 0xFEFF,
    )
)  # fmt: skip
"""Only how letters are drawn: soft hyphen, joiners, marks of direction, variation selectors, the tatweel."""

OF_THEIR_OWN = {"ß": "ss", "ẞ": "ss", "İ": "i\u0307", "ك": "ک", "ى": "ی", "ي": "ی"}
ENCLOSED = range(0x1F000, 0x1FC00)
"""Emoji and the like, assigned or not."""


@pytest.fixture
async def sql(database: Database) -> AsyncIterator[OneTrip]:
    connection = await connect(database.address, timeout_s=60)
    yield connection
    await connection.close()


def known() -> list[str]:
    """Every assigned character that the tables know."""
    version = tuple(map(int, unicodedata.unidata_version.split(".")[:2]))
    data = unicodedata if version <= TABLES else unicodedata.ucd_3_2_0
    codes = (code for code in range(1, 0x110000) if not 0xD800 <= code <= 0xDFFF)
    return [chr(code) for code in codes if data.category(chr(code)) not in ("Cn", "Co")]


def portions() -> Iterator[list[str]]:
    characters = known()
    assert len(characters) > 90_000
    for start in range(0, len(characters), CHUNK):
        yield characters[start : start + CHUNK]


def lowered(character: str) -> str:
    if character in OF_THEIR_OWN:
        return OF_THEIR_OWN[character]
    folded = character.casefold()
    folded = character.lower() if len(folded) > 1 else folded
    return folded if len(folded) == 1 else character


def is_sign(character: str) -> bool:
    """Whether normalisation would make letters, or a space and a mark, of what separates words."""
    is_spaced = unicodedata.category(character)[0] in "SP" and unicodedata.normalize("NFKC", character)[0] == " "
    return character in "\u2120\u2122" or (" " < character < "\U00010000" and is_spaced)


def folded(character: str) -> str:
    if is_sign(character) or character == "\x01":
        return " "
    normal = unicodedata.normalize("NFKC", character)
    return "".join(OF_THEIR_OWN.get(low, low) for each in normal if each not in LEFT_OUT for low in lowered(each))


def is_separator(character: str) -> bool:
    return ord(character) in ENCLOSED or unicodedata.category(character)[0] in "PSZC"


async def test_letters_are_folded_as_unicode_says(sql: OneTrip) -> None:
    """The normalization of the server belongs to another version of Unicode."""
    wrong = []
    for characters in portions():
        rows = await sql.fetch(
            "select c, exai.fold_v1(c) as folded, normalize(c, NFKC) as normal from unnest($1::text[]) c", characters
        )
        wrong += [
            (f"U+{ord(row['c']):04X}", row["folded"], folded(row["c"]))
            for row in rows
            if row["folded"] != folded(row["c"]) and row["normal"] == unicodedata.normalize("NFKC", row["c"])
        ]
    assert wrong == []


async def test_letters_digits_and_marks_make_words_and_nothing_else(sql: OneTrip) -> None:
    """Between two letters, each character either is in a word or separates them."""
    wrong = []
    for characters in portions():
        plain = [each for each in characters if folded(each) == each and each not in LEFT_OUT]
        text = " ".join(f"q{each}q" for each in plain)
        words = await sql.fetch("select distinct u.word from exai.units_v1($1::text) u", text)
        seen = set("".join(row["word"] for row in words))
        wrong += [f"U+{ord(each):04X}" for each in plain if (each in seen) is is_separator(each)]
    assert wrong == []


async def test_a_letter_without_its_accents_is_its_base(sql: OneTrip) -> None:
    """In Latin, Greek and Cyrillic."""
    accented = [
        each
        for each in known()
        if each.isalpha()
        and each < "\u2000"
        and (parts := unicodedata.normalize("NFD", each))[1:]
        and all("\u0300" <= mark <= "\u036f" for mark in parts[1:])
    ]
    assert len(accented) > 700
    rows = await sql.fetch("select c, exai.strip_marks_v1(exai.fold_v1(c)) as bare from unnest($1::text[]) c", accented)
    wrong = [
        (f"U+{ord(row['c']):04X}", row["bare"])
        for row in rows
        if row["bare"] != folded(unicodedata.normalize("NFD", row["c"])[0]).translate({0xF8: "o", 0xE6: "ae"})
    ]
    assert wrong == []
