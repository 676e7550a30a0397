"""Titles of new conversations, and digests of requests."""

from __future__ import annotations

import pytest

from exai.conversations.deduplication import content_hash
from exai.conversations.requests import ChatRequest
from exai.conversations.titles import OPENING_CHARS
from exai.files.pieces import Piece
from exai.models import LOCAL_OWNER, FileId


def test_hash_depends_on_content_and_not_on_key_order() -> None:
    """Two requests with one key are the same exactly when their content is."""
    assert content_hash("a", {"x": 1, "y": 2}) == content_hash("a", {"y": 2, "x": 1})
    assert content_hash("a", "b") != content_hash("ab", "")


def test_large_content_is_called_by_its_name_in_a_title() -> None:
    """Not by what stands in the message instead of it, which would fill the title."""
    piece = Piece(FileId("1"), 'a "b".png', "image/png", b"", "0" * 64, {})
    assert ChatRequest(LOCAL_OWNER, f"Look at {piece.reference} please").title_or_opening == 'Look at a "b".png please'


@pytest.mark.parametrize(
    ("prompt", "title"),
    [
        ("What is two and two?", "What is two and two?"),
        ("\n \t\nFirst\tline\x1b[1m  goes\n\nsecond", "First line [1m goes"),
        ("\x00\nSaid", "Said"),
        ("\x00", None),
        ("word " * 100, "word " * 14 + "word…"),
        ("Read " + "x" * 100, "Read " + "x" * 74 + "…"),
        ("x" * 80, "x" * 80),
        ("\n" * 2_000_000 + "late", "late"),
    ],
)
def test_new_conversation_is_called_by_how_its_question_begins(prompt: str, title: str | None) -> None:
    """One line, short, and nothing in it that a terminal would obey."""
    assert ChatRequest(LOCAL_OWNER, prompt).title_or_opening == title
    assert title is None or len(title) <= OPENING_CHARS


@pytest.mark.parametrize(
    ("prompt", "title"),
    [
        ("ක්\u200dරමලේඛනය ගැන", "ක්\u200dරමලේඛනය ගැන"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("👨\u200d👩\u200d👧 trip", "👨\u200d👩\u200d👧 trip"),
        ("❤\ufe0f and 🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", None),
        ("\u0601\u0661 price", None),
        ("\U0001faff\U0001fae9 new", None),
        ("soft\u00adhyphen\ufeff", "softhyphen"),
        ("\u202eevil\u2066 order", "evil order"),
        ("\u200d\u200c\nthe second line", "the second line"),
        ("a\x1b[31mb\x9bc\u2028d", "a [31mb c"),
        ("x" * 78 + "👩\u200d💻" * 3, "x" * 78 + "…"),
        ("x" * 78 + "e\u0301" * 3, "x" * 78 + "…"),
        ("x" * 78 + "🇩🇪" * 3, "x" * 78 + "…"),
        ("x" * 78 + "👍🏽" * 3, "x" * 78 + "…"),
    ],
)
def test_a_title_keeps_the_parts_of_a_letter(prompt: str, title: str | None) -> None:
    """Joiners, variations and tags stay, also at the end; other invisible and bidirectional characters do not."""
    assert ChatRequest(LOCAL_OWNER, prompt).title_or_opening == (prompt if title is None else title)


def test_given_title_is_kept() -> None:
    """A caller's title is not derived from the text."""
    assert ChatRequest(LOCAL_OWNER, "Hello", title="Greetings").title_or_opening == "Greetings"
