"""How many statements for several appends are under way at once."""

from __future__ import annotations

from exai.db.grouping import WINDOW, _Pace


def test_one_statement_goes_to_a_database_that_is_near() -> None:
    """However busy it is: what counts is how quickly it can answer."""
    pace = _Pace(5)
    assert pace.at_once == 1
    for took_s in (0.4, 0.0007, 0.02, 0.3):
        pace.saw(took_s)
    assert pace.at_once == 1


def test_the_farther_the_database_the_more_are_under_way() -> None:
    """So that none waits for long until the next one goes; never more than a share of the pool."""
    for took_s, at_once in ((0.0019, 1), (0.0055, 3), (0.009, 5), (0.1, 5)):
        pace = _Pace(5)
        pace.saw(took_s)
        assert pace.at_once == at_once, took_s


def test_a_database_that_has_moved_away_is_noticed() -> None:
    """What was quickest is forgotten after a while."""
    pace = _Pace(5)
    pace.saw(0.0007)
    for _ in range(2 * WINDOW):
        pace.saw(0.0055)
    assert pace.at_once == 3
