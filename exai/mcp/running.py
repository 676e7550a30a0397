"""The calls that run, and the end of those whose time is up, watched with one timer for all of a server.

A timer for each call costs more than everything else that is done about its time, and hardly one ever fires. The
invariant is that a call which is watched is stopped once its time is up, and that no other one is.
"""

from __future__ import annotations

import asyncio
from math import inf
from typing import Protocol

from exai.mcp.protocol import Call


class Timed(Protocol):
    """What has a time to be up."""

    def stop_late(self) -> None:
        """Its time is up."""


class Running:
    """One call and its task, made right after it."""

    __slots__ = ("call", "has_begun", "is_late", "size_bytes", "task")

    def __init__(self, call: Call, size_bytes: int) -> None:
        self.call = call
        self.size_bytes = size_bytes
        self.has_begun = False
        self.is_late = False
        self.task: asyncio.Task[None] | None = None

    def stop_late(self) -> None:
        """Stop it because its time is up."""
        if self.task is not None:
            self.is_late = True
            self.task.cancel()

    def was_late(self) -> bool:
        """Take back what `stop_late` asked for; whether that, and nobody else, stopped the call."""
        if not self.is_late or self.task is None:
            return False
        self.is_late = False
        return self.task.uncancel() == 0


class Watch:
    """Ends calls, or what else is watched, when they take too long; times are those of `loop.time()`."""

    def __init__(self) -> None:
        self._ends: dict[Timed, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._looks_at = inf

    def begin(self, running: Timed, end_s: float, loop: asyncio.AbstractEventLoop) -> None:
        """Stop this call at `end_s`, unless it is let go before."""
        self._ends[running] = end_s
        if end_s < self._looks_at:
            self._look_at(end_s, loop)

    def end(self, running: Timed) -> None:
        """Let go of a call. The timer stays: the next call's would not end before."""
        self._ends.pop(running, None)

    def _look_at(self, at_s: float, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._looks_at = at_s
        self._timer = loop.call_at(at_s, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        self._timer, self._looks_at = None, inf
        for running in [each for each, end_s in self._ends.items() if end_s <= now]:
            del self._ends[running]
            running.stop_late()
        if self._ends:
            self._look_at(min(self._ends.values()), loop)
