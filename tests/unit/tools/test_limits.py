"""Truncation: every part fits, and the parts are the whole."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exai.errors import InvalidArgument
from exai.mcp.core.protocol import ClientInfo
from exai.models import ContinuationId, Conversation, ConversationId, Message, Owner, Page
from exai.token_estimate import utf8_tokens
from exai.tools.conversations.outputs import take_messages
from exai.tools.limits import (
    MAX_ANSWER_BYTES,
    MAX_ANSWER_CHARS,
    Size,
    answer_limit,
    size_limit,
    size_of,
    surely_fits,
    take_rows,
    take_text,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TEXT = st.text(st.sampled_from('a"\\\n\x01é漢😀'), max_size=400)


def message(seq: int, content: str, metadata: dict[str, Any] | None = None) -> Message:
    return Message(seq, "user", content, NOW, metadata=metadata or {})


def page(*messages: Message, older: int | None = None) -> Page:
    conversation = Conversation(ConversationId("i"), ContinuationId("c"), Owner("o"), None, {}, 9, 9, NOW, NOW)
    return Page(conversation, messages, older, "cache")


@given(TEXT, st.integers(1, 60))
@settings(deadline=None)
def test_parts_fit_and_joined_are_the_text(text: str, chars: int) -> None:
    """For characters of any length in JSON; each part has at least one character."""
    parts: list[str] = []
    offset: int | None = 0
    while offset is not None:
        part, offset = take_text(text, offset, size_limit(chars))
        assert len(part) == 1 or size_of(part).chars <= chars or not text
        parts.append(part)
    assert "".join(parts) == text


def test_sizes_are_as_clients_count() -> None:
    """JavaScript counts an emoji as two; the limit on bytes holds besides."""
    assert size_of("😀").chars == len('"12"')
    part, rest = take_text("漢" * 500_000, 0, size_limit(MAX_ANSWER_CHARS))
    assert rest is not None
    assert MAX_ANSWER_BYTES * 0.9 < len(orjson.dumps(part)) <= MAX_ANSWER_BYTES


def test_the_page_is_shown_as_much_as_a_message_holds() -> None:
    """Its reader is a person, who does not pay by the token."""
    limit = answer_limit(ClientInfo("exai-page", "0.1.0"))
    assert (limit.chars, limit.size_bytes) == (MAX_ANSWER_CHARS, MAX_ANSWER_BYTES)


@pytest.mark.parametrize(
    "dense", ["0f3a9c" * 20_000, "漢字" * 40_000, "QmFzZTY0" * 15_000, "😀" * 40_000, "\x01" * 40_000]
)
@pytest.mark.parametrize(
    ("client", "chars", "tokens"),
    [("", 38_000, 9_500), ("codex-mcp-client", 38_000, 9_500), ("claude-code", 47_900, 23_750)],
)
def test_text_of_many_tokens_is_cut_by_its_tokens(dense: str, client: str, chars: int, tokens: int) -> None:
    """For each unit in which clients count: characters, tokens, or four bytes for a token."""
    limit = answer_limit(ClientInfo(client))
    part, rest = take_text(dense, 0, limit)
    encoded = orjson.dumps(part)
    assert rest is not None
    assert len(encoded.decode().encode("utf-16-le")) // 2 <= chars
    assert max(utf8_tokens(encoded), len(encoded) // 4) <= tokens
    assert limit.excess(size_of(part)) > 0.9


def test_a_caller_may_ask_for_more_than_its_client_shows_but_fewer_characters_are_no_more_tokens() -> None:
    assert answer_limit(ClientInfo("codex"), 100_000) == size_limit(100_000)
    assert answer_limit(ClientInfo("codex"), 20_000) == Size(20_000, MAX_ANSWER_BYTES, 9_500)
    assert answer_limit(ClientInfo("Claude-Code"), 20_000).tokens == 23_750
    assert answer_limit() == answer_limit(ClientInfo(), 38_000)


def test_rows_of_digits_are_as_many_as_their_tokens_allow() -> None:
    rows = [{"sha256": f"{number:064x}"} for number in range(1_000)]
    taken = take_rows(rows, dict, answer_limit())
    assert size_of(taken).tokens <= 9_500 < size_of(rows[: len(taken) + len(taken) // 5]).tokens
    assert not surely_fits(rows[:400], answer_limit())
    assert surely_fits(rows[:5], answer_limit())


def test_an_offset_beyond_the_text_is_refused_by_its_name() -> None:
    """There is nothing to show, and an empty answer would say that there is no more."""
    assert take_text("", 0, answer_limit()) == ("", None)
    with pytest.raises(InvalidArgument, match=r"^offset: is 3, the text has 3 characters"):
        take_text("abc", 3, answer_limit(), "offset")


def test_as_many_items_as_fit_and_one_at_least() -> None:
    """A page that shows nothing would never end."""
    facts = [{"x": "a" * 10}, {"x": "b" * 10}, {"x": "c" * 10}]
    assert take_rows(facts, dict, size_limit(40)) == facts[:2]
    assert take_rows(facts, dict, size_limit(1)) == facts[:1]
    assert take_rows([], dict, size_limit(1)) == []


def test_a_page_shows_the_newest_that_fit_and_where_the_rest_is() -> None:
    """Oldest first, as whole messages."""
    shown, before = take_messages(page(*(message(seq, "x" * 300) for seq in range(4, 10)), older=4), size_limit(1_000))
    assert [each.seq for each in shown] == [8, 9]
    assert before == 8
    shown, before = take_messages(page(message(1, "a"), message(2, "b")), size_limit(1_000))
    assert ([each.content for each in shown], before) == (["a", "b"], None)


def test_a_message_too_long_for_a_page_comes_in_parts() -> None:
    """The newest begins; older ones are for the next page."""
    long = "0123456789" * 200
    shown, before = take_messages(page(message(1, "old"), message(2, long, {"a": 1})), size_limit(1_000))
    (only,) = shown
    assert (only.seq, before, only.metadata) == (2, 2, {"a": 1})
    content, offset = only.content, only.next_offset
    while offset is not None:
        (only,), _ = take_messages(page(message(2, long)), size_limit(1_000), offset)
        assert size_of(only).chars <= 1_000
        content, offset = content + only.content, only.next_offset
    assert content == long


def test_metadata_too_large_is_left_out_and_said_to_be() -> None:
    """Null, which no stored metadata is."""
    (only,), _ = take_messages(page(message(1, "short", {"blob": "x" * 5_000})), size_limit(1_000))
    assert (only.content, only.next_offset, only.metadata) == ("short", None, None)
