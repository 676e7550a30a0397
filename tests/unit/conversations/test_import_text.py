"""Texts that are not exports are refused with the position of the error; large ones are read in one pass."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from exai.conversations.formats import FORMAT, VERSION, ConversationText, MessageText, read_lines, read_markdown
from exai.errors import InvalidArgument

HEADER = {"format": FORMAT, "version": VERSION, "continuation_id": "c-1"}


@pytest.mark.parametrize("tags", ["abc", 5, {"a": 1}, ["fine", 5], True])
def test_tags_that_are_no_list_of_texts_are_refused(tags: Any) -> None:
    """A text is a sequence of texts too, and each of its letters would become a tag."""
    with pytest.raises(InvalidArgument):
        list(read_lines([json.dumps({**HEADER, "tags": tags})]))


def test_place_of_a_message_is_its_line() -> None:
    """Counted on from the message before, so that a large text is not read once for each of its messages."""
    comment = '<!-- exai message {"seq": 1, "role": "user", "characters": 3} -->'
    parts = list(
        read_markdown(f"<!-- exai conversation {json.dumps(HEADER)} -->\n# t\n" + f"\n{comment}\n## user\n\na\nb\n" * 3)
    )
    assert isinstance(parts[0], ConversationText)
    assert [part.where for part in parts[1:] if isinstance(part, MessageText)] == ["line 4", "line 10", "line 16"]


@pytest.mark.parametrize(
    "given",
    [
        1767323045,
        1767323045.0,
        1767323045000,
        1767323045000000,
        1767323045000000000,
        "1767323045",
        "1767323045000",
        "2026-01-02T03:04:05Z",
        "2026-01-02T03:04:05+00:00",
        "2026-01-02 03:04:05+00",
        "2026-01-02 03:04:05 +0000",
        "2026-01-02 05:04:05 +02:00",
        "2026-01-02 03:04:05 UTC",
        " 2026-01-02T03:04:05.000000000Z ",
    ],
)
def test_times_are_read_as_other_programs_write_them(given: Any) -> None:
    """As numbers since 1970 in any unit, with a space, with or without a colon in the offset."""
    message = {"seq": 1.0, "role": "user", "content": "x", "created_at": given}
    _, part = read_lines([json.dumps(HEADER), json.dumps(message)])
    assert isinstance(part, MessageText)
    assert part.created_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    "given",
    ["2026-01-02 03:04:05", "2026-01-02", "yesterday", "", True, [], {}, 1e300, "9" * 40, "2026" + " " * 2**20 + "x"],
)
def test_time_that_says_no_moment_is_refused_with_its_line(given: Any) -> None:
    """A time without a zone could be off by a day."""
    message = {"seq": 1, "role": "user", "content": "x", "created_at": given}
    with pytest.raises(InvalidArgument) as caught:
        list(read_lines([json.dumps(HEADER), "", json.dumps(message)]))
    assert caught.value.field == "line 3, created_at"
