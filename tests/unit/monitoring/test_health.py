"""Health: probed in the background, bounded, and slow to change its mind about readiness."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from exai.errors import DatabaseUnavailable
from exai.monitoring.health import READINESS_CHANGES_AFTER, Component, Health, Probed, open_health
from exai.monitoring.metrics import MetricsRecorder


class Dial:
    """A probe whose finding the test sets."""

    def __init__(self, state: str = "ok", detail: str = "") -> None:
        self.state, self.detail = state, detail
        self.calls = 0

    async def __call__(self) -> Probed:
        self.calls += 1
        return Probed(self.state, self.detail)  # type: ignore[arg-type]


class Time:
    def __init__(self) -> None:
        self.s = 0.0

    def clock(self) -> float:
        return self.s

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.s)


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def health_of(time: Time) -> Callable[..., Health]:
    def build(**probes: object) -> Health:
        components = [
            Component(name, probe, required=name == "database")  # type: ignore[arg-type]
            for name, probe in probes.items()
        ]
        return Health(components, recorder=MetricsRecorder(), timeout_s=0.05, clock=time.clock, now=time.now)

    return build


async def test_before_the_first_probe_nothing_is_claimed(health_of: Callable[..., Health]) -> None:
    """Design: a component is unknown until its first probe."""
    report = health_of(database=Dial()).report()
    assert (report.state, report.ready, report.age_s) == ("down", False, None)
    assert report.components[0].detail == "not probed yet"


async def test_all_components_working_is_ok_and_ready_at_once(health_of: Callable[..., Health]) -> None:
    """A start must not wait for the hysteresis."""
    health = health_of(database=Dial(detail="Postgres 18"), redis=Dial())
    await health.probe_all()
    report = health.report()
    assert (report.state, report.ready) == ("ok", True)
    assert report.components[0].detail == "Postgres 18"
    assert report.components[0].latency_ms is not None


@pytest.mark.parametrize(("redis", "state"), [("down", "degraded"), ("degraded", "degraded"), ("off", "ok")])
async def test_optional_component_degrades_but_leaves_ready(
    health_of: Callable[..., Health], redis: str, state: str
) -> None:
    """Facts on monitoring: report degraded Redis as ready."""
    health = health_of(database=Dial(), redis=Dial(redis))
    await health.probe_all()
    assert (health.report().state, health.ready) == (state, True)


async def test_component_that_is_off_has_no_latency(health_of: Callable[..., Health]) -> None:
    """There is nothing whose latency it would be."""
    health = health_of(redis=Dial("off", "EXAI_CACHE__URL=off"))
    await health.probe_all()
    assert health.report().components[0].latency_ms is None


async def test_readiness_falls_and_rises_only_after_findings_in_a_row(health_of: Callable[..., Health]) -> None:
    """Facts on monitoring: a hysteresis of 3, so that one lost packet moves no traffic."""
    database = Dial()
    health = health_of(database=database)
    await health.probe_all()
    for state, expected in (("down", False), ("ok", True)):
        database.state = state
        for _ in range(READINESS_CHANGES_AFTER - 1):
            await health.probe_all()
            assert health.ready is not expected
        await health.probe_all()
        assert health.ready is expected


async def test_one_contrary_finding_starts_the_count_again(health_of: Callable[..., Health]) -> None:
    """In a row means in a row: a flapping component is not two outages in one."""
    database = Dial()
    health = health_of(database=database)
    for state in ("ok", "down", "down", "ok", "down", "down"):
        database.state = state
        await health.probe_all()
    assert health.ready
    assert health.report().state == "down"


async def test_stopping_is_not_ready_at_once(health_of: Callable[..., Health]) -> None:
    """Style, shutdown: not ready comes first, and no probe brings it back."""
    health = health_of(database=Dial())
    await health.probe_all()
    health.stop_accepting()
    assert not health.ready
    await health.probe_all()
    assert (health.ready, health.report().accepting, health.report().state) == (False, False, "ok")


async def test_probe_that_hangs_is_down_and_holds_up_no_other(health_of: Callable[..., Health]) -> None:
    """Every wait has a limit."""

    async def hang() -> Probed:
        await asyncio.Event().wait()
        raise AssertionError

    health = health_of(redis=hang, database=Dial())
    await health.probe_all()
    redis, database = health.report().components
    assert (redis.state, redis.detail) == ("down", "no answer within 0.05 s")
    assert database.state == "ok"


async def test_own_errors_are_shown_and_foreign_ones_only_by_name(health_of: Callable[..., Health]) -> None:
    """Our errors hold no passwords; a driver's text may quote an address."""

    async def refused() -> Probed:
        raise DatabaseUnavailable("database", "connection refused", "Is it running?")

    async def foreign() -> Probed:
        raise OSError("postgres://u:pa55word@h/d")

    health = health_of(database=refused, redis=foreign)
    await health.probe_all()
    database, redis = health.report().components
    assert database.detail == "database: connection refused. Is it running?"
    assert redis.detail == "OSError"


async def test_since_is_when_the_state_was_entered(health_of: Callable[..., Health], time: Time) -> None:
    """How long it has been down is the first thing to know."""
    database = Dial()
    health = health_of(database=database)
    await health.probe_all()
    time.s = 10
    await health.probe_all()
    assert health.report().components[0].since == time.now() - timedelta(seconds=10)
    database.state, time.s = "down", 20
    await health.probe_all()
    time.s = 27
    assert health.report().components[0].since == time.now() - timedelta(seconds=7)
    assert (health.report().age_s, health.report().uptime_s) == (7, 27)


async def test_probes_repeat_in_the_background_until_the_block_ends() -> None:
    """Facts on monitoring: cached probes, never probing on request."""
    again = asyncio.Event()

    async def probe() -> Probed:
        if health_is_open:
            again.set()
        return Probed("ok")

    health_is_open = False
    recorder = MetricsRecorder()
    async with open_health([Component("database", probe, required=True)], recorder=recorder, interval_s=0) as health:
        assert health.ready
        health_is_open = True
        await asyncio.wait_for(again.wait(), 5)
    assert recorder.value("component_up", component="database") == 1
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "health probes"]


async def test_error_inside_the_block_leaves_it_as_it_was_raised() -> None:
    """Users of the library catch NotFound, not a group with a NotFound in it."""
    with pytest.raises(LookupError):
        async with open_health([], recorder=MetricsRecorder()):
            raise LookupError


async def test_defect_of_the_background_task_ends_the_block() -> None:
    """Style: a side task that dies ends the process, it does not leave an old report standing."""

    class Broken(MetricsRecorder):
        armed = False

        def gauge(self, name: str, value: float, /, **labels: str) -> None:
            if self.armed:
                raise ZeroDivisionError

    recorder = Broken()
    with pytest.raises(ExceptionGroup) as caught:
        async with open_health([Component("redis", Dial())], recorder=recorder, interval_s=0):
            recorder.armed = True
            await asyncio.wait_for(asyncio.Event().wait(), 5)
    assert caught.group_contains(ZeroDivisionError)
