"""The first line of a result's text: its contents, and that it can be parsed."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exai.errors import AnswerNotStored, Conflict
from exai.mcp.features.results import MAX_REPEATED_BYTES, error_result
from exai.mcp.features.texts import headed, items
from tests.support.heads import head_of, rows_of

VALUES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=60)


def test_the_head_is_one_line_with_what_the_next_call_needs() -> None:
    """Names in a fixed order, cursors last; null, false and 0 are left out."""
    facts = {"next_offset": 9, "revision": 4, "content": "x", "seq": 7, "continuation_id": "c1", "duplicate": False}
    assert headed(facts, "Hello.") == "continuation_id: c1 | seq: 7 | revision: 4 | next_offset: 9\n\nHello."
    assert headed({"next_cursor": None}, "Hello.") == "Hello."
    assert headed(None, "Hello.") == "Hello."
    assert headed({"file_id": "f", "encoding": "base64"}, "") == "file_id: f | encoding: base64"


def test_notes_follow_the_head_each_on_one_line() -> None:
    """Also without a head; a line break in a note would end it."""
    assert headed({"seq": 1, "notes": ["cut", "a\nb"]}, "x") == "seq: 1\nnote: cut\nnote: a b\n\nx"
    assert headed({"notes": ["cut"]}, "x") == "note: cut\n\nx"


@given(VALUES, VALUES)
def test_any_name_is_read_back_from_the_head(name: str, cursor: str) -> None:
    """Imported conversations may have names with any characters."""
    text = headed({"continuation_id": name, "next_cursor": cursor}, "body | continuation_id: other")
    assert head_of(text) == {"continuation_id": name, "next_cursor": cursor}
    assert rows_of(items([{"continuation_id": name, "title": cursor}], ("continuation_id", "title"))) == [
        {"continuation_id": name, "title": cursor}
    ]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (AnswerNotStored("away", "paid for", "c1"), {"continuation_id": "c1"}),
        (Conflict("revision", "moved on", "Read it", revision=7), {"revision": "7"}),
    ],
)
def test_errors_say_in_their_text_which_conversation_they_concern(error: Any, expected: dict[str, str]) -> None:
    """And a paid answer that is nowhere else is in the text as well."""
    text = error_result(error)["content"][0]["text"]
    assert head_of(text) == expected
    assert str(error) in text
    assert getattr(error, "content", "") in text


def test_an_answer_too_long_for_a_message_twice_is_in_the_structure_only() -> None:
    """Rather once than refused as too large."""
    result = error_result(AnswerNotStored("away", "x" * MAX_REPEATED_BYTES, "c1"))
    assert len(orjson.dumps(result)) < MAX_REPEATED_BYTES + 2_000
    assert result["structuredContent"]["error"]["content"] == "x" * MAX_REPEATED_BYTES
