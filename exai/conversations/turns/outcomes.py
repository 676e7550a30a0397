"""Write the outcomes of turns in tasks of their own, which the cancellation of their callers does not interrupt.

Invariant: a task started here runs to its end, or to `OUTCOME_LIMIT_S`, also if its request is cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import structlog

from exai.conversations.large import LargeContent, pieces_in
from exai.db.records import TurnEnd, TurnFinished
from exai.db.turns import TurnRepository
from exai.errors import DatabaseError, ExaiError
from exai.files.pieces import Piece
from exai.models import DERIVED_KINDS
from exai.resilience import backoff_s, remaining_s, request_deadline, with_deadline

OUTCOME_LIMIT_S = 10.0
"""Time limit of a write that must not be lost, including its retries, also after the caller's cancellation."""

LARGE_LIMIT_S = 5.0
"""Part of that time for storing the large content of an answer as files."""

OUTCOME_PAUSE_FIRST_S = 0.1
OUTCOME_PAUSE_MOST_S = 1.0
"""First and longest backoff between attempts to write an outcome."""

T = TypeVar("T")
OnTurnEnd = Callable[[TurnEnd], None]
"""Called with every outcome that has been written."""

log = structlog.get_logger(__name__)


class OutcomeWriter:
    """Runs and tracks the tasks that must end after their caller was cancelled."""

    def __init__(self, repository: TurnRepository, large: LargeContent, on_end: OnTurnEnd | None = None) -> None:
        self._repository, self._large, self._on_end = repository, large, on_end
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
        """Write an outcome, with retries until the deadline, because the answer may have been paid for.

        1 database round trip. Large content of the messages is stored with them as files; if that is more than a
        statement holds, or in a remote store, before. An outcome whose large content cannot be stored is stored whole.
        """
        attempt, whole = 0, end
        end, pieces = await self._without_large(end)
        while True:
            attempt += 1
            pause_s = backoff_s(attempt, OUTCOME_PAUSE_FIRST_S, OUTCOME_PAUSE_MOST_S)
            try:
                finished = await self._repository.finish(end)
            except DatabaseError as error:
                if pieces and end is not whole and not error.retryable:
                    end = whole
                    continue
                left_s = remaining_s()
                if not error.retryable or left_s is None or left_s <= pause_s:
                    raise
            else:
                if finished.status == "file_not_found":
                    is_stored = end.along is not None and await self._are_stored(end, pieces)
                    end = replace(end, along=None) if is_stored else whole
                    continue
                if self._on_end is not None and finished.commit is not None:
                    self._on_end(end)
                return finished
            await asyncio.sleep(pause_s)

    async def _without_large(self, end: TurnEnd) -> tuple[TurnEnd, tuple[Piece, ...]]:
        """Return an outcome without its large content, and that; as it is if it has none, or it cannot be stored now.

        Rows that are read as facts keep their texts.
        """
        texts = [None if each.kind in DERIVED_KINDS else each.content for each in end.messages]
        taken = [await self._large.take_from(end.owner, text) for text in texts]
        if not (pieces := pieces_in(taken)):
            return end, ()
        along = await self._in_time(end, self._large.along(end.owner, pieces))
        if along is None:
            return end, ()
        pairs = zip(end.messages, taken, strict=True)
        messages = tuple(message if each is None else each.applied(message) for message, each in pairs)
        return replace(end, messages=messages, file_ids=tuple(each.id for each in pieces), along=along), pieces

    async def _are_stored(self, end: TurnEnd, pieces: Sequence[Piece]) -> bool:
        async def store() -> bool:
            await self._large.store(end.owner, pieces)
            return True

        return await self._in_time(end, store()) is True

    async def _in_time(self, end: TurnEnd, work: Awaitable[T]) -> T | None:
        """Return what `work` on large content returns, None if it fails or takes too long."""
        try:
            with with_deadline(LARGE_LIMIT_S):
                async with asyncio.timeout(LARGE_LIMIT_S):
                    return await work
        except (ExaiError, TimeoutError) as error:
            log.warning("large_content_not_taken_out", turn=end.turn_id, reason=str(error) or type(error).__name__)
            return None

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
