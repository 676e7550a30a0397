"""The number of statements in flight to a near and to a far database."""

from __future__ import annotations

import pytest

from exai.db.concurrency import WHOLE_CROWD, WINDOW_S, ConcurrencyLimit, NetworkFloor, PoolShare

NEAR_S, FAR_S = 0.0003, 0.02


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Batches:
    """A batcher as its limit sees it."""

    def __init__(self, limit: ConcurrencyLimit) -> None:
        self.limit, self.in_flight, self.looks = limit, 0, 0
        limit.attach(self)

    def look(self) -> None:
        self.looks += 1

    def send(self) -> int:
        """Send as many as may be sent, and return how many are in flight then."""
        while self.limit.may_send(self.in_flight):
            self.in_flight += 1
        return self.in_flight


def network(floor_s: float, clock: Clock | None = None) -> NetworkFloor:
    found = NetworkFloor(clock or Clock())
    found.observe(floor_s)
    return found


def limit(floor_s: float, size: int = 10, *, least: int = 1) -> ConcurrencyLimit:
    return ConcurrencyLimit(PoolShare(size, network(floor_s)), least=least)


def test_one_statement_goes_to_a_database_that_is_near() -> None:
    """However slow or busy the server is: only the quickest round trip counts."""
    found = network(NEAR_S)
    near = ConcurrencyLimit(PoolShare(10, found))
    for took_s in (0.0007, 0.02, 0.4):
        found.observe(took_s)
        assert near.at_once == 1, took_s


@pytest.mark.parametrize(("floor_s", "at_once"), [(0, 1), (0.0009, 1), (0.0015, 2), (0.0042, 5), (0.02, 7), (1, 7)])
def test_the_farther_the_database_the_more_are_in_flight(floor_s: float, at_once: int) -> None:
    """As many as are in transit while the server works on one; never more than the share of the pool."""
    assert limit(floor_s).at_once == at_once


def test_some_want_more_than_one_in_flight_in_any_case() -> None:
    """But no more than they may have."""
    assert limit(NEAR_S, least=2).at_once == 2
    assert limit(0.0042, least=2).at_once == 5
    assert limit(NEAR_S, 2, least=2).at_once == 1


def test_a_crowd_is_halved() -> None:
    """So that server and process work at the same time. At even intervals, callers do not return together."""
    assert limit(NEAR_S).batch_size(40) == 20
    assert limit(NEAR_S).batch_size(10) == WHOLE_CROWD
    assert limit(FAR_S).batch_size(40) == 40


def test_statements_to_a_far_database_are_sent_at_even_intervals() -> None:
    """The first two at once; then places become free as fast as they are taken."""
    clock = Clock()
    far = ConcurrencyLimit(PoolShare(10, network(0.021)), clock=clock)
    for in_flight, pause_s in ((0, 0), (1, 0), (2, 0.003), (6, 0.003)):
        far.note_start()
        assert max(far.pause_s(in_flight), 0) == pytest.approx(pause_s)
        clock.now += 0.002
        assert max(far.pause_s(in_flight), 0) == pytest.approx(max(pause_s - 0.002, 0))
        clock.now += 0.001
        assert far.pause_s(in_flight) <= 1e-9


@pytest.mark.parametrize("floor_s", [0, NEAR_S, 0.0042, 0.013])
def test_short_intervals_are_not_kept(floor_s: float) -> None:
    """A timer would last longer."""
    near = limit(floor_s)
    near.note_start()
    assert [near.pause_s(in_flight) for in_flight in range(7)] == [0] * 7


@pytest.mark.parametrize("size", range(1, 10))
def test_a_statement_is_delayed_by_a_small_part_of_a_round_trip(size: int) -> None:
    """Also with few places, whose even intervals would be long."""
    far = limit(0.1, size)
    far.note_start()
    assert max(far.pause_s(in_flight) for in_flight in range(far.at_once)) <= 0.1 / 7


def test_an_answer_in_transit_is_not_taken_for_one_that_hangs() -> None:
    assert limit(0.08).max_wait_s() > 0.08


def test_a_database_that_has_moved_away_is_noticed() -> None:
    """The quickest is forgotten after a while; without statements nothing is."""
    clock = Clock()
    found = network(NEAR_S, clock)
    for _ in range(2):
        clock.now += WINDOW_S
        assert not found.is_far
        found.observe(FAR_S)
    assert found.is_far
    clock.now += 10 * WINDOW_S
    assert found.floor_s == FAR_S


@pytest.mark.parametrize("size", range(1, 40))
def test_a_part_of_the_pool_is_left_to_other_statements(size: int) -> None:
    """A quarter by statements to a near database, a connection by those to a far one, from a pool of four on."""
    for floor_s, left in ((NEAR_S, size // 4), (1.0, 1)):
        share = PoolShare(size, network(floor_s))
        one, other = (Batches(ConcurrencyLimit(share, least=size)) for _ in range(2))
        alone = one.send()
        assert alone == share.places
        assert other.send() >= 1
        assert one.in_flight + other.in_flight <= size - left or size < 4


def test_one_may_use_what_the_others_leave() -> None:
    """And has its own part of it when they do not."""
    share = PoolShare(12, network(NEAR_S))
    one, other = (Batches(ConcurrencyLimit(share, least=12)) for _ in range(2))
    assert (one.send(), other.send()) == (6, 3)
    one.in_flight -= 3
    assert (one.send(), other.send()) == (3, 3)
    one.in_flight = 0
    assert (other.send(), one.send()) == (6, 3)


def test_the_end_of_one_lets_all_look() -> None:
    """Another batcher may have waited for the place."""
    share = PoolShare(12, network(NEAR_S))
    one, other = (Batches(ConcurrencyLimit(share)) for _ in range(2))
    one.limit.note_end()
    assert (one.looks, other.looks) == (1, 1)
