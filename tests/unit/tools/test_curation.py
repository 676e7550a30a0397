"""What the text of a search says before its hits."""

from __future__ import annotations

import pytest

from exai.db.search import SearchPage
from exai.tools.lifecycle import SOME_WORDS, UNREAD, search_text


@pytest.mark.parametrize(
    ("page", "hits", "text"),
    [
        (SearchPage((), None), "", "Nothing was found."),
        (SearchPage((), None, matched="some"), "a hit", f"{SOME_WORDS}\na hit"),
        (SearchPage((), None, unread=3), "", f"{UNREAD.format(count=3)}\nNothing was found."),
        (SearchPage((), None, matched="some", unread=3), "a hit", f"{UNREAD.format(count=3)}\n{SOME_WORDS}\na hit"),
    ],
)
def test_what_a_search_left_out_is_said(page: SearchPage, hits: str, text: str) -> None:
    """Terms that are missing, and messages that were not looked through."""
    assert search_text(page, hits) == text
