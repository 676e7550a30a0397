"""Running calls and their timeouts, which share one timer per server.

A timer per call would cost more than all other work on its timeout, and hardly any fires. Invariant: a watched
call is stopped once its timeout has passed, and no other call is.
"""

from __future__ import annotations

import asyncio
from math import inf
from typing import Protocol

from exai.mcp.core.protocol import Call


class Timed(Protocol):
    """An object with a timeout."""

    def stop_late(self) -> None:
        """Handle the timeout."""


class RunningCall:
    """One call and its task, which is created right after it."""

    __slots__ = ("call", "has_begun", "is_late", "size_bytes", "task")

    def __init__(self, call: Call, size_bytes: int) -> None:
        self.call = call
        self.size_bytes = size_bytes
        self.has_begun = False
        self.is_late = False
        self.task: asyncio.Task[None] | None = None

    def stop_late(self) -> None:
        """Cancel the task because of the timeout."""
        if self.task is not None:
            self.is_late = True
            self.task.cancel()

    @property
    def is_stopped_by_timeout_only(self) -> bool:
        """Return whether the task was cancelled because of the timeout and for no other reason."""
        return self.is_late and self.task is not None and self.task.cancelling() == 1

    def undo_stop(self) -> None:
        """Take back the cancellation by `stop_late`, if there was one; others stay in effect."""
        if self.is_late and self.task is not None:
            self.is_late = False
            self.task.uncancel()


class Timeouts:
    """Stops calls and other objects at their timeouts; times are those of `loop.time()`."""

    def __init__(self) -> None:
        self._ends: dict[Timed, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_s = inf

    def begin(self, running: Timed, end_s: float, loop: asyncio.AbstractEventLoop) -> None:
        """Watch a call, and stop it at `end_s` unless `end` is called before."""
        self._ends[running] = end_s
        if end_s < self._timer_at_s:
            self._set_timer(end_s, loop)

    def end(self, running: Timed) -> None:
        """Stop watching a call. The timer stays set: the next call's timeout is not earlier."""
        self._ends.pop(running, None)

    def _set_timer(self, at_s: float, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at_s = at_s
        self._timer = loop.call_at(at_s, self._stop_overdue, loop)

    def _stop_overdue(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        self._timer, self._timer_at_s = None, inf
        for running in [each for each, end_s in self._ends.items() if end_s <= now]:
            # Removed first, so that a stopped call is not stopped again before it calls `end`.
            del self._ends[running]
            running.stop_late()
        if self._ends:
            self._set_timer(min(self._ends.values()), loop)
