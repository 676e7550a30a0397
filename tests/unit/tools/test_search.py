"""The text of a search result before its hits."""

from __future__ import annotations

import pytest

from exai.tools.conversations.search import SOME_WORDS, UNREAD, HitOutput, SearchOutput

HIT = HitOutput("c1", None, 1, "user", "2026-01-01", None, None, "a hit", 1.0, [])
LINE = "continuation_id: c1 | seq: 1 | role: user | created_at: 2026-01-01 | snippet: a hit"


@pytest.mark.parametrize(
    ("output", "text"),
    [
        (SearchOutput(matched="all", hits=[], next_cursor=None, unread=0), "Nothing was found."),
        (SearchOutput(matched="some", hits=[HIT], next_cursor=None, unread=0), f"{SOME_WORDS}\n{LINE}"),
        (
            SearchOutput(matched="all", hits=[], next_cursor=None, unread=3),
            f"{UNREAD.format(count=3)}\nNothing was found.",
        ),
        (
            SearchOutput(matched="some", hits=[HIT], next_cursor=None, unread=3),
            f"{UNREAD.format(count=3)}\n{SOME_WORDS}\n{LINE}",
        ),
    ],
)
def test_what_a_search_left_out_is_said(output: SearchOutput, text: str) -> None:
    """Terms that are missing, and messages that were not looked through."""
    assert output.as_text() == text
