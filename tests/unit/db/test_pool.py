"""Statements without an answer."""

from __future__ import annotations

import pytest

from exai.db.driver.pool import TICK_S, _final
from exai.db.driver.statements import load_statements
from exai.db.driver.translate import judge
from exai.errors import DatabaseUnavailable, DeadlineExceeded
from exai.resilience import with_deadline


@pytest.mark.parametrize(
    ("left_s", "told"), [(None, DatabaseUnavailable), (60.0, DatabaseUnavailable), (TICK_S / 2, DeadlineExceeded)]
)
async def test_a_read_after_its_deadline_fails_with_the_reason(left_s: float | None, told: type[Exception]) -> None:
    """Also when the timer that ended it was rounded, as uvloop's are."""
    verdict = judge(TimeoutError(), "sent")
    assert verdict is not None
    with with_deadline(left_s):
        assert type(_final(load_statements()["read_page"], verdict)) is told
