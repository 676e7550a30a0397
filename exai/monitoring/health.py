"""The health of every component, from background probes; reading it never probes anything.

Invariant: a report is at most one interval and one probe timeout old, and readiness changes only after
several consecutive probes, so that one lost packet does not remove a daemon from its load balancer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from exai.background import running
from exai.errors import ExaiError
from exai.models import Recorder

PROBE_INTERVAL_S = 5.0
PROBE_TIMEOUT_S = 2.0
READINESS_CHANGES_AFTER = 3

HealthState = Literal["ok", "degraded", "down", "off"]


@dataclass(frozen=True, slots=True)
class Probed:
    """The result of a probe. `degraded` works with a loss, `off` is not configured; raising also means `down`."""

    state: HealthState
    detail: str = ""
    latency_s: float | None = None
    """Set if the result is that of an earlier question."""


Probe = Callable[[], Awaitable[Probed]]
OnChange = Callable[[str, str, str, str], None]
"""Called when a component enters another state, with its name, the state, the one before and the detail."""


@dataclass(frozen=True, slots=True)
class Component:
    """A probed component. Without a `required` component the daemon cannot serve and is not ready."""

    name: str
    probe: Probe
    required: bool = False


@dataclass(frozen=True, slots=True)
class ComponentHealth:
    """The state of a component at its last probe; `since` is when it entered this state."""

    name: str
    required: bool
    state: HealthState
    latency_ms: float | None
    detail: str
    since: datetime


@dataclass(frozen=True, slots=True)
class HealthReport:
    """The state of all components; `age_s` is the time since their probes, None before the first."""

    state: Literal["ok", "degraded", "down"]
    ready: bool
    accepting: bool
    uptime_s: float
    age_s: float | None
    components: tuple[ComponentHealth, ...]

    def as_json(self, *, with_details: bool = True) -> dict[str, Any]:
        """Return the report as `GET /health` and `exai health --format json` show it.

        Details name hosts and quote errors, which only the operator may see.
        """
        return {
            "status": self.state,
            "ready": self.ready,
            "accepting": self.accepting,
            "uptime_s": round(self.uptime_s, 1),
            "age_s": None if self.age_s is None else round(self.age_s, 1),
            "components": {
                each.name: {
                    "state": each.state,
                    "required": each.required,
                    "latency_ms": None if each.latency_ms is None else round(each.latency_ms, 2),
                    "detail": each.detail if with_details else "",
                    "since": each.since.isoformat(timespec="seconds"),
                }
                for each in self.components
            },
        }


class Health:
    """Holds the latest report; `run` is its background task."""

    def __init__(
        self,
        components: Sequence[Component],
        *,
        recorder: Recorder,
        on_change: OnChange | None = None,
        timeout_s: float = PROBE_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._components = tuple(components)
        self._recorder, self._on_change = recorder, on_change
        self._timeout_s = timeout_s
        self._clock, self._now = clock, now
        self._started = clock()
        self._probed_at: float | None = None
        self._usable: bool | None = None
        self._contrary = 0
        self._accepting = True
        self._health = {
            each.name: ComponentHealth(each.name, each.required, "down", None, "not probed yet", now())
            for each in self._components
        }

    @property
    def ready(self) -> bool:
        """Return whether new work should be sent to this process."""
        return self._accepting and bool(self._usable)

    def stop_accepting(self) -> None:
        """Report not ready from now on. This is the first step of a shutdown and waits for nothing."""
        self._accepting = False

    def report(self) -> HealthReport:
        """Return the results of the last probes."""
        components = tuple(self._health.values())
        states = {each.state for each in components}
        if any(each.required and each.state == "down" for each in components):
            state: Literal["ok", "degraded", "down"] = "down"
        else:
            state = "degraded" if states & {"down", "degraded"} else "ok"
        now = self._clock()
        age_s = None if self._probed_at is None else now - self._probed_at
        return HealthReport(state, self.ready, self._accepting, now - self._started, age_s, components)

    async def probe_all(self) -> None:
        """Probe every component concurrently, each within the timeout, and update readiness."""
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._probe(component), name=f"probe {component.name}")
                for component in self._components
            ]
        found = [task.result() for task in tasks]
        for health in found:
            before = self._health[health.name]
            same = before.state == health.state and self._probed_at is not None
            self._health[health.name] = replace(health, since=before.since) if same else health
            if before.state != health.state and self._probed_at is not None and self._on_change is not None:
                self._on_change(health.name, health.state, before.state, health.detail)
        self._probed_at = self._clock()
        self._conclude(all(each.state != "down" for each in found if each.required))

    async def run(self, interval_s: float = PROBE_INTERVAL_S) -> None:
        """Probe until cancelled."""
        while True:
            await asyncio.sleep(interval_s)
            await self.probe_all()

    def _conclude(self, usable: bool) -> None:
        """Update readiness: immediately the first time, later only after several consecutive contrary results."""
        self._contrary = 0 if usable == self._usable else self._contrary + 1
        if self._usable is None or self._contrary >= READINESS_CHANGES_AFTER:
            self._usable, self._contrary = usable, 0

    async def _probe(self, component: Component) -> ComponentHealth:
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout_s):
                probed = await component.probe()
        except TimeoutError:
            probed = Probed("down", f"no answer within {self._timeout_s:g} s")
        except ExaiError as error:
            probed = Probed("down", str(error))
        except Exception as error:  # noqa: BLE001 - the probe failed; its text is omitted, since it may hold an address
            probed = Probed("down", type(error).__name__)
        elapsed_s = time.perf_counter() - started
        asked_s = elapsed_s if probed.latency_s is None else probed.latency_s
        latency_ms = None if probed.state == "off" else asked_s * 1000
        if probed.state != "off":
            self._recorder.gauge("component_up", probed.state != "down", component=component.name)
            self._recorder.observe("component_probe_seconds", elapsed_s, component=component.name)
        return ComponentHealth(component.name, component.required, probed.state, latency_ms, probed.detail, self._now())


@asynccontextmanager
async def open_health(
    components: Sequence[Component],
    *,
    recorder: Recorder,
    interval_s: float = PROBE_INTERVAL_S,
    on_change: OnChange | None = None,
) -> AsyncIterator[Health]:
    """Probe once, then in the background until the block ends; a failure of the background task ends the block."""
    health = Health(components, recorder=recorder, on_change=on_change)
    await health.probe_all()
    async with running("health probes", health.run(interval_s)):
        yield health
