"""Detects that the event loop is blocked, and logs the stack of the blocking code while it blocks.

Invariant: the loop itself only records the time. A thread compares that with the clock, and reads the stack of the
loop's thread if the last record is too old. Nothing here ends or interrupts the blocking call.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import structlog

from exai.background import running
from exai.models import Recorder

REPORT_AFTER_S: Final = 1.0
LOOKS: Final = 4
"""Number of times that the loop records the time, and the thread compares, within the reporting threshold."""

FRAMES: Final = 8
"""Number of innermost calls in a report; the outer ones are the same in every report."""

log = structlog.get_logger(__name__)


class _Watch:
    """The time last recorded by the loop, and the thread that compares it with the clock."""

    def __init__(self, recorder: Recorder, after_s: float) -> None:
        self._recorder, self._after_s, self._pause_s = recorder, after_s, after_s / LOOKS
        self._loop_thread = threading.get_ident()
        self._ended = threading.Event()
        self._reported = False
        self._noted_at = time.monotonic()
        recorder.count("event_loop_stalls_total", 0)

    async def note(self) -> None:
        """Record the time, and the lag of the loop, for as long as the loop runs."""
        self._recorder.observe("event_loop_lag_seconds", 0.0)
        while True:
            due = time.monotonic() + self._pause_s
            await asyncio.sleep(self._pause_s)
            self._noted_at = time.monotonic()
            late_s = max(0.0, self._noted_at - due)
            self._recorder.observe("event_loop_lag_seconds", late_s)
            if self._reported:
                self._reported = False
                self._recorder.count("event_loop_stalls_total")
                log.warning("event_loop_runs_again", stalled_s=round(late_s, 3))

    def compare(self) -> None:
        """Compare the recorded time with the clock periodically until `end`; runs in a thread of its own."""
        looked_at = time.monotonic()
        while not self._ended.wait(self._pause_s):
            now, before = time.monotonic(), looked_at
            looked_at = now
            # If this thread was not scheduled either, the whole process was suspended and no call in it is to blame.
            frozen = now - before > self._after_s
            if frozen or self._reported or now - self._noted_at <= self._after_s:
                continue
            self._reported = True
            log.warning("event_loop_stalled", for_s=round(now - self._noted_at, 3), inside=self._inside())

    def end(self) -> None:
        """Let the thread end."""
        self._ended.set()

    def _inside(self) -> str:
        """Return the names of the calls that the loop's thread is in, innermost first."""
        frame = sys._current_frames().get(self._loop_thread)
        calls = reversed(traceback.extract_stack(frame, limit=FRAMES)) if frame is not None else ()
        return " < ".join(f"{call.name} ({call.filename}:{call.lineno})" for call in calls)


@asynccontextmanager
async def watch_loop(recorder: Recorder, *, after_s: float = REPORT_AFTER_S) -> AsyncIterator[None]:
    """Watch the running loop; a stall longer than `after_s` is logged with its stack while it lasts."""
    watch = _Watch(recorder, after_s)
    thread = threading.Thread(target=watch.compare, name="event-loop-watch", daemon=True)
    thread.start()
    try:
        async with running("event-loop-notes", watch.note()):
            yield
    finally:
        watch.end()
        thread.join()
