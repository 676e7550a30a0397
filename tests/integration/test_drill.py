"""`exai drill breaker`: what it shows, and that it leaves nothing."""

from __future__ import annotations

import argparse
import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from exai.cli import drill
from exai.cli.drill import CALLS, CROWD, MOST_FAILURES, DrillStep, drill_breaker
from exai.providers.base import Clocks
from exai.resilience import WINDOW_S

STATES = ["closed", "open", "open", "open", "closed", "closed"]


class Moved:
    """A clock that sleeping moves."""

    def __init__(self) -> None:
        self.now = 1_000.0

    async def sleep(self, duration_s: float) -> None:
        self.now += duration_s
        await asyncio.sleep(0)

    @property
    def clocks(self) -> Clocks:
        now = datetime(2026, 11, 21, tzinfo=UTC)
        return Clocks(monotonic=lambda: self.now, now=lambda: now, sleep=self.sleep, rand=lambda: 0.5)


async def test_the_breaker_goes_through_its_states_with_these_figures() -> None:
    """Closed, open, half open and open again for longer, half open and closed; refusals reach no provider."""
    steps = [step async for step in drill_breaker(Moved().clocks)]
    assert all(step.is_as_promised for step in steps), steps
    assert [step.state for step in steps] == STATES
    counts = [(step.answered, step.failed, step.refused, step.reached_provider) for step in steps]
    failures = steps[1].failed
    assert 0 < failures < MOST_FAILURES
    assert counts == [
        (CALLS, 0, 0, CALLS),
        (0, failures, 0, failures),
        (0, 0, CROWD, 0),
        (0, 1, CROWD - 1, 1),
        (1, 0, CROWD - 1, 1),
        (CALLS, 0, 0, CALLS),
    ]
    first_s, second_s = steps[3].waited_s, steps[4].waited_s
    assert (round(first_s), round(second_s)) == (5, 10)
    assert all(step.median_refusal_ms is not None for step in steps[2:5])


async def test_a_breaker_that_does_not_open_fails_the_drill() -> None:
    """The drill judges what it sees: on a clock in leaps no two failures are recent, so the breaker stays closed."""
    clock = Moved()

    def leap() -> float:
        clock.now += WINDOW_S + 1
        return clock.now

    steps = [step async for step in drill_breaker(replace(clock.clocks, monotonic=leap))]
    assert [(step.is_as_promised, step.state) for step in steps] == [(True, "closed"), (False, "closed")]
    assert steps[1].failed == MOST_FAILURES


@pytest.mark.parametrize("format_", ["text", "json"])
def test_the_command_prints_each_step_and_leaves_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, format_: str
) -> None:
    """It needs no settings, and starts no servers."""
    monkeypatch.setenv("EXAI_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    assert drill.breaker(argparse.Namespace(format=format_), Moved().clocks) == 0
    out = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    if format_ == "json":
        found = json.loads(out)
        assert found["passed"]
        assert [DrillStep(**each).state for each in found["steps"]] == STATES
    else:
        lines = out.splitlines()
        assert all(line.startswith("PASS  ") for line in lines)
        assert "it is not asked" in lines[2]
        assert "open        0 answered, 0 failed, 20 refused; 0 reached the provider; a refusal takes " in lines[2]
