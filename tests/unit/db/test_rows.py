"""Cursors of lists, and times as Postgres writes them."""

from __future__ import annotations

import pytest

from exai.db.cursors import Cursor, read_cursor, write_cursor
from exai.db.rows import time_of
from exai.errors import InvalidArgument


def test_cursor_comes_back_as_it_went() -> None:
    """To the microsecond, since the next page begins right after it."""
    cursor = Cursor(time_of("2026-01-02T03:04:05.678901+02:00"), "00000000-0000-0000-0000-000000000001")
    assert read_cursor(write_cursor(cursor)) == cursor


@pytest.mark.parametrize("text", ["x", "AAAA", "2026-01-01", "MjAyNi0wMS0wMSB4", "é", "MjAyNi0wMS0wMVQwMDowMDowMCAx"])
def test_a_foreign_cursor_is_refused(text: str) -> None:
    """Cursors come from clients."""
    with pytest.raises(InvalidArgument):
        read_cursor(text)
