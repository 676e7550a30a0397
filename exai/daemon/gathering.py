"""Reads values of all workers for one of them, in their parent.

Invariant: the metrics of a daemon never go back: of a worker that does not answer in time its last known metrics are
taken, and what a worker had counted when it was last asked is kept after its end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import count
from typing import Any, Final

import structlog

from exai.daemon.control import GATHER_LIMIT_S, Channel, ControlMessage
from exai.monitoring.exposition import Values, add_up_values, as_json, from_json, kept_of

METRICS: Final = "metrics"
LIVE: Final = "live"
"""Names of the values: everything for Prometheus, and the numbers for the page."""

WORKER_LIMIT_S: Final = GATHER_LIMIT_S / 2

log = structlog.get_logger(__name__)


class Gathering:
    """One per parent. Workers are known by their process ids."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._last: dict[int, Any] = {}
        self._kept: Values = {}

    async def gather(self, what: str, workers: Iterable[tuple[int, Channel]]) -> list[Any]:
        """Return the values of the workers; the metrics include the counters of workers that have ended."""
        loop = asyncio.get_running_loop()
        asked: dict[int, tuple[int, asyncio.Future[Any]]] = {}
        for pid, channel in workers:
            number = next(self._numbers)
            asked[pid] = number, loop.create_future()
            self._waiting[number] = asked[pid][1]
            channel.send({"read": what, "number": number})
        try:
            if asked:
                await asyncio.wait([waiting for _, waiting in asked.values()], timeout=WORKER_LIMIT_S)
        finally:
            for number, _ in asked.values():
                del self._waiting[number]
        values = {pid: waiting.result() for pid, (_, waiting) in asked.items() if waiting.done()}
        values = {pid: value for pid, value in values.items() if value is not None}
        if what != METRICS:
            return list(values.values())
        self._last |= values
        # Not only of those that were asked: a worker whose channel has closed has not been taken by `end` yet.
        return [as_json(self._kept), *self._last.values()]

    def take(self, pid: int, message: ControlMessage) -> None:
        """Take an answer of a worker, or its last metrics."""
        if "last" in message:
            self._last[pid] = message["last"]
        elif (waiting := self._waiting.get(message.get("number", 0))) is not None and not waiting.done():
            waiting.set_result(message.get("value"))

    def end(self, pid: int) -> None:
        """Keep the counters of a worker that has ended."""
        last = self._last.pop(pid, None)
        if last is None:
            return
        try:
            self._kept = add_up_values([self._kept, kept_of(from_json(last))])
        except (TypeError, ValueError, KeyError, AttributeError):
            # A worker of another version, after an upgrade under a running parent.
            log.warning("metrics_of_an_ended_worker_lost", pid=pid)
