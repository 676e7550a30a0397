"""What Postgres cannot store is refused by field before anything is sent."""

from __future__ import annotations

from typing import Any

import pytest

from exai.db.conversations import read_cursor, write_cursor
from exai.db.records import Cursor
from exai.db.rows import MAX_METADATA_BYTES, check_text, columns_of, json_of, time_of
from exai.errors import InvalidArgument
from exai.models import NewMessage


@pytest.mark.parametrize("text", ["", "plain", "Zürich 東京 🙂", "\x01\x7f\ufffe", "\\u0000"])
def test_storable_text_passes(text: str) -> None:
    """Control characters other than NUL are text."""
    check_text("content", text)


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "x\udfff y", "\ude00\ud83d"])
def test_text_postgres_cannot_hold_is_refused_by_field(text: str) -> None:
    """A NUL, and halves of surrogate pairs, which JSON lets through."""
    with pytest.raises(InvalidArgument) as caught:
        columns_of([NewMessage("user", "fine"), NewMessage("user", text)])
    assert caught.value.field == "messages[1].content"


@pytest.mark.parametrize(
    "value",
    [{"a": "x\0"}, {"a\0": 1}, {"a": [{"b": ["\0"]}]}, {"a": "\ud800"}, {"a": object()}, {"a": 2**70}, {1: 2}],
)
def test_metadata_postgres_cannot_hold_is_refused(value: dict[Any, Any]) -> None:
    """jsonb refuses NUL, and plain JSON has no objects, huge integers or numeric keys."""
    with pytest.raises(InvalidArgument) as caught:
        json_of("metadata", value)
    assert caught.value.field == "metadata"


def test_an_escaped_backslash_before_u0000_is_no_nul() -> None:
    r"""The six characters \u0000 are text like any other."""
    assert json_of("metadata", {"a": "\\u0000"}) == '{"a":"\\\\u0000"}'


def test_metadata_has_a_size_limit() -> None:
    """It is returned with every page."""
    with pytest.raises(InvalidArgument):
        json_of("metadata", {"a": "x" * MAX_METADATA_BYTES})


def test_cursor_comes_back_as_it_went() -> None:
    """To the microsecond, since the next page begins right after it."""
    cursor = Cursor(time_of("2026-01-02T03:04:05.678901+02:00"), "00000000-0000-0000-0000-000000000001")
    assert read_cursor(write_cursor(cursor)) == cursor


@pytest.mark.parametrize("text", ["x", "AAAA", "2026-01-01", "MjAyNi0wMS0wMSB4", "é", "MjAyNi0wMS0wMVQwMDowMDowMCAx"])
def test_a_foreign_cursor_is_refused(text: str) -> None:
    """Cursors come from clients."""
    with pytest.raises(InvalidArgument):
        read_cursor(text)
