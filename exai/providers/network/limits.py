"""A time limit that is moved for every piece of a stream."""

from __future__ import annotations

import asyncio


class MovingLimit:
    """Expires `scope` when its time is reached; to move it later costs no timer of the event loop."""

    def __init__(self, scope: asyncio.Timeout) -> None:
        self._scope, self._loop = scope, asyncio.get_running_loop()
        self._due: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0

    def move(self, due: float | None) -> None:
        """Set the time of the event loop at which the limit is reached, None for never."""
        self._due = due
        if due is not None and (self._timer is None or due < self._timer_due):
            self._start(due)

    def close(self) -> None:
        """Release the timer; required when the scope ends."""
        self._due = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_due = self._loop.call_at(due, self._examine), due

    def _examine(self) -> None:
        self._timer = None
        if self._due is None:
            return
        if self._due > self._timer_due:
            self._start(self._due)
        else:
            self._scope.reschedule(self._due)
