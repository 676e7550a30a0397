"""Make a conversation's title from the beginning of its question.

Invariant: a title is one line without control characters, and never ends within a grapheme: joiners, variation
selectors and tags stay with the characters they modify.
"""

from __future__ import annotations

import html
import re
import unicodedata
from typing import Final

OPENING_CHARS: Final = 80
OPENING_READ_CHARS: Final = 1_000
"""How long a title made from a question may be, and how much of the question is looked at for it."""

JOINER: Final = "\u200d"
SPACE_CATEGORIES: Final = ("Cc", "Cs", "Zs", "Zl", "Zp")
UNSEEN: Final = dict.fromkeys(
    [
        *(0xAD, 0x200B, 0x2060, 0xFEFF, 0xE0001),
        *range(0x202A, 0x202F),
        *range(0x2061, 0x2070),
        *range(0xFFF9, 0xFFFC),
    ]
)
"""Characters that are removed: they are invisible, and some would reverse the direction of the text around a title."""


REFERENCE: Final = re.compile(
    r'<content name="([^"<>]*)" type="[^"<>]*" size="\d+" sha256="[0-9a-f]{64}" id="[^"<>]*"/>'
)
"""What stands in a message instead of large content, of which a title has the name only."""


def opening(prompt: str) -> str | None:
    """Return the beginning of a question: its first line with a visible character, cut between words if it is long."""
    beginning = prompt.lstrip()[:OPENING_READ_CHARS]
    lines = REFERENCE.sub(lambda found: html.unescape(found[1]), beginning).splitlines()
    first = next(filter(_is_seen, map(_one_line, lines)), None)
    if first is None or len(first) <= OPENING_CHARS:
        return first
    end = OPENING_CHARS - 1
    while end > OPENING_CHARS // 2 and _belongs_to_the_one_before(first, end):
        end -= 1
    cut = first[:end]
    whole_words = cut.rpartition(" ")[0]
    return f"{whole_words if len(whole_words) > OPENING_CHARS // 2 else cut}…"


def _one_line(text: str) -> str:
    seen = text.translate(UNSEEN)
    return " ".join("".join(" " if unicodedata.category(each) in SPACE_CATEGORIES else each for each in seen).split())


def _is_seen(text: str) -> bool:
    return any(unicodedata.category(each) not in ("Cf", "Mn", "Me") for each in text)


def _belongs_to_the_one_before(text: str, at: int) -> bool:
    """Return whether a cut before this character would split a letter or an emoji."""
    here, before = text[at], text[at - 1]
    if here in (JOINER, "\u200c") or before == JOINER or unicodedata.category(here).startswith("M"):
        return True
    if "\U0001f3fb" <= here <= "\U0001f3ff" or "\U000e0020" <= here <= "\U000e007f":
        return True
    flags = 0
    while at - flags > 0 and "\U0001f1e6" <= text[at - flags - 1] <= "\U0001f1ff":
        flags += 1
    return flags % 2 == 1 and "\U0001f1e6" <= here <= "\U0001f1ff"
