"""Texts that are not what an export writes are refused by their place, and large ones are read in one go."""

from __future__ import annotations

import json
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
