"""Assembling an answer from the events of a stream, in all forms of known providers."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import orjson
import pytest

from exai.models import Delta, Usage
from exai.providers.reply.answer import AnswerAssembler, ErrorInStream, UnusableAnswer
from exai.providers.reply.sse import Event


def answer() -> AnswerAssembler:
    return AnswerAssembler(1_000, 100)


def event(value: Any, name: str = "") -> Event:
    return Event(value if isinstance(value, str) else orjson.dumps(value).decode(), name)


def chunk(delta: Any = None, finish: Any = None, **more: Any) -> Event:
    return event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more})


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_is_found_under_either_name(field: str) -> None:
    """Kimi, GLM and llama.cpp use reasoning_content; vLLM uses reasoning."""
    one = answer()
    assert one.take(chunk({field: "hm"})) == Delta(reasoning="hm")
    assert one.take(chunk({"content": "yes"})) == Delta(content="yes")
    assert (one.reasoning, one.content) == ("hm", "yes")


@pytest.mark.parametrize("delta", [None, {}, {"role": "assistant", "content": ""}, {"content": None}, 7])
def test_empty_deltas_are_not_the_start_of_an_answer(delta: Any) -> None:
    """The first chunk often holds only the role."""
    one = answer()
    assert one.take(chunk(delta)) is None
    assert not one.started


USAGE = {"prompt_tokens": 10, "completion_tokens": 5}


@pytest.mark.parametrize(
    "last",
    [
        chunk({}, "stop", usage=USAGE),
        event({"choices": [{"delta": {}, "finish_reason": "stop", "usage": USAGE}]}),
        event({"choices": [], "usage": USAGE}),
        event({"usage": USAGE}),
    ],
    ids=["top", "choice", "empty choices", "no choices"],
)
def test_usage_is_found_wherever_it_stands(last: Event) -> None:
    """At the top, in the first choice, or in a chunk of its own."""
    one = answer()
    one.take(last)
    assert one.usage == Usage(input_tokens=10, output_tokens=5)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({**USAGE, "cached_tokens": 4}, Usage(10, 5, 4)),
        (
            {
                **USAGE,
                "prompt_tokens_details": {"cached_tokens": 4},
                "completion_tokens_details": {"reasoning_tokens": 3},
            },
            Usage(10, 5, 4, 3),
        ),
        (
            {"prompt_tokens": "10", "completion_tokens": -5, "cached_tokens": True, "prompt_tokens_details": 1},
            Usage(10),
        ),
        ({"prompt_tokens": 10.0, "completion_tokens": 1e300, "cached_tokens": "many"}, Usage(10, 2**53)),
        ({"prompt_tokens": 2**63, "completion_tokens": float("inf")}, Usage(2**53)),
        ({}, Usage()),
        ({**USAGE, "cost": 0.00125}, Usage(10, 5, cost_usd=Decimal("0.00125"))),
        ({**USAGE, "cost": {"total_cost": 1}}, Usage(10, 5)),
        ({**USAGE, "cost": -1}, Usage(10, 5)),
        ({**USAGE, "cost": float("inf")}, Usage(10, 5)),
        ({**USAGE, "cost": True}, Usage(10, 5)),
    ],
)
def test_usage_details_are_read_and_nonsense_is_zero(usage: dict[str, Any], expected: Usage) -> None:
    """Cached tokens stand at the top level or in the details."""
    one = answer()
    one.take(chunk({}, "stop", usage=usage))
    assert one.usage == expected


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("sensitive", "content_filter"),
        ("content_filter", "content_filter"),
        ("tool_calls", "tool_calls"),
        ("new_reason", "other"),
    ],
)
def test_finish_reason_makes_the_answer_whole(reason: str, expected: str) -> None:
    """GLM uses sensitive for the usual content_filter."""
    one = answer()
    assert not one.whole
    one.take(chunk({}, reason))
    assert one.whole
    assert one.finish_reason == expected


def test_done_makes_an_answer_whole_only_if_there_was_one() -> None:
    """[DONE] after nothing is not an answer."""
    empty, full = answer(), answer()
    empty.take(event("[DONE]"))
    full.take(chunk({"content": "x"}))
    full.take(event("[DONE]"))
    assert (empty.whole, full.whole) == (False, True)


def test_nothing_is_read_after_done() -> None:
    """What follows the end is not part of the answer."""
    one = answer()
    one.take(event("[DONE]"))
    assert one.take(chunk({"content": "late"})) is None


@pytest.mark.parametrize(("text", "unread"), [("{", 1), ('{"choices": [{"delta"', 1), ('"text"', 1), ("<html>", 1)])
def test_event_that_cannot_be_read_is_counted(text: str, unread: int) -> None:
    """Half an event must not be taken for the end of the answer, and what follows it is still read."""
    one = answer()
    assert one.take(Event(text)) is None
    assert (one.unread, one.whole) == (unread, False)
    one.take(chunk({"content": "x"}, "stop"))
    assert (one.content, one.is_partial) == ("x", True)


@pytest.mark.parametrize("text", ["", " ", "ping", "[PING]", ": keep-alive", "null", "[]", "{}", "7", "OK"])
def test_event_that_only_keeps_the_connection_is_no_part_of_the_answer(text: str) -> None:
    """Proxies send various events to keep a connection open."""
    one = answer()
    assert one.take(Event(text)) is None
    assert (one.unread, one.is_partial) == (0, False)


def test_halves_of_a_character_in_two_pieces_are_joined() -> None:
    """A server that cuts UTF-16 sends one surrogate in each piece; a half that stays alone is replaced."""
    one = answer()
    one.take(Event('{"choices": [{"delta": {"content": "a\\ud83d"}}]}'))
    assert one.take(Event('{"choices": [{"delta": {"content": "\\ude00b\\ud800"}}]}')) == Delta("\U0001f600b")
    assert one.settle() == Delta("\ufffd")
    assert one.content == "a\U0001f600b\ufffd"


def test_names_of_the_provider_are_made_storable() -> None:
    """An answer must not be lost for a character of the model's name or of the id."""
    one = answer()
    one.take(Event('{"id": "a\\u0000b", "model": "m\\ud800\\n", "choices": []}'))
    assert (one.request_id, one.model) == ("a\ufffdb", "m\ufffd\ufffd")


@pytest.mark.parametrize(
    "bad",
    [
        event({"error": {"type": "server_error", "message": "no"}}),
        event({"error": "no"}),
        event({"code": 500, "msg": "no", "success": False}),
        event({"message": "no"}, "error"),
    ],
)
def test_error_in_the_stream_is_noticed_in_every_shape(bad: Event) -> None:
    """A stream that began well may still carry an error."""
    with pytest.raises(ErrorInStream):
        answer().take(bad)


@pytest.mark.parametrize("reason", ["network_error", "error"])
def test_generation_the_provider_broke_off_is_not_an_answer(reason: str) -> None:
    """GLM has a finish reason for a failure of its own network."""
    with pytest.raises(UnusableAnswer, match=reason):
        answer().take(chunk({}, reason))


@pytest.mark.parametrize("delta", [{"content": "x" * 101}, {"content": "ü" * 51}, {"reasoning": "x" * 1_001}])
def test_answer_above_the_limit_is_refused(delta: dict[str, str]) -> None:
    """A text that could not be stored, or that never ends; bytes count, not characters."""
    with pytest.raises(UnusableAnswer, match="larger"):
        answer().take(chunk(delta))


def test_nul_is_replaced_because_postgres_cannot_store_it() -> None:
    """An answer must not be lost for one character."""
    one = answer()
    one.take(chunk({"content": "a\x00b"}))
    assert one.content == "a\ufffdb"


def test_model_and_request_id_are_those_the_provider_named() -> None:
    """The body's request_id has precedence over the completion's id."""
    one = answer()
    one.take(chunk({"content": "x"}, id="chatcmpl-1", request_id="r-1", model="kimi-k3-0711"))
    one.take(chunk({"content": "y"}, id="chatcmpl-2", request_id="r-2", model=None))
    assert (one.model, one.request_id) == ("kimi-k3-0711", "r-1")
