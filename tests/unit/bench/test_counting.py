"""The counting of round trips, from bytes alone."""

from __future__ import annotations

import struct
from itertools import pairwise

import hiredis
from hypothesis import given
from hypothesis import strategies as st

from exai.bench.proxy.counting import Count, Counter, PostgresCounter, RedisCounter, digest

STARTUP = struct.pack("!II", 8, 196608)
OWN = "select 'the service itself'"


def message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


READY = message(b"Z", b"I")


def statement(text: str) -> bytes:
    """Parse, Bind, Execute and Sync of an unnamed statement, as the service sends them."""
    return (
        message(b"P", b"\0" + text.encode() + b"\0\0\0")
        + message(b"B", b"\0\0" + bytes(6))
        + message(b"E", b"\0" + bytes(4))
        + message(b"S")
    )


def command(*words: str | bytes) -> bytes:
    packed: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]
    return packed


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    return [data[start:end] for start, end in pairwise(places)]


def connected(count: Count) -> PostgresCounter:
    counter = PostgresCounter(count, [digest(OWN.encode())])
    counter.sent(STARTUP)
    counter.received(message(b"R", bytes(4)) + READY)
    return counter


def converse(counter: Counter, requests: list[bytes], cuts: list[int]) -> None:
    for request in requests:
        for piece in pieces(request, cuts):
            counter.sent(piece)
        counter.received(b"answer")


@given(st.lists(st.integers(0, 200)))
def test_a_statement_is_one_round_trip_however_its_bytes_arrive(cuts: list[int]) -> None:
    """Networks cut where they like."""
    count = Count()
    converse(connected(count), [statement("select 1"), statement("select 2")], cuts)
    assert (count.requests, count.round_trips) == (2, 2)


def test_preparing_first_is_a_round_trip_and_not_a_statement() -> None:
    """Drivers do so by default, and the count shows it."""
    count = Count()
    prepare = message(b"P", b"s1\0select 1\0\0\0") + message(b"D", b"Ss1\0") + message(b"S")
    execute = message(b"B", b"\0s1\0" + bytes(6)) + message(b"E", b"\0" + bytes(4)) + message(b"S")
    converse(connected(count), [prepare, execute, execute], [])
    assert (count.requests, count.round_trips) == (2, 3)


def test_simple_queries_are_counted() -> None:
    """Transactions and resets come as simple queries."""
    count = Count()
    converse(connected(count), [message(b"Q", b"begin\0"), message(b"Q", b"commit\0"), message(b"X")], [])
    assert (count.requests, count.round_trips) == (2, 2)


def test_connecting_is_not_counted() -> None:
    """A pool pays it once."""
    count = Count()
    counter = PostgresCounter(count, [])
    counter.sent(STARTUP)
    counter.received(message(b"R", struct.pack("!I", 10)))
    counter.sent(message(b"p", b"scram"))
    counter.received(READY)
    assert (count.requests, count.round_trips) == (0, 0)


def test_background_statements_are_not_counted() -> None:
    """A reconciliation that happens to fall into an operation is not the operation's cost."""
    count = Count()
    converse(connected(count), [statement(OWN), statement("select 1"), statement(OWN)], [])
    assert (count.requests, count.round_trips) == (1, 1)


@given(st.lists(st.integers(0, 400)), st.binary(max_size=200))
def test_a_command_is_one_round_trip_however_its_bytes_arrive(cuts: list[int], value: bytes) -> None:
    """Values hold any bytes, also those that end lines."""
    count = Count()
    converse(RedisCounter(count, []), [command("SET", "key", value), command("GET", "key")], cuts)
    assert (count.requests, count.round_trips) == (2, 2)


def test_commands_sent_together_are_one_round_trip() -> None:
    """Pipelines wait once."""
    count = Count()
    converse(RedisCounter(count, []), [command("GET", "a") + command("GET", "b")], [])
    assert (count.requests, count.round_trips) == (2, 1)


def test_background_commands_are_not_counted() -> None:
    """Neither alone nor in one write with an operation's command."""
    count = Count()
    counter = RedisCounter(count, ["TIME", "f00d"])
    converse(counter, [command("TIME"), command("EVALSHA", "f00d", "0") + command("GET", "a")], [])
    assert (count.requests, count.round_trips) == (1, 1)
