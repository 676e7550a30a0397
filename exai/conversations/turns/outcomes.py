"""Write the outcomes of turns in tasks of their own, which the cancellation of their callers does not interrupt.

Invariant: a task started here runs to its end, or to `OUTCOME_LIMIT_S`, also if its request is cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import structlog

from exai.db.records import TurnEnd, TurnFinished
from exai.db.turns import TurnRepository
from exai.errors import DatabaseError, ExaiError
from exai.resilience import backoff_s, remaining_s, request_deadline, with_deadline

OUTCOME_LIMIT_S = 10.0
"""Time limit of a write that must not be lost, including its retries, also after the caller's cancellation."""

OUTCOME_PAUSE_FIRST_S = 0.1
OUTCOME_PAUSE_MOST_S = 1.0
"""First and longest backoff between attempts to write an outcome."""

T = TypeVar("T")
OnTurnEnd = Callable[[TurnEnd], None]
"""Called with every outcome that has been written."""

log = structlog.get_logger(__name__)


class OutcomeWriter:
    """Runs and tracks the tasks that must end after their caller was cancelled."""

    def __init__(self, repository: TurnRepository, on_end: OnTurnEnd | None = None) -> None:
        self._repository, self._on_end = repository, on_end
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Run `work` as a tracked task with its own deadline, independent of the request's."""

        async def bounded() -> T:
            request_deadline.set(None)
            with with_deadline(OUTCOME_LIMIT_S):
                return await work

        task = asyncio.create_task(bounded(), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._discard_task)
        return task

    async def complete(self, outcome: Coroutine[Any, Any, T]) -> T:
        """Complete the write of an outcome even if the caller is cancelled meanwhile."""
        task = self.start(outcome, "turn-outcome")
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait({task}, timeout=OUTCOME_LIMIT_S)
            raise

    async def store(self, end: TurnEnd) -> TurnFinished:
        """Write an outcome, with retries until the deadline, because the answer may have been paid for."""
        attempt = 0
        while True:
            attempt += 1
            pause_s = backoff_s(attempt, OUTCOME_PAUSE_FIRST_S, OUTCOME_PAUSE_MOST_S)
            try:
                finished = await self._repository.finish(end)
            except DatabaseError as error:
                left_s = remaining_s()
                if not error.retryable or left_s is None or left_s <= pause_s:
                    raise
            else:
                if self._on_end is not None and finished.commit is not None:
                    self._on_end(end)
                return finished
            await asyncio.sleep(pause_s)

    async def record(self, failure: TurnEnd) -> TurnFinished | None:
        """Write a failure. An error of this write is only logged, because the caller receives the original error."""
        try:
            return await self.store(failure)
        except ExaiError as error:
            # The turn's lease expires, after which its request key can be used again.
            log.error("turn_outcome_not_written", turn=failure.turn_id, error=str(error))
            return None

    async def drain(self) -> None:
        """Wait until all tasks have ended."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _discard_task(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # Awaiting callers have received the exception. Retrieving it keeps asyncio from logging it a second time.
            task.exception()
