"""Exported text is read back exactly, for any content."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exai.conversations.formats import (
    ConversationText,
    Format,
    MessageText,
    read_lines,
    read_markdown,
    write_header,
    write_message,
)
from exai.errors import InvalidArgument
from exai.models import LOCAL_OWNER, ContinuationId, Conversation, ConversationId, Message

NOON = datetime(2026, 1, 2, 12, 0, 0, 123456, tzinfo=UTC)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
SHAPES = st.sampled_from(["<!-- exai message {} -->\n", "\n\n", "## user", "-->", "--", "\r\n", "\u2028", '{"a": 1}\n'])
CONTENT = st.lists(TEXT | SHAPES).map("".join)
METADATA = st.dictionaries(TEXT, TEXT | SHAPES | st.integers(-(2**60), 2**60) | st.booleans() | st.none(), max_size=3)


def conversation(title: str | None, metadata: dict[str, Any], tags: tuple[str, ...]) -> Conversation:
    return Conversation(
        ConversationId("id"), ContinuationId("c-1"), LOCAL_OWNER, title, metadata, 0, 0, NOON, NOON, tags
    )


def read(text: str, kind: Format) -> list[ConversationText | MessageText]:
    return list(read_lines(text.split("\n")) if kind == "jsonl" else read_markdown(text))


@pytest.mark.parametrize("kind", ["jsonl", "markdown"])
@given(
    title=st.none() | TEXT | SHAPES,
    metadata=METADATA,
    tags=st.lists(TEXT | SHAPES, max_size=2).map(tuple),
    contents=st.lists(CONTENT, max_size=4),
)
def test_round_trip_is_exact(
    kind: Format, title: str | None, metadata: dict[str, Any], tags: tuple[str, ...], contents: list[str]
) -> None:
    """Content that looks like our own marks is still content."""
    messages = [Message(n, "user", content, NOON, "message", None, metadata) for n, content in enumerate(contents, 1)]
    text = write_header(conversation(title, metadata, tags), kind) + "".join(write_message(m, kind) for m in messages)
    header, *rest = read(text, kind)
    assert header == ConversationText("c-1", title, metadata, tags, NOON, NOON)
    read_back = [(each.seq, each.message.content, each.message.metadata, each.created_at) for each in rest]  # type: ignore[union-attr]
    assert read_back == [(m.seq, m.content, m.metadata, NOON) for m in messages]


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("nonsense", "line 2"),
        ("[]", "line 2"),
        ('{"seq": 0, "role": "user", "content": "x"}', "line 2, seq"),
        ('{"seq": 1, "role": "boss", "content": "x"}', "line 2, role"),
        ('{"seq": 1, "role": "user"}', "line 2, content"),
        ('{"seq": 1, "role": "user", "content": "x", "created_at": "yesterday"}', "line 2, created_at"),
        ('{"seq": 1, "role": "user", "content": "x", "created_at": "2026-01-01T00:00:00"}', "line 2, created_at"),
        ('{"seq": 1, "role": "user", "content": "x", "created_at": "0001-01-01T00:00:00+14:00"}', "line 2, created_at"),
        ('{"seq": 1, "role": "user", "content": "x", "metadata": 3}', "line 2, metadata"),
    ],
)
def test_bad_line_is_named(line: str, field: str) -> None:
    """The error has the line, the field and the cure."""
    text = write_header(conversation(None, {}, ()), "jsonl") + line
    with pytest.raises(InvalidArgument) as caught:
        read(text, "jsonl")
    assert caught.value.field == field


def test_text_of_another_program_is_refused() -> None:
    """Only exports of EXAI are accepted."""
    with pytest.raises(InvalidArgument, match="beginning"):
        read('{"role": "user", "content": "hello"}', "jsonl")


def test_cut_markdown_is_refused() -> None:
    """Half a message must not be taken for a whole one."""
    message = Message(1, "user", "hello world", NOON)
    text = write_header(conversation("t", {}, ()), "markdown") + write_message(message, "markdown")
    with pytest.raises(InvalidArgument, match="not as long"):
        read(text[:-5], "markdown")
