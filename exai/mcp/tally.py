"""What has ended in one turn of the event loop, told to the metrics and the log together.

Under load many calls end in one turn, and to tell of one after the other costs less than to turn to it after each. The
invariant is that every call is told of once, before the next turn ends.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from contextvars import Context
from typing import NamedTuple

from exai.logs import info_each
from exai.models import Owner, Recorder


class Ended(NamedTuple):
    """One request that has been answered, or needs no answer any more."""

    request: str
    owner: Owner
    method: str
    tool: str
    outcome: str
    duration_s: float


class Tally:
    """The calls of one server that have ended and are not told yet."""

    def __init__(self, recorder: Callable[[], Recorder]) -> None:
        self._recorder = recorder
        self._ended: list[Ended] = []
        # Of the calls' own contexts none is right for all of them.
        self._context = Context()

    def add(self, ended: Ended, loop: asyncio.AbstractEventLoop) -> None:
        """Tell this one with the others of this turn."""
        if not self._ended:
            loop.call_soon(self._tell, context=self._context)
        self._ended.append(ended)

    def _tell(self) -> None:
        ended, self._ended = self._ended, []
        recorder = self._recorder()
        durations: defaultdict[tuple[str, str, str], list[float]] = defaultdict(list)
        for each in ended:
            durations[each.method, each.tool, each.outcome].append(each.duration_s)
        for (method, tool, outcome), values in durations.items():
            recorder.count("mcp_requests_total", len(values), method=method, tool=tool, outcome=outcome)
            recorder.observe("mcp_request_seconds", *values, method=method, tool=tool)
        info_each("exai.mcp.session", "request", map(_line, ended))


def _line(ended: Ended) -> dict[str, object]:
    request, owner, method, tool, outcome, duration_s = ended
    ms = round(duration_s * 1000, 1)
    return {"request": request, "owner": owner, "method": method, "tool": tool, "outcome": outcome, "ms": ms}
