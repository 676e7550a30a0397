"""The findings of `exai doctor` for the page: examined while a page is open, and not for each page.

Invariant: reading the findings waits for nothing. An examination runs in a thread of its own, because loading
certificates would hold up the requests of the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from exai.background import Background
from exai.doctor import LOOKS, examine
from exai.logs import redact_text
from exai.models import Finding
from exai.monitoring.health import Health
from exai.monitoring.metrics import MetricsRecorder
from exai.resilience import Clock
from exai.settings.load import Settings

WELL_S: Final = 3_600.0
ILL_S: Final = 60.0
"""Age up to which findings are shown while every part works, and while one does not."""

SETTLING_S: Final = 5.0
"""Least time between two examinations, for parts that fail one after the other."""

OF_ALL_OWNERS: Final = ("postgres", "redis", "files", "provider", "migration")
"""Parts that every owner may see, since health shows them, too; the others are the operator's."""

Examine = Callable[[], Awaitable[list[Finding]]]


class Examination:
    """The newest findings, and when they are due again."""

    def __init__(
        self, examine_now: Examine, health: Health, background: Background, *, is_shared: bool, clock: Clock
    ) -> None:
        self._examine, self._health, self._background = examine_now, health, background
        self._is_shared, self._clock = is_shared, clock
        self._problems: tuple[Finding, ...] = ()
        self._examined: tuple[float, frozenset[tuple[str, str]]] | None = None
        self._is_running = False

    def problems(self) -> Sequence[Finding]:
        """Return what the newest examination has found that is not well; start another one if it is due."""
        if not self._is_running and self._is_due():
            self._is_running = True
            self._background.start("page examination", self._run())
        return self._problems

    def _is_due(self) -> bool:
        if self._examined is None:
            return True
        at, states = self._examined
        age_s = self._clock() - at
        if states != self._states():
            return age_s >= SETTLING_S
        return age_s >= (WELL_S if self._health.report().state == "ok" and not self._problems else ILL_S)

    def _states(self) -> frozenset[tuple[str, str]]:
        return frozenset((each.name, each.state) for each in self._health.report().components)

    async def _run(self) -> None:
        states = self._states()
        try:
            found = await self._examine()
        except Exception as error:  # noqa: BLE001 - a failing examination must not end the daemon
            found = [Finding("doctor", "warn", redact_text(f"could not examine: {type(error).__name__}: {error}"))]
        finally:
            self._is_running = False
        self._examined = self._clock(), states
        self._problems = tuple(each for each in found if each.state in ("fail", "warn") and self._may_be_seen(each))

    def _may_be_seen(self, finding: Finding) -> bool:
        return not self._is_shared or finding.part.startswith(OF_ALL_OWNERS)


def examination(settings: Settings, health: Health, background: Background) -> Examination:
    """Return the examination of a daemon with these settings."""

    async def examine_in_thread() -> list[Finding]:
        return await _in_thread(lambda: asyncio.run(examine(settings, MetricsRecorder(), LOOKS)))

    is_shared = bool(settings.server.tokens) or settings.server.jwt.is_on
    return Examination(examine_in_thread, health, background, is_shared=is_shared, clock=time.monotonic)


async def _in_thread(work: Callable[[], list[Finding]]) -> list[Finding]:
    """Run `work` in a thread that does not delay the end of the process."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[list[Finding]] = loop.create_future()

    def settle(found: list[Finding] | None, error: Exception | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(found or [])

    def run() -> None:
        found, failure = None, None
        try:
            found = work()
        except Exception as error:  # noqa: BLE001 - passed on to the waiting task
            failure = error
        # The loop may have ended meanwhile.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, found, failure)

    threading.Thread(target=run, name="exai examination", daemon=True).start()
    return await done
