"""The checker of recorded histories accepts a correct one, and finds every kind of violation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.support.history import Ack, Append, Applied, Asked, Event, History, Listed, Log, Read, Stored, Turn

LOG = Log(
    tuple(Stored(text) for text in ("a1", "a2", "b1", "q", "answer 1 to q", "c1")),
    heights=(0, 2, 3, 4, 5, 6),
)
A = Append("x", ("a1", "a2"), 0.0, (Ack(1.0, "d1", 1, 2),))
B = Append("x", ("b1",), 2.0, (Ack(3.0, "d2", 3, 3),))
Q = Turn("x", "q", 4.0, (Ack(5.0, "d1", 5, 5),), ("answer 1 to q",))
C = Append("x", ("c1",), 6.0)
APPLIED = Applied("x", 2.9, 2)
ASKED = Asked(("a1", "a2", "b1", "q"))
FRESH = Read("x", "d3", 7.0, 7.1, 5, (1, 2, 3, 4, 5, 6), ("a1", "a2", "b1", "q", "answer 1 to q", "c1"), None, 50)
GOOD: tuple[Event, ...] = (A, B, Q, C, APPLIED, ASKED, FRESH)


def page(start: float, revision: int, **changes: Any) -> Read:
    """A correct page of that revision, read at that time by a daemon that wrote nothing."""
    last = LOG.heights[revision]
    contents = tuple(message.content for message in LOG.messages[:last])
    seqs = tuple(range(1, last + 1))
    return replace(Read("x", "d3", start, start + 0.1, revision, seqs, contents, None, 50), **changes)


def kinds(*events: Event, log: Log = LOG, **options: Any) -> list[str]:
    """The kinds of violations that are found in a history of these events."""
    return [violation.kind for violation in History(events, {"x": log}, max_staleness_s=2.0, **options).check()]


def test_correct_history_has_no_violation() -> None:
    """Every kind of event, consistent with the stored rows."""
    assert kinds(*GOOD) == []


@pytest.mark.parametrize(
    "read",
    [
        page(3.5, 1),
        page(4.9, 1, by="d1"),
        page(3.5, 2, limit=2, seqs=(2, 3), contents=("a2", "b1"), next_before_seq=2),
        page(9.0, 5, before_seq=3, seqs=(1, 2), contents=("a1", "a2")),
        page(9.0, 1, stale_s=7.0),
        page(9.0, 1, stale_s=6.1),
    ],
    ids=[
        "within the bound",
        "within the bound, own",
        "cut",
        "older page",
        "marked as stale",
        "marked as just stale enough",
    ],
)
def test_page_within_the_bound_is_no_violation(read: Read) -> None:
    """A page may lack an unacknowledged change for less than the bound."""
    assert kinds(A, B, Q, C, ASKED, read) == []


def test_two_acknowledgements_of_one_key_agree() -> None:
    """A repetition of a key returns the same numbers."""
    assert kinds(replace(A, acks=(*A.acks, Ack(1.5, "d2", 1, 2))), B, Q, C, ASKED) == []


def test_write_of_unknown_outcome_is_stored_or_not() -> None:
    """Both agree with a write that has no acknowledgement."""
    never = Append("x", ("d1", "d2"), 1.0)
    assert kinds(*GOOD, never, Turn("x", "never", 1.0)) == []


def test_partial_answers_are_not_sent_to_a_model() -> None:
    """The partial answer is stored beside that of the next attempt."""
    log = Log((Stored("q"), Stored("answer 1 to q", partial=True), Stored("answer 2 to q")), heights=(0, 1, 2, 3))
    turn = Turn("x", "q", 0.0, (Ack(2.0, "d1", 3, 3),), ("answer 2 to q",), attempts=2)
    more = Asked(("q", "answer 2 to q", "more"))
    log_more = Log((*log.messages, Stored("more")), (*log.heights, 4))
    assert kinds(turn, Asked(("q",)), Asked(("q",)), Turn("x", "more", 3.0), more, log=log_more) == []


def stored(*contents: str) -> Log:
    return Log(tuple(Stored(content) for content in contents), heights=tuple(range(len(contents) + 1)))


@pytest.mark.parametrize(
    ("kind", "log", "event"),
    [
        ("lost", stored(), Append("x", ("a",), 0.0, (Ack(1.0, "d", 1, 1),))),
        ("lost", stored("a"), Append("x", ("a", "b"), 0.0, (Ack(1.0, "d", 1, 2),))),
        ("lost", stored("a"), Append("x", ("a", "b"), 0.0)),
        ("lost", stored("b", "a"), Append("x", ("a", "b"), 0.0)),
        ("lost", stored("a"), Append("x", ("a",), 0.0, (Ack(1.0, "d", 2, 2),))),
        ("lost", stored("a"), Append("x", ("a",), 0.0, (Ack(1.0, "d", 1, 1), Ack(2.0, "d", 2, 2)))),
        ("lost", stored("q"), Turn("x", "q", 0.0, (Ack(1.0, "d", 2, 2),), ("answer to q",))),
        ("lost", stored("q", "1 to q"), Turn("x", "q", 0.0, (Ack(1.0, "d", 2, 2),), ("2 to q",))),
        ("twice", stored("a", "a"), Append("x", ("a",), 0.0)),
        ("twice", stored("q", "1 to q", "2 to q"), Turn("x", "q", 0.0)),
        ("refused", stored("a"), Append("x", ("a",), 0.0, refused=True)),
        ("refused", stored("q"), Turn("x", "q", 0.0, refused=True)),
        ("order", stored("1 to q", "q"), Turn("x", "q", 0.0, (Ack(1.0, "d", 1, 1),), ("1 to q",))),
        ("foreign", stored("a", "z"), Append("x", ("a",), 0.0)),
    ],
)
def test_broken_write_is_found(kind: str, log: Log, event: Event) -> None:
    """Acknowledged exactly once, unacknowledged at most once, in one block, under the returned numbers."""
    assert kinds(event, log=log) == [kind]


def test_blocks_torn_by_another_writer_are_found() -> None:
    """Concurrent writes of one conversation are stored one after the other, each as a whole."""
    log = stored("a1", "b", "a2")
    assert "lost" in kinds(Append("x", ("a1", "a2"), 0.0), Append("x", ("b",), 0.0), log=log)


def test_write_before_one_that_was_acknowledged_earlier_is_found() -> None:
    """If one write ended before the other began, its messages have the lower numbers."""
    log = stored("b", "a")
    first = Append("x", ("a",), 0.0, (Ack(1.0, "d", 2, 2),))
    assert kinds(first, Append("x", ("b",), 2.0, (Ack(3.0, "d", 1, 1),)), log=log) == ["order"]
    assert kinds(first, Append("x", ("b",), 2.0), log=log) == ["order"]
    assert kinds(first, Append("x", ("b",), 0.5), log=log) == []


@pytest.mark.parametrize(
    "read",
    [
        page(7.0, 5, contents=("a1", "a2", "b1", "q", "answer 1 to q", "c2")),
        page(7.0, 5, seqs=(1, 2, 3, 4, 6, 7)),
        page(7.0, 5, seqs=(1, 2, 3, 4, 5), contents=("a1", "a2", "b1", "q", "answer 1 to q")),
        page(7.0, 5, limit=2),
        page(7.0, 5, next_before_seq=1),
        page(7.0, 5, limit=2, seqs=(5, 6), contents=("answer 1 to q", "c1"), next_before_seq=None),
        replace(page(7.0, 5), revision=9),
        replace(page(7.0, 5), revision=4),
    ],
)
def test_page_that_is_not_of_the_log_is_found(read: Read) -> None:
    """A page is exactly the newest messages at its revision: nothing else, no hole, no other number."""
    assert "content" in kinds(A, B, Q, C, ASKED, read)


def test_read_that_lacks_an_applied_change_is_found() -> None:
    """While Redis is reachable, a cached page is never stale."""
    assert kinds(*GOOD, page(3.0, 1)) == ["applied"]
    assert kinds(*GOOD, page(2.8, 1)) == []


def test_writes_that_redis_may_have_lost_are_only_bounded() -> None:
    """A crash of Redis may undo its last second, so earlier applies do not count."""
    assert kinds(*GOOD, page(3.5, 1), forgotten=[3.2]) == []
    assert kinds(*GOOD, page(3.5, 1), forgotten=[3.7]) == ["applied"]
    assert kinds(*GOOD, page(3.5, 1), forgotten=[2.0]) == ["applied"]


def test_daemon_that_lacks_its_own_write_is_found() -> None:
    """A daemon keeps the revisions that it could not apply to Redis."""
    assert kinds(A, B, Q, C, ASKED, page(3.5, 1, by="d2")) == ["own"]


@pytest.mark.parametrize("source", [B, page(2.9, 2), Listed("x", 2.5, 3.0, 3), Applied("x", 3.0, 2)])
def test_read_beyond_the_bound_is_found(source: Event) -> None:
    """A known change must be visible to every daemon after the bound."""
    others = [event for event in (A, C, ASKED) if event is not source]
    found = kinds(*others, replace(B, acks=()), source, page(5.2, 1), forgotten=[4.0], log=LOG)
    assert "bound" in found
    assert "bound" not in kinds(*others, replace(B, acks=()), source, page(4.9, 1), forgotten=[4.0], log=LOG)


def test_slack_is_allowed_beyond_the_bound() -> None:
    """The clocks of two processes differ by some microseconds."""
    assert kinds(A, B, Q, C, ASKED, page(5.1, 1), slack_s=0.2) == []


def test_older_page_or_list_that_lacks_anything_known_is_found() -> None:
    """Older pages and lists do not use the cache."""
    old = page(3.5, 1, before_seq=9)
    assert kinds(A, B, Q, C, ASKED, old) == ["direct"]
    assert kinds(A, B, Q, C, ASKED, Listed("x", 3.5, 3.6, 2)) == ["direct"]
    assert kinds(A, B, Q, C, ASKED, Listed("x", 2.5, 2.6, 2)) == []


def test_answer_older_than_it_says_is_found() -> None:
    """The stated age is correct, and within the limit for stale pages."""
    assert kinds(A, B, Q, C, ASKED, page(9.0, 1, stale_s=5.0)) == ["stale"]
    assert kinds(A, B, Q, C, ASKED, page(700.0, 1, stale_s=699.0)) == ["stale"]


@pytest.mark.parametrize(
    "asked",
    [
        Asked(("a1", "b1", "q")),
        Asked(("a1", "a2", "b1", "b1", "q")),
        Asked(("a2", "a1", "b1", "q")),
        Asked(("q",)),
        Asked(("a question that is not stored",)),
    ],
)
def test_wrong_prompt_of_a_model_is_found(asked: Asked) -> None:
    """A model receives the whole conversation before its question, once and in order."""
    assert kinds(A, B, Q, C, asked) == ["asked"]


def test_model_asked_more_often_than_the_client_is_found() -> None:
    """One request of a client is one request to the provider, unless the client repeats it."""
    assert kinds(A, B, Q, C, ASKED, ASKED) == ["asked"]
    assert kinds(A, B, replace(Q, attempts=2), C, ASKED, ASKED) == []
