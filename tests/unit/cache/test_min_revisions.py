"""Committed changes that are missing in Redis, remembered by the process."""

from __future__ import annotations

from exai.cache.min_revisions import MAX_REVISIONS, MinRevisions


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_change_is_remembered_for_the_bound() -> None:
    """After that the watermark has run out or covers it."""
    clock = Clock()
    revisions: MinRevisions[str] = MinRevisions(2.0, clock=clock)
    revisions.note("a", 7)
    assert (revisions.minimum("a"), revisions.minimum("b")) == (7, 0)
    clock.now_s += 1.999
    assert revisions.minimum("a") == 7
    clock.now_s += 0.001
    assert (revisions.minimum("a"), len(revisions)) == (0, 0)


def test_newest_revision_counts_and_its_time_begins_anew() -> None:
    """Two changes that are noted in the wrong order."""
    clock = Clock()
    revisions: MinRevisions[str] = MinRevisions(2.0, clock=clock)
    revisions.note("a", 7)
    clock.now_s += 1.5
    revisions.note("a", 6)
    clock.now_s += 1.5
    assert revisions.minimum("a") == 7


def test_more_than_can_be_remembered_closes_the_cache_for_the_bound() -> None:
    """Memory is limited, and the promise is kept."""
    clock = Clock()
    revisions: MinRevisions[int] = MinRevisions(2.0, clock=clock)
    for number in range(MAX_REVISIONS + 1):
        revisions.note(number, 1)
    assert (revisions.minimum(MAX_REVISIONS), revisions.minimum(-1), len(revisions)) == (None, None, MAX_REVISIONS)
    clock.now_s += 2.0
    revisions.note(-1, 3)
    assert (revisions.minimum(0), revisions.minimum(-1), len(revisions)) == (0, 3, 1)
