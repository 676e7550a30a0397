"""Quantiles of counted durations."""

from __future__ import annotations

import random

import pytest

from exai.distribution import SECONDS_BOUNDS, counted, quantile


def test_a_value_is_counted_in_the_range_that_ends_at_it() -> None:
    """As Prometheus counts `le`."""
    assert counted([0.0005, 0.00051, 601.0])[:2] == [1, 1]
    assert counted([601.0])[-1] == 1
    assert len(counted([])) == len(SECONDS_BOUNDS) + 1


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.99])
def test_an_estimate_is_in_the_range_of_the_true_quantile(share: float) -> None:
    """For any values."""
    source = random.Random(7)
    values = sorted(source.expovariate(1) * 3 for _ in range(2000))
    found = quantile(counted(values), share)
    exact = values[int(share * len(values))]
    assert found is not None
    place = next(n for n, bound in enumerate(SECONDS_BOUNDS) if exact <= bound)
    assert SECONDS_BOUNDS[max(place - 2, 0)] <= found <= SECONDS_BOUNDS[place + 1]


def test_nothing_has_no_quantile_and_none_exceeds_the_greatest_value() -> None:
    """The last range has no bound of its own."""
    assert quantile(counted([]), 0.5) is None
    assert quantile(counted([900.0]), 0.5, 900.0) == pytest.approx(750.0)
    assert quantile(counted([0.3]), 0.99, 0.3) == 0.3
