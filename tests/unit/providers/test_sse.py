"""The event stream parser, with input cut at every position."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exai.providers.reply.sse import Event, EventTooLarge, SseParser

LIMIT = 1_000


def parse(*chunks: bytes) -> list[Event]:
    parser = SseParser(LIMIT)
    events = [event for chunk in chunks for event in parser.feed(chunk)]
    return events + parser.close()


@pytest.mark.parametrize("end", [b"\r\n", b"\n", b"\r"])
def test_all_three_line_ends_are_understood(end: bytes) -> None:
    """The event stream format allows CR LF, LF and CR."""
    assert parse(end.join([b"data: one", b"", b"data: two", b"", b""])) == [Event("one"), Event("two")]


@pytest.mark.parametrize("end", [b"\r\n", b"\n", b"\r"])
def test_stream_cut_after_every_byte_gives_the_same_events(end: bytes) -> None:
    """A chunk may end inside a character, a line end or a field name."""
    stream = end.join(
        ["data: grüße 你好 🙂".encode(), b": comment", b"data: more", b"", b"event: x", b"data: y", b"", b""]
    )
    expected = [Event("grüße 你好 🙂\nmore"), Event("y", "x")]
    assert parse(stream) == expected
    assert parse(*(stream[at : at + 1] for at in range(len(stream)))) == expected
    for at in range(len(stream)):
        assert parse(stream[:at], stream[at:]) == expected


@given(
    st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=40), max_size=8),
    st.sampled_from([b"\r\n", b"\n", b"\r"]),
    st.data(),
)
def test_any_text_survives_any_cut(texts: list[str], end: bytes, data: st.DataObject) -> None:
    """Any text, cut by the network at any byte."""
    stream = b"".join(b"data: " + text.encode() + end + end for text in texts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert parse(*chunks) == [Event(text) for text in texts]


def test_only_the_line_feed_right_after_a_carriage_return_belongs_to_it() -> None:
    """A chunk that ends within a line has left its last line end behind."""
    assert parse(b"data: a\rdata: b", b"\n\ndata: c\n\n") == [Event("a\nb"), Event("c")]


def test_comments_unknown_fields_and_a_byte_order_mark_are_skipped() -> None:
    """Keep-alive comments, ids and retry hints carry no answer."""
    assert parse(b"\xef\xbb\xbfdata: a\nid: 7\nretry: 10\nnonsense\n: ping\n\n") == [Event("a")]


def test_one_space_after_the_colon_is_not_content() -> None:
    """Only the first space belongs to the format."""
    assert parse(b"data:a\ndata:  b\ndata:\n\n") == [Event("a\n b\n")]


def test_blank_lines_without_data_make_no_event() -> None:
    """An event needs data."""
    assert parse(b"\n\nevent: ping\n\n\r\n\r\n") == []


def test_invalid_utf8_is_replaced_not_fatal() -> None:
    """One broken character must not cost the answer."""
    assert parse(b"data: a\xffb\n\n") == [Event("a\ufffdb")]


def test_end_of_stream_completes_the_last_event() -> None:
    """Servers exist that leave out the last blank line, or even the last line end."""
    assert parse(b"data: [DONE]\n") == [Event("[DONE]")]
    assert parse(b"data: [DONE]") == [Event("[DONE]")]


def test_line_above_the_limit_is_refused_before_it_is_complete() -> None:
    """Memory stays bounded when a server never ends its line."""
    parser = SseParser(LIMIT)
    parser.feed(b"data: " + b"x" * (LIMIT - 6))
    with pytest.raises(EventTooLarge):
        parser.feed(b"x")


def test_event_of_many_lines_above_the_limit_is_refused() -> None:
    """The limit is for the event, not for each line."""
    parser = SseParser(LIMIT)
    with pytest.raises(EventTooLarge):
        parser.feed(b"data: 0123456789\n" * LIMIT)


def test_many_small_events_never_reach_the_limit() -> None:
    """The limit starts anew with each event."""
    parser = SseParser(LIMIT)
    assert len(parser.feed(b"data: 0123456789\n\n" * LIMIT)) == LIMIT
