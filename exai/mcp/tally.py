"""What has ended in one turn of the event loop, told to the metrics and the log together.

Under load many calls end in one turn, and to tell of one after the other costs less than to turn to it after each. The
invariant is that every call is told of once, before the next turn ends.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from contextvars import Context
from typing import TypedDict

from exai.logs import info_each
from exai.models import Owner, Recorder


class Ended(TypedDict):
    """What the log says of one request that has been answered, or needs no answer any more."""

    request: str
    owner: Owner
    method: str
    tool: str
    outcome: str
    ms: float


class Tally:
    """The calls of one server that have ended and are not told yet."""

    def __init__(self, recorder: Callable[[], Recorder]) -> None:
        self._recorder = recorder
        self._ended: list[Ended] = []
        self._durations_s: defaultdict[tuple[str, str, str], list[float]] = defaultdict(list)
        # Of the calls' own contexts none is right for all of them.
        self._context = Context()

    def add(self, ended: Ended, duration_s: float, loop: asyncio.AbstractEventLoop) -> None:
        """Tell this one with the others of this turn."""
        if not self._ended:
            loop.call_soon(self._tell, context=self._context)
        self._ended.append(ended)
        self._durations_s[ended["method"], ended["tool"], ended["outcome"]].append(duration_s)

    def _tell(self) -> None:
        ended, self._ended = self._ended, []
        durations_s, self._durations_s = self._durations_s, defaultdict(list)
        recorder = self._recorder()
        for (method, tool, outcome), values in durations_s.items():
            recorder.count("mcp_requests_total", len(values), method=method, tool=tool, outcome=outcome)
            recorder.observe("mcp_request_seconds", *values, method=method, tool=tool)
        info_each("exai.mcp.session", "request", ended)
