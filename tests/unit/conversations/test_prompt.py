"""The message array: the newest messages that fit, oldest first, without repetitions."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from exai.conversations.turns.prompt import check_fits, choose, count_left_out, estimate_tokens
from exai.errors import InvalidArgument
from exai.models import Message, Prompt, Role

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def build_prompt(messages: list[Message], system: Message | None, room: int) -> tuple[list[Prompt], int]:
    chosen, left = choose(messages, system, room)
    return [Prompt(message.role, message.content) for message in chosen], left


def message(seq: int, role: Role, content: str, kind: str = "message") -> Message:
    return Message(seq, role, content, NOON, kind=kind)


def test_whole_history_is_returned_oldest_first_from_any_order() -> None:
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


def test_question_larger_than_the_window_is_refused_before_anything_is_stored() -> None:
    """The error names the field and the cure."""
    with pytest.raises(InvalidArgument, match="larger window") as caught:
        check_fits("x" * 30_000, None, 1_000)
    assert caught.value.field == "prompt"


def test_older_messages_are_counted_whether_they_were_read_or_not() -> None:
    """The store reads as much as may fit; numbers have no gaps, so the count of the others is known."""
    system = message(1, "system", "s")
    read = [message(seq, "user" if seq % 2 else "assistant", "x" * 300) for seq in range(5, 26)]
    chosen, _ = choose(read, system, 12 * estimate_tokens("x" * 300) + estimate_tokens("s"))
    assert [each.seq for each in chosen] == [1, *range(17, 26)]
    assert count_left_out(read, system, chosen) == len(range(2, 17))
    assert count_left_out(read[:1], None, read[:1]) == 4


def test_what_was_kept_of_a_failed_turn_is_not_sent_but_an_answer_without_its_end_is() -> None:
    """The model ended the one and not the other."""
    history = [
        message(1, "user", "a"),
        message(2, "assistant", "No answer: is down", "failed"),
        message(3, "assistant", "half", "partial"),
        message(4, "user", "b"),
        message(5, "assistant", "whole but its end", "partial")._replace(metadata={"finish_reason": "stop"}),
    ]
    chosen, _ = choose(history, None, 10_000)
    assert [each.seq for each in chosen] == [1, 4, 5]
    assert count_left_out(history, None, chosen) == 0


def talk(last: int) -> list[Message]:
    return [
        message(seq, "user" if seq % 2 else "assistant", "x" * (100 + seq * 37 % 400)) for seq in range(1, last + 1)
    ]


@pytest.mark.parametrize("room", [1_500, 4_000])
def test_long_history_begins_with_the_same_message_for_many_turns(room: int) -> None:
    """Each turn that begins with another message pays the whole prompt at the full price."""
    begins, shown = [], []
    for last in range(1, 802, 2):
        chosen, left = choose(talk(last), None, room)
        assert chosen[-1].seq == last
        assert chosen[0].role == "user"
        assert left >= 0
        begins.append(chosen[0].seq)
        shown.append(len(chosen))
    assert begins == sorted(begins)
    typical = max(shown)
    assert len(set(begins)) - 1 <= 801 / (typical * 0.12)
    assert min(shown[typical:]) >= typical // 2


def test_history_of_which_only_a_part_was_read_begins_with_the_same_message_too() -> None:
    """The store reads a number of bytes, so that the oldest message read is another one in each turn."""
    begins = {choose(talk(last)[-60:], None, 100_000)[0][0].seq for last in range(301, 341, 2)}
    assert len(begins) <= 4
