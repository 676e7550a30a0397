"""When the findings of the page are examined again, and who sees which."""

from __future__ import annotations

import asyncio

from exai.background import open_background
from exai.daemon.examination import ILL_S, SETTLING_S, WELL_S, Examination
from exai.models import Finding
from exai.monitoring.health import Component, Health, Probed
from exai.monitoring.metrics import MetricsRecorder
from tests.support.waiting import wait_until

OK = Finding("redis", "ok", "works")
SLOW = Finding("redis", "warn", "none is configured", "Set EXAI_CACHE__URL")
FULL = Finding("data directory", "fail", "/srv/exai cannot be written", "Set EXAI_DATA_DIR")


class Rig:
    """An examination whose clock and results the test sets."""

    def __init__(self) -> None:
        self.now = 0.0
        self.found: list[Finding] = [OK]
        self.error: Exception | None = None
        self.examined = 0
        self.state = Probed("ok")
        self.health = Health([Component("cache", self._probe)], recorder=MetricsRecorder())

    async def _probe(self) -> Probed:
        return self.state

    async def examine(self) -> list[Finding]:
        self.examined += 1
        if self.error is not None:
            raise self.error
        return self.found


async def test_findings_are_examined_while_they_are_read_and_seldom_if_all_is_well() -> None:
    """Any number of readers costs one examination an hour, or one a minute while something is wrong."""
    rig = Rig()
    await rig.health.probe_all()
    async with open_background() as background:
        examination = Examination(rig.examine, rig.health, background, is_shared=False, clock=lambda: rig.now)

        async def read() -> list[Finding]:
            before = rig.examined
            found = [*examination.problems()]
            await asyncio.sleep(0)
            if rig.examined > before:
                await wait_until(lambda: not examination._is_running)
            return found

        for _ in range(10):
            assert await read() == []
        assert rig.examined == 1, "what is well is no problem"
        rig.now += WELL_S - 1
        await read()
        assert rig.examined == 1
        rig.state, rig.found = Probed("degraded"), [OK, SLOW, FULL]
        await rig.health.probe_all()
        await read()
        assert rig.examined == 2, "a part has entered another state"
        assert await read() == [SLOW, FULL]
        rig.now += SETTLING_S
        await read()
        assert rig.examined == 2
        rig.now += ILL_S
        await read()
        assert rig.examined == 3
        rig.error = RuntimeError("a defect")
        rig.now += ILL_S
        await read()
        (finding,) = await read()
        assert (finding.part, finding.state, "a defect" in finding.detail) == ("doctor", "warn", True)


async def test_one_of_several_owners_sees_what_health_shows() -> None:
    """The operator's directories and settings are not among it."""
    rig = Rig()
    rig.found = [SLOW, FULL]
    await rig.health.probe_all()
    async with open_background() as background:
        examination = Examination(rig.examine, rig.health, background, is_shared=True, clock=lambda: rig.now)
        examination.problems()
        await wait_until(lambda: bool(examination.problems()))
        assert examination.problems() == (SLOW,)
