"""The order in which streams are read, limits that move, and the short way through the parsers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exai.providers.network.limits import MovingLimit
from exai.providers.network.turns import READS, ReadTurns
from exai.providers.reply.answer import AnswerAssembler, ErrorInStream, UnusableAnswer
from exai.providers.reply.sse import Event, SseParser

ROOM = 1_000_000


async def test_a_burst_of_reads_passes_a_few_in_each_iteration_and_in_order() -> None:
    """Another task runs between them, as the request of another client does."""
    turns, order, between = ReadTurns(), [], [0]

    async def read(number: int) -> None:
        await turns.take()
        order.append(number)
        between[-1] += 1

    tasks = [asyncio.create_task(read(number)) for number in range(50)]
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        between.append(0)
    assert order == list(range(50))
    assert max(between) <= READS
    await asyncio.wait_for(turns.take(), 10)


async def test_a_reader_that_is_cancelled_takes_no_turn() -> None:
    turns = ReadTurns()
    tasks = [asyncio.create_task(turns.take()) for _ in range(READS * 3)]
    await asyncio.sleep(0)
    for task in tasks[READS : READS * 2]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert [task.cancelled() for task in tasks] == [False] * READS + [True] * READS + [False] * READS


class Timers:
    """The timers of an event loop, with a clock that the test sets."""

    def __init__(self) -> None:
        self.set: list[tuple[float, Callable[[], None]]] = []

    def call_at(self, due: float, callback: Callable[[], None]) -> Timers:
        self.set.append((due, callback))
        return self

    def cancel(self) -> None:
        self.set.clear()

    def fire(self) -> float:
        ((due, callback),) = self.set
        self.set.clear()
        callback()
        return due


class Scope:
    """Records when it was expired."""

    def __init__(self) -> None:
        self.expired: list[float | None] = []

    def reschedule(self, when: float | None) -> None:
        self.expired.append(when)


def test_a_limit_that_moves_uses_one_timer_and_expires_at_its_newest_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Later times wait for the timer that runs; an earlier one replaces it; none lets it run out."""
    timers, scope = Timers(), Scope()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: timers)
    limit = MovingLimit(cast("Any", scope))
    for due in (10.0, 11.0, 12.0):
        limit.move(due)
    assert [due for due, _ in timers.set] == [10.0]
    assert (timers.fire(), scope.expired) == (10.0, [])
    limit.move(None)
    assert (timers.fire(), scope.expired, timers.set) == (12.0, [], [])
    limit.move(20.0)
    limit.move(15.0)
    assert (timers.fire(), scope.expired) == (15.0, [15.0])
    limit.move(30.0)
    limit.close()
    assert timers.set == []


TEXTS = st.sampled_from(["", "a", "\u4f60", "\ud83d", "\ude80", "\x00", None, 5, ["x"]])
FINISH = st.sampled_from([None, None, None, "stop", ""])
DELTAS = st.fixed_dictionaries(
    {},
    optional={"role": st.just("assistant"), "content": TEXTS, "reasoning_content": TEXTS, "refusal": TEXTS},
)
CHOICES: st.SearchStrategy[Any] = st.one_of(
    st.fixed_dictionaries(
        {"delta": st.one_of(DELTAS, st.none(), st.just("text"))},
        optional={"index": st.sampled_from([0, 1, None, "0"]), "finish_reason": FINISH, "message": DELTAS},
    ),
    st.sampled_from(["text", None, []]),
)
CHUNKS = st.fixed_dictionaries(
    {"choices": st.one_of(st.lists(CHOICES, max_size=2), st.none(), st.just({"delta": {"content": "x"}}))},
    optional={
        "id": st.sampled_from(["1", ""]),
        "model": st.sampled_from(["m", "n", 3]),
        "usage": st.sampled_from([None, {"prompt_tokens": 3, "completion_tokens": 1}]),
        "error": st.sampled_from([None, {"message": "no"}]),
        "request_id": st.just("r"),
        "x_groq": st.just({"error": "no"}),
        "type": st.sampled_from(["message_stop", "x"]),
    },
)


class LongWay(AnswerAssembler):
    """Reads every chunk field by field."""

    def _plain_piece(self, data: str) -> None:
        return None


def told(answer: AnswerAssembler, chunks: list[Any]) -> tuple[Any, ...]:
    said: list[Any] = []
    for chunk in chunks:
        try:
            said.append(answer.take(Event(json.dumps(chunk))))
        except (ErrorInStream, UnusableAnswer) as error:
            said.append((type(error), str(error)))
            break
    said.append(answer.settle())
    facts = {name: value for name, value in vars(answer).items() if "joiner" not in name}
    return said, {name: list(value) if isinstance(value, dict) else value for name, value in facts.items()}


@given(st.lists(CHUNKS, max_size=6))
def test_the_short_way_of_a_chunk_gives_what_the_long_one_gives(chunks: list[Any]) -> None:
    """Text, reasoning, usage, errors and every other state of the answer."""
    chunks = [{"id": "1", "model": "m", "choices": [{"index": 0, "delta": {"reasoning_content": "r"}}]}, *chunks]
    assert told(AnswerAssembler(ROOM, ROOM), chunks) == told(LongWay(ROOM, ROOM), chunks)


PIECES = st.lists(
    st.sampled_from(
        [b"data: x\n\n", b"data: {}\n\n", b"data:y\n\n", b"event: e\n", b"data: z", b"\n", b"\r", b"\r\n", b": c\n"]
    )
)


@given(PIECES)
def test_a_whole_event_in_one_chunk_is_parsed_as_byte_by_byte(pieces: list[bytes]) -> None:
    """The short way applies only where nothing precedes."""
    whole, single = SseParser(100), SseParser(100)
    events = [event for piece in pieces for event in whole.feed(piece)]
    again = [event for piece in pieces for byte in piece for event in single.feed(bytes([byte]))]
    assert (events + whole.close(), whole.lines) == (again + single.close(), single.lines)
