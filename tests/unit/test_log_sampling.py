"""Which lines of requests are logged."""

from __future__ import annotations

from typing import Any

from exai.log_sampling import AFTER_ERROR_S, LogSampling


class Clock:
    at = 1_000.0

    def __call__(self) -> float:
        return self.at


def lines(number: int) -> list[dict[str, Any]]:
    return [{"request": str(each)} for each in range(number)]


def test_everything_is_logged_by_default() -> None:
    """The same list, without a copy."""
    given = lines(3)
    assert LogSampling(1.0).select(given, is_error=False) is given


def test_a_share_is_logged_and_the_rest_is_counted() -> None:
    """For all sizes of the groups."""
    sampling = LogSampling(0.1, Clock())
    logged = [line for size in (1, 7, 30, 2, 60) * 4 for line in sampling.select(lines(size), is_error=False)]
    assert len(logged) == 40
    assert sum(line.get("left_out", 0) for line in logged) + len(logged) == 400


def test_after_an_error_everything_is_logged_for_a_while() -> None:
    """The error itself first, with the number of lines that are missing before it."""
    clock = Clock()
    sampling = LogSampling(0.0, clock)
    assert sampling.select(lines(50), is_error=False) == []
    failed = sampling.select(lines(1), is_error=True)
    assert failed == [{"request": "0", "left_out": 50}]
    clock.at += AFTER_ERROR_S - 1
    assert len(sampling.select(lines(5), is_error=False)) == 5
    clock.at += 1
    assert sampling.select(lines(5), is_error=False) == []
