"""Notices when something keeps the event loop from running, and says what it was while it still does.

The invariant is that the loop itself is only asked to note the time: a thread compares, and reads the stack of the
loop's thread when the last note is too old. Nothing here ends or interrupts what it finds.
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
"""How often the loop notes the time, and the thread compares, within the time after which a stall is reported."""

FRAMES: Final = 8
"""Innermost calls that are named; what is further out is the same in every report."""

log = structlog.get_logger(__name__)


class _Watch:
    """The last note of the loop, and who compares it with the clock."""

    def __init__(self, recorder: Recorder, after_s: float) -> None:
        self._recorder, self._after_s, self._pause_s = recorder, after_s, after_s / LOOKS
        self._loop_thread = threading.get_ident()
        self._ended = threading.Event()
        self._reported = False
        self._noted_at = time.monotonic()

    async def note(self) -> None:
        """Note the time for as long as the loop runs, and how late it came to it."""
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
        """Look at the note now and then, until the end; in a thread of its own."""
        looked_at = time.monotonic()
        while not self._ended.wait(self._pause_s):
            now, before = time.monotonic(), looked_at
            looked_at = now
            # When this thread did not run either, the whole process was stopped, and nothing in it is the culprit.
            frozen = now - before > self._after_s
            if frozen or self._reported or now - self._noted_at <= self._after_s:
                continue
            self._reported = True
            log.warning("event_loop_stalled", for_s=round(now - self._noted_at, 3), inside=self._inside())

    def end(self) -> None:
        """Let the thread end."""
        self._ended.set()

    def _inside(self) -> str:
        """Name the calls that the loop's thread is in, innermost first."""
        frame = sys._current_frames().get(self._loop_thread)
        calls = reversed(traceback.extract_stack(frame, limit=FRAMES)) if frame is not None else ()
        return " < ".join(f"{call.name} ({call.filename}:{call.lineno})" for call in calls)


@asynccontextmanager
async def watch_loop(recorder: Recorder, *, after_s: float = REPORT_AFTER_S) -> AsyncIterator[None]:
    """Watch the running loop meanwhile; a stall longer than `after_s` is logged while it lasts, with its stack."""
    watch = _Watch(recorder, after_s)
    thread = threading.Thread(target=watch.compare, name="event-loop-watch", daemon=True)
    thread.start()
    try:
        async with running("event-loop-notes", watch.note()):
            yield
    finally:
        watch.end()
        thread.join()
