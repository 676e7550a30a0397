"""What a process remembers of changes that Redis was not told of."""

from __future__ import annotations

from exai.cache.min_revisions import MAX_FLOORS, Floors


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_change_is_remembered_for_the_bound() -> None:
    """After that the licence has run out or covers it."""
    clock = Clock()
    floors: Floors[str] = Floors(2.0, clock=clock)
    floors.note("a", 7)
    assert (floors.least("a"), floors.least("b")) == (7, 0)
    clock.now_s += 1.999
    assert floors.least("a") == 7
    clock.now_s += 0.001
    assert (floors.least("a"), len(floors)) == (0, 0)


def test_newest_revision_counts_and_its_time_begins_anew() -> None:
    """Two changes in a row, told out of order."""
    clock = Clock()
    floors: Floors[str] = Floors(2.0, clock=clock)
    floors.note("a", 7)
    clock.now_s += 1.5
    floors.note("a", 6)
    clock.now_s += 1.5
    assert floors.least("a") == 7


def test_more_than_can_be_remembered_closes_the_cache_for_the_bound() -> None:
    """Memory is bounded, and the promise holds all the same."""
    clock = Clock()
    floors: Floors[int] = Floors(2.0, clock=clock)
    for number in range(MAX_FLOORS + 1):
        floors.note(number, 1)
    assert (floors.least(MAX_FLOORS), floors.least(-1), len(floors)) == (None, None, MAX_FLOORS)
    clock.now_s += 2.0
    floors.note(-1, 3)
    assert (floors.least(0), floors.least(-1), len(floors)) == (0, 3, 1)
