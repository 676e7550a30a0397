"""Share one database read per conversation between the callers of this process.

Invariant: no caller receives a result that lacks a change applied before its request. There are two ways to share. A
read that began under a lease, held by this process or another one, is joined by a caller that has just seen the same
lease alive: applying a change ends the lease, so none was applied since the read began. Any other caller joins only a
read that has not begun.

A read is a task of its own. It completes and fills the cache even if its callers are cancelled. Callers receive the
result as soon as it is read, before the cache is filled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeAlias, TypeVar

from exai.resilience import bounded, request_deadline

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
R = TypeVar("R")

WHAT: Final = "the database"

LINGER_S: Final = 0.05
"""How long a completed read under another process's lease stays available to callers that have seen the lease alive."""

After: TypeAlias = Callable[[T | None], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Flight(Generic[T]):
    """A read that has begun: the `token` of its lease, its start by the loop's clock, and the future of its result."""

    token: bytes
    started: float
    landed: asyncio.Future[T]

    async def result(self) -> T:
        """Wait for the result within the caller's own deadline. Raises the read's error or `DeadlineExceeded`."""
        return await bounded(asyncio.shield(self.landed), None, WHAT)


class SingleFlight(Generic[K, T]):
    """Reads in flight by conversation. `close` cancels all of them."""

    def __init__(self) -> None:
        self._leased: dict[K, Flight[T]] = {}
        self._running: dict[K, asyncio.Task[T]] = {}
        self._queued: dict[K, asyncio.Task[T]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    def lead(self, key: K, token: bytes, work: Callable[[], Awaitable[T]], after: After[T] | None = None) -> Flight[T]:
        """Begin a read under a lease that the caller has just acquired or seen alive.

        If the lease is the caller's, `after` ends it: it is awaited with the result, or with None after an error, once
        the result has been delivered. Without `after` another process holds the lease.
        """
        loop = asyncio.get_running_loop()
        flight: Flight[T] = Flight(token, loop.time(), loop.create_future())
        self._leased[key] = flight

        def forget() -> None:
            if self._leased.get(key) is flight:
                del self._leased[key]

        def ended(_: asyncio.Task[None]) -> None:
            # Has an effect only if the task was cancelled before the result was set.
            flight.landed.cancel()
            if after is not None:
                # `after` has ended the lease on the same connection. Replies arrive in order, so every caller that saw
                # the lease alive has had its reply, and joined, by now. Keeping the result longer would cost 60 us of
                # garbage collection per miss, of 340 us in total.
                forget()
            else:
                loop.call_later(LINGER_S, forget)

        self._start(_fly(flight.landed, work, after)).add_done_callback(ended)
        return flight

    def find(self, key: K, token: bytes) -> Flight[T] | None:
        """Return this process's read under that lease if it is in flight or has just completed, else None."""
        flight = self._leased.get(key)
        return flight if flight is not None and flight.token == token else None

    async def later(self, key: K, work: Callable[[], Awaitable[T]]) -> T:
        """Read without a lease; shared by all callers that arrive before the read begins. One runs at a time."""
        task = self._queued.get(key)
        if task is None:
            task = self._queued[key] = self._start(self._in_turn(key, self._running.get(key), work))
            task.add_done_callback(_retrieve)
        return await bounded(asyncio.shield(task), None, WHAT)

    async def close(self) -> None:
        """Cancel all reads and wait for their tasks to end."""
        for task in self._tasks:
            task.cancel()
        await self.wait_settled()

    async def wait_settled(self) -> None:
        """Wait until all reads in flight, including their `after`, have ended."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _in_turn(self, key: K, before: asyncio.Task[T] | None, work: Callable[[], Awaitable[T]]) -> T:
        if before is not None:
            await asyncio.wait({before})
        # The snapshot may be taken from here on. A later caller must not join this read, so it leaves the queue first.
        task = self._queued.pop(key)
        self._running[key] = task
        try:
            return await work()
        finally:
            if self._running.get(key) is task:
                del self._running[key]

    def _start(self, work: Coroutine[Any, Any, R]) -> asyncio.Task[R]:
        # The read serves several requests, so the deadline of the request that started it must not apply.
        context = copy_context()
        context.run(request_deadline.set, None)
        task = asyncio.create_task(work, name="cache-read", context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _fly(landed: asyncio.Future[T], work: Callable[[], Awaitable[T]], after: After[T] | None) -> None:
    result: T | None = None
    try:
        result = await work()
        landed.set_result(result)
    except Exception as error:  # noqa: BLE001 - re-raised in each caller that awaits the result
        landed.set_exception(error)
        _retrieve(landed)
    finally:
        if after is not None:
            await after(result)


def _retrieve(ended: asyncio.Future[T]) -> None:
    """Mark an exception as retrieved, because all callers may be gone; asyncio would log it otherwise."""
    if not ended.cancelled():
        ended.exception()
