"""Answers as they are kept, and which of them may be given again."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from exai.conversations import ChatRequest
from exai.conversations.turns.answers import decode_answer, encode_answer, is_fit, said_of
from exai.conversations.turns.similar import EXACT
from exai.db.answers import AnswerPlace
from exai.models import LOCAL_OWNER, AnswerOrigin, Completion, ConversationId, Reasoning, TurnId, Usage, WebSource
from exai.providers.base import Model

AT = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
MODEL = Model("m", "kimi", "m-1", 8_192, 1_024)
PLACE = AnswerPlace(ConversationId("c"), 1, 2, TurnId("t"))
GIVEN = Completion(
    content="Yes, no",
    reasoning="hidden",
    finish_reason="stop",
    usage=Usage(5, 7),
    provider="kimi",
    model="m-1",
    request_id="r",
    duration_ms=9.0,
    notes=("kimi does not accept top_k, so that it was not sent",),
    sources=(WebSource("A page", "https://example.org"),),
    searches=2,
    returned_reasoning=Reasoning("kimi", "reasoning_content", "because"),
)


def test_an_answer_is_kept_with_all_that_its_caller_received_and_without_its_cost() -> None:
    """Also the reasoning that its endpoint demands back with the next question."""
    found = decode_answer(encode_answer(GIVEN, MODEL, AT, PLACE) or b"")
    assert found is not None
    assert found[1] == PLACE
    assert found[0] == replace(
        GIVEN,
        reasoning="",
        usage=Usage(),
        request_id=None,
        duration_ms=0.0,
        attempts=0,
        searches=0,
        origin=AnswerOrigin(AT, "m"),
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"content": None},
        {"answered_at": "2026-01-02T03:04:00"},
        {"answered_at": "soon"},
        {"sources": [["only a title"]]},
        {"sources": None},
        {"notes": [1]},
        {"reasoning": ["kimi"]},
        {"model": 7},
    ],
)
def test_an_answer_that_cannot_be_read_is_a_miss(changes: dict[str, Any]) -> None:
    """Other releases and other programs write to the same Redis."""
    kept = orjson.loads(encode_answer(GIVEN, MODEL, AT, PLACE) or b"")
    assert decode_answer(orjson.dumps(kept)) is not None
    assert decode_answer(orjson.dumps({**kept, **changes})) is None
    for name in changes:
        assert decode_answer(orjson.dumps({each: kept[each] for each in kept if each != name})) is None
    for text in (b"", b"[]", b"null", b"\xff", b"1", b'"x"'):
        assert decode_answer(text) is None


def test_an_answer_that_is_not_unicode_is_not_kept() -> None:
    """It has been returned and paid for, so that keeping it must not fail."""
    assert encode_answer(replace(GIVEN, notes=("half of a pair: \ud800",)), MODEL, AT, PLACE) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"finish_reason": "length"},
        {"finish_reason": "content_filter"},
        {"finish_reason": "other"},
        {"finish_reason": "tool_calls"},
        {"is_partial": True},
        {"unread_events": 1},
        {"is_refusal": True},
        {"instead_of": "another"},
        {"content": " \n"},
    ],
)
def test_only_complete_answers_of_the_model_itself_are_fit(changes: dict[str, Any]) -> None:
    """Each of these would be repeated for a day."""
    request = ChatRequest(LOCAL_OWNER, "Why?", cache="use")
    assert is_fit(request, GIVEN)
    assert not is_fit(request, replace(GIVEN, **changes))


def test_an_answer_whose_search_of_the_web_failed_is_not_fit() -> None:
    """Its note says so; without a search the note is about something else."""
    searching = ChatRequest(LOCAL_OWNER, "Why?", cache="use", web_search=True)
    assert not is_fit(searching, GIVEN)
    assert is_fit(searching, replace(GIVEN, notes=()))


def test_the_sentence_states_model_time_and_the_similar_question() -> None:
    """The text alone states that the answer is a cached one."""
    assert said_of(AnswerOrigin(AT, "m")) == (
        "from the answer cache: m gave this answer to the same prompt on 2026-01-02 03:04 UTC; "
        "cache: refresh asks the model again"
    )
    similar = said_of(AnswerOrigin(AT, "m", 0.98, "long " * 200))
    assert "to a similar question (similarity 0.980) on 2026-01-02 03:04 UTC" in similar
    assert similar.endswith("...")
    assert len(similar) < 800


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Is 3.11 supported?", "Is 3.12 supported?"),
        ("Is it safe?", "Is it not safe?"),
        ("Why does it work?", "Why doesn't it work?"),
        ("Why doesn\u2019t it work?", "Why does it work?"),
        ("Can I merge with tests?", "Can I merge without tests?"),
        ("In 10 steps of 2", "In 2 steps of 10"),
    ],
)
def test_numbers_and_negations_tell_questions_apart(one: str, other: str) -> None:
    """Their vectors hardly differ."""
    assert EXACT.findall(one.casefold()) != EXACT.findall(other.casefold())
