"""A blocked event loop is logged with the stack of the code that blocks it."""

from __future__ import annotations

import asyncio
import time

import pytest
from structlog.testing import capture_logs

from exai.monitoring.stalls import watch_loop
from tests.support.counters import Counters
from tests.support.waiting import WAIT_LIMIT_S, wait_until

AFTER_S = 0.05


def culprit(logged: list[object]) -> None:
    """Block the loop until that was noticed."""
    end = time.monotonic() + WAIT_LIMIT_S
    while not logged and time.monotonic() < end:
        time.sleep(AFTER_S / 5)


async def test_culprit_is_named_while_it_still_blocks() -> None:
    """Once per stall, and counted when the loop runs again."""
    recorder = Counters()
    with capture_logs() as logged:
        async with watch_loop(recorder, after_s=AFTER_S):
            culprit(logged)
            await wait_until(lambda: len(logged) > 1)
    assert [entry["event"] for entry in logged] == ["event_loop_stalled", "event_loop_runs_again"]
    inside = logged[0]["inside"]
    assert "culprit (" in inside
    assert __file__ in inside
    assert recorder["event_loop_stalls_total"] == 1


async def test_loop_that_is_merely_busy_is_not_reported() -> None:
    """It comes round in between."""
    with capture_logs() as logged:
        async with watch_loop(Counters(), after_s=5.0):
            for _ in range(1_000):
                await asyncio.sleep(0)
    assert logged == []


async def test_defect_of_the_loops_notes_ends_the_block() -> None:
    """Without notes every later second would be reported as a stall."""

    class Broken(Counters):
        def observe(self, name: str, value: float, /, **labels: str) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        async with asyncio.timeout(WAIT_LIMIT_S), watch_loop(Broken(), after_s=AFTER_S):
            await asyncio.Event().wait()
