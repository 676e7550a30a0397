"""Background tasks that belong to a block of code and whose failures cannot go unnoticed.

Invariant: no task outlives its block, and a task that fails ends the block, which raises the task's own exception.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from contextvars import Context
from typing import Any, TypeVar

T = TypeVar("T")


class Background:
    """The background tasks of one block; created by `open_background`."""

    def __init__(self) -> None:
        self._owner = asyncio.current_task()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_leaving = False
        self.has_cancelled_owner = False
        self.failure: BaseException | None = None

    def start(self, name: str, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run `work` beside the block. It may end on its own; the block raises any exception of it."""
        # An empty context: the work belongs to no request, so it has no deadline and no owner.
        task = asyncio.create_task(work, name=name, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._note_end)
        return task

    async def stop(self) -> None:
        """Cancel all tasks and wait until they have ended."""
        self._is_leaving = True
        for task in self._tasks:
            task.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _note_end(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None or self.failure is not None:
            return
        error.add_note(f"It ended the background task {task.get_name()!r}, and with it what needs that task.")
        self.failure = error
        if self._owner is not None and not self._is_leaving:
            self.has_cancelled_owner = self._owner.cancel()


@asynccontextmanager
async def open_background() -> AsyncIterator[Background]:
    """Yield a group of background tasks, which are cancelled when the block ends.

    A task that fails cancels the task that runs the block; the block then raises the failure instead of
    `CancelledError`. A failure that is found while the block ends is raised as well. Other exceptions of the block
    pass unchanged: unlike `asyncio.TaskGroup` this makes no exception groups.
    """
    background = Background()
    try:
        try:
            yield background
        finally:
            await background.stop()
    except asyncio.CancelledError:
        owner = asyncio.current_task()
        # A cancellation of the owner by other code stays in effect.
        if not background.has_cancelled_owner or owner is None or owner.uncancel() > 0:
            raise
    if background.failure is not None:
        raise background.failure


@asynccontextmanager
async def running(name: str, work: Coroutine[Any, Any, object]) -> AsyncIterator[None]:
    """Run one background task while the block runs; see `open_background`."""
    async with open_background() as background:
        background.start(name, work)
        yield
