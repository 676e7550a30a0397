"""Ranges of durations, by which they are counted, and the quantiles that such counts give.

Invariant: `SECONDS_BOUNDS` never changes, because stored sums count by position.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Final

SECONDS_BOUNDS: Final = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    120.0,
    300.0,
    600.0,
)
"""Upper bounds, inclusive, from a cached read to the longest answer of a model; the last range has none."""

SHORT_BOUNDS: Final = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)
"""Upper bounds for statements, commands and other waits that end within seconds."""


def counted(values: Iterable[float]) -> list[int]:
    """Return how many of the values are in each range."""
    counts = [0] * (len(SECONDS_BOUNDS) + 1)
    for value in values:
        counts[bisect_left(SECONDS_BOUNDS, value)] += 1
    return counts


def quantile(counts: Sequence[int], share: float, most: float | None = None) -> float | None:
    """Return the value below which this share of the counted values lies, None without values.

    Values are taken as evenly spread within their range. `most` is the greatest value, if it is known.
    """
    total = sum(counts)
    if not total:
        return None
    rank, below = share * total, 0
    for place, count in enumerate(counts):
        if count and below + count >= rank:
            low = SECONDS_BOUNDS[place - 1] if place else 0.0
            high = SECONDS_BOUNDS[place] if place < len(SECONDS_BOUNDS) else most or low
            found = low + (high - low) * max(rank - below, 0) / count
            return found if most is None else min(found, most)
        below += count
    return most
