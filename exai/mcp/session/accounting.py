"""Reports the calls that ended in one iteration of the event loop to the metrics and the log together.

Under load many calls end in one iteration, and reporting them together costs less than one by one. Invariant: every
call is reported exactly once, before the end of the next iteration.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextvars import Context
from typing import TypeAlias

from exai.logs import info_sampled
from exai.models import Owner, Recorder

CallKey: TypeAlias = tuple[Owner, str, str, str]
"""Common properties of requests: owner, method, tool, outcome."""


_Ended: TypeAlias = tuple[str, float, int]
"""Request id, duration in seconds, and round trips to the database."""


class Accounting:
    """The ended calls of one server that have not been reported yet."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._ended: defaultdict[CallKey, list[_Ended]] = defaultdict(list)
        # An empty context: no single call's context applies to all of them.
        self._context = Context()

    def add(
        self, kind: CallKey, request: str, duration_s: float, statements: int, loop: asyncio.AbstractEventLoop
    ) -> None:
        """Add a call to the report of this iteration, which groups calls by kind."""
        if not self._ended:
            loop.call_soon(self._report, context=self._context)
        self._ended[kind].append((request, duration_s, statements))

    def _report(self) -> None:
        ended, self._ended = self._ended, defaultdict(list)
        for (owner, method, tool, outcome), requests in ended.items():
            self._recorder.count("mcp_requests_total", len(requests), method=method, tool=tool, outcome=outcome)
            durations = [each[1] for each in requests]
            self._recorder.observe("mcp_request_seconds", *durations, method=method, tool=tool, outcome=outcome)
            self._recorder.observe("request_statements", *(each[2] for each in requests), tool=tool or method)
            common = {"owner": owner, "method": method, "tool": tool, "outcome": outcome}
            is_error = outcome not in ("ok", "cancelled")
            info_sampled("exai.mcp.session.session", "request", common, map(_own, requests), is_error=is_error)


def _own(ended: _Ended) -> dict[str, object]:
    request, duration_s, _ = ended
    return {"request": request, "ms": int(duration_s * 10_000 + 0.5) / 10}  # `round` takes a third of the line's time
