"""A scheduler whose seed decides every interleaving of its actors.

Invariant: one actor runs at a time, from one gate to the next; the next is chosen when no actor runs.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from contextvars import ContextVar, copy_context
from typing import Any

weight: ContextVar[float] = ContextVar("weight", default=1.0)


class Stage:
    """Runs one actor at a time, chosen by the seed among those that wait at a gate."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self._standing: list[tuple[asyncio.Future[None], float]] = []
        self._running = 0
        self._quiet = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.failure: BaseException | None = None

    async def gate(self) -> None:
        future = asyncio.get_running_loop().create_future()
        self._standing.append((future, weight.get()))
        self._rest()
        await future

    def enter(self, actor: Coroutine[Any, Any, None], share: float = 1.0) -> None:
        """Start an actor, which is chosen in proportion to its share."""
        self._running += 1
        context = copy_context()
        context.run(weight.set, share)
        self._tasks.add(asyncio.create_task(self._act(actor), context=context))

    async def play(self, steps: int) -> None:
        """Run up to `steps` steps, then stop all actors. Raises the exception of an actor."""
        for _ in range(steps):
            await self._quiet.wait()
            if self.failure is not None or not self._standing:
                break
            shares = [share for _, share in self._standing]
            chosen = self.rng.choices(range(len(shares)), shares)[0]
            self._running += 1
            self._quiet.clear()
            self._standing.pop(chosen)[0].set_result(None)
        await self._quiet.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.failure is not None:
            raise self.failure

    async def _act(self, actor: Coroutine[Any, Any, None]) -> None:
        try:
            await self.gate()
            await actor
        except asyncio.CancelledError:
            actor.close()
            raise
        except BaseException as error:
            self.failure = self.failure or error
        finally:
            self._rest()

    def _rest(self) -> None:
        self._running -= 1
        if self._running <= 0:
            self._quiet.set()
