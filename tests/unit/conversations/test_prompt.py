"""The array a model is asked with: newest that fits, oldest first, nothing twice."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from exai.conversations.prompt import check_fits, choose, estimate_tokens, input_tokens
from exai.errors import InvalidArgument
from exai.models import Message, Prompt, Role

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def build_prompt(messages: list[Message], system: Message | None, room: int) -> tuple[list[Prompt], int]:
    chosen, left = choose(messages, system, room)
    return [Prompt(message.role, message.content) for message in chosen], left


def message(seq: int, role: Role, content: str, kind: str = "message") -> Message:
    return Message(seq, role, content, NOON, kind=kind)


def test_whole_history_is_given_oldest_first_whatever_order_it_came_in() -> None:
    """Newest-first lists that are handed on unreversed confuse every model."""
    history = [message(3, "user", "c"), message(1, "user", "a"), message(2, "assistant", "b")]
    prompt, _ = build_prompt(history, None, 10_000)
    assert prompt == [Prompt("user", "a"), Prompt("assistant", "b"), Prompt("user", "c")]


def test_prompt_bytes_grow_linearly_over_six_exchanges() -> None:
    """An ancestor of this service embedded the history in each turn and doubled the prompt every time."""
    history: list[Message] = []
    sizes = []
    for exchange in range(6):
        history.append(message(2 * exchange + 1, "user", "q" * 500))
        prompt, _ = build_prompt(history, None, 1_000_000)
        sizes.append(sum(len(part.content) for part in prompt))
        history.append(message(2 * exchange + 2, "assistant", "a" * 2_000))
    assert sizes == [500 + 2_500 * exchange for exchange in range(6)]


def test_newest_messages_win_when_the_window_is_too_small() -> None:
    """Fitting counts from the newest backwards, and a cut history starts with a question."""
    history = [
        message(1, "user", "x" * 300),
        message(2, "assistant", "y" * 300),
        message(3, "user", "now"),
    ]
    room = estimate_tokens("now") + estimate_tokens("y" * 300)
    prompt, left = build_prompt(history, None, room)
    assert prompt == [Prompt("user", "now")]
    assert left >= 0


def test_latest_system_message_leads_and_earlier_ones_are_superseded() -> None:
    """A system prompt stays in force until it is replaced."""
    history = [
        message(1, "system", "old"),
        message(2, "user", "a"),
        message(3, "system", "new"),
        message(4, "user", "b"),
    ]
    prompt, _ = build_prompt(history, None, 10_000)
    assert prompt == [Prompt("system", "new"), Prompt("user", "a"), Prompt("user", "b")]


def test_system_message_outside_the_window_is_still_given() -> None:
    """The database returns it apart when it is older than the history that fits."""
    prompt, _ = build_prompt([message(900, "user", "b")], message(1, "system", "rules"), 10_000)
    assert prompt == [Prompt("system", "rules"), Prompt("user", "b")]


def test_partial_answers_are_not_put_into_the_mouth_of_the_model() -> None:
    """A broken stream's text is kept for people and left out of prompts."""
    history = [message(1, "user", "a"), message(2, "assistant", "half", kind="partial"), message(3, "user", "b")]
    prompt, _ = build_prompt(history, None, 10_000)
    assert prompt == [Prompt("user", "a"), Prompt("user", "b")]


def test_estimate_never_counts_fewer_tokens_than_chinese_needs() -> None:
    """Chinese takes about one token a character, and three bytes."""
    assert estimate_tokens("好" * 1_000) >= 1_000


def test_question_larger_than_the_window_is_refused_before_anything_is_stored() -> None:
    """The error names the field and the cure."""
    with pytest.raises(InvalidArgument, match="larger window") as caught:
        check_fits("x" * 30_000, None, 1_000)
    assert caught.value.field == "prompt"


def test_answer_room_is_kept_but_never_more_than_half_the_window() -> None:
    """A huge max_output_tokens must not leave a prompt without room."""
    assert input_tokens(8_000, None) == 8_000 - 1_024
    assert input_tokens(8_000, 7_900) == 4_000
