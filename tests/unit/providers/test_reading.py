"""Arbitrary JSON from a provider is read, named or counted, without errors."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from exai.providers.completion.failures import decode_body, read_failure
from exai.providers.completion.windows import too_long
from exai.providers.reply.answer import AnswerAssembler, ErrorInStream, UnusableAnswer
from exai.providers.reply.bodies import Body, BodyTooLarge, BrokenCompression
from exai.providers.reply.reading import MAX_TOKENS, TextJoiner, decode, tokens, values_of
from exai.providers.reply.sse import EventTooLarge

NAMES = st.sampled_from(
    (
        "choices delta message content text type reasoning_content reasoning_details thinking tool_calls function name "
        "index finish_reason usage prompt_tokens prompt_tokens_details cached_tokens error code data audio transcript "
        "parts refusal images x_groq timings id model detail errors loc param metadata raw"
    ).split()
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=6),
    st.sampled_from(["\ud83d", "\ude00", "\x00", "stop", "text", "[DONE]", "{}", ""]),
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=5), max_leaves=25
)
LINES = st.one_of(
    VALUES.map(lambda value: f"data: {json.dumps(value)}\n\n".encode()),
    VALUES.map(lambda value: f"data: {json.dumps({'choices': [value, value]})}\n\n".encode()),
    VALUES.map(lambda value: f"data: {json.dumps({'choices': [{'delta': value}], 'usage': value})}\n\n".encode()),
    st.binary(max_size=30),
    st.sampled_from(
        [b"data: [DONE]\n\n", b"data:\n\n", b": x\n", b"event: error\n", b"\xef\xbb\xbf", b"\x1f\x8b", b"\r", b"{"]
    ),
)


@settings(max_examples=300)
@given(st.lists(LINES, max_size=8), st.sampled_from(["text/event-stream", "application/json", ""]), st.integers(1, 64))
def test_any_stream_is_an_answer_or_a_provider_error(pieces: list[bytes], media_type: str, size: int) -> None:
    """Another error would lose a paid answer; the text can always be stored."""
    body, answer = Body(media_type, "", max_event_bytes=10_000, max_bytes=100_000), AnswerAssembler(5_000, 1_000)
    received = b"".join(pieces)
    with suppress(UnusableAnswer, ErrorInStream, EventTooLarge, BodyTooLarge, BrokenCompression):
        for at in range(0, len(received), size):
            for event in body.feed(received[at : at + size]):
                answer.take(event)
        for event in body.close():
            answer.take(event)
        answer.settle()
    for text in (answer.content, answer.reasoning, answer.model or "", answer.request_id or "", *answer.named):
        assert "\x00" not in text
        assert text.encode().decode() == text
    counts = answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.cached_tokens
    assert all(0 <= count <= MAX_TOKENS for count in counts)


@given(VALUES, st.integers(200, 599))
def test_no_error_body_does_more_than_say_something(value: Any, status: int) -> None:
    """A refusal must not become an internal error."""
    document, _ = decode_body(json.dumps(value).encode())
    failure = read_failure(document, status=status)
    too_long(failure)
    assert isinstance(failure.message, str)


@given(st.lists(st.text(st.characters(), max_size=5), max_size=6))
def test_text_cut_within_characters_is_put_together(texts: list[str]) -> None:
    """Any text, in pieces of one UTF-16 unit each."""
    whole = "".join(text for text in texts)
    units = whole.encode("utf-16-le", "surrogatepass")
    pieces = [units[at : at + 2].decode("utf-16-le", "surrogatepass") for at in range(0, len(units), 2)]
    joiner = TextJoiner()
    joined = "".join(map(joiner.join, pieces)) + joiner.end()
    assert joined == units.decode("utf-16-le", "replace").replace("\x00", "\ufffd")


@given(st.one_of(LEAVES, st.text(max_size=400), st.just("9" * 5_000)))
def test_any_count_is_a_number_that_can_be_stored(value: object) -> None:
    """Floats, texts, negative and huge numbers."""
    assert 0 <= tokens(value) <= MAX_TOKENS


def test_depth_without_end_is_no_answer_and_no_crash() -> None:
    """A hundred thousand brackets."""
    deep = "[" * 100_000
    assert values_of(f'{{"a": {deep}')[1] == 1
    with suppress(ValueError):
        decode(deep + "]" * 100_000)


def test_event_of_punctuation_is_read_in_proportion_to_its_length() -> None:
    assert values_of("." * 2**20 + "x") == ([], 1)
