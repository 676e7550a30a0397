"""One database read at a time for each conversation in this process, shared by whoever may share it.

The invariant is that nobody gets a result older than their own question, within what the lease vouches for. There are
two ways to share. A read that began when a lease had been given, to us or to another process, may be joined by a
reader who has just seen that very lease alive, because then no change was announced since it was given. Any other
reader joins only a read that has not begun yet.

A read is a task of its own: callers come and go, it runs to its end and fills the cache for the next ones. Callers
have their result as soon as it was read, and need not wait for the cache to have it as well.
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
"""How long a read under somebody else's lease can be found when it has landed, by readers who saw that lease alive."""

After: TypeAlias = Callable[[T | None], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Flight(Generic[T]):
    """A read that has begun; `token` is the lease it began under, `started` the loop's time."""

    token: bytes
    started: float
    landed: asyncio.Future[T]

    async def result(self) -> T:
        """Wait for it, within the waiting request's own deadline. Raises what the read raised, `DeadlineExceeded`."""
        return await bounded(asyncio.shield(self.landed), None, WHAT)


class SingleFlight(Generic[K, T]):
    """Reads in flight by conversation. `close` ends all of them."""

    def __init__(self) -> None:
        self._leased: dict[K, Flight[T]] = {}
        self._running: dict[K, asyncio.Task[T]] = {}
        self._queued: dict[K, asyncio.Task[T]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    def lead(self, key: K, token: bytes, work: Callable[[], Awaitable[T]], after: After[T] | None = None) -> Flight[T]:
        """Begin a read under a lease that the caller was just given, or has just seen alive.

        `after` ends a lease of our own: it is awaited with the result, or with None if there is none, when all who wait
        for it can have it. Without it the lease is somebody else's.
        """
        loop = asyncio.get_running_loop()
        flight: Flight[T] = Flight(token, loop.time(), loop.create_future())
        self._leased[key] = flight

        def forget() -> None:
            if self._leased.get(key) is flight:
                del self._leased[key]

        def ended(_: asyncio.Task[None]) -> None:
            # Cancelled, unless it has landed.
            flight.landed.cancel()
            if after is not None:
                # Replies come in order: whoever saw the lease alive knew of it before we knew that it has ended. A
                # result that is kept for longer is work for the garbage collector, 60 us of a miss's 340.
                forget()
            else:
                loop.call_later(LINGER_S, forget)

        self._start(_fly(flight.landed, work, after)).add_done_callback(ended)
        return flight

    def find(self, key: K, token: bytes) -> Flight[T] | None:
        """This process's read under that lease, if it is still in flight or has just landed."""
        flight = self._leased.get(key)
        return flight if flight is not None and flight.token == token else None

    async def later(self, key: K, work: Callable[[], Awaitable[T]]) -> T:
        """Read without a lease, together with all who ask before the read begins; one runs at a time."""
        task = self._queued.get(key)
        if task is None:
            task = self._queued[key] = self._start(self._in_turn(key, self._running.get(key), work))
            task.add_done_callback(_retrieve)
        return await bounded(asyncio.shield(task), None, WHAT)

    async def close(self) -> None:
        """Cancel what is in flight and wait for it."""
        for task in self._tasks:
            task.cancel()
        await self.settled()

    async def settled(self) -> None:
        """Wait until nothing is in flight, and what comes after the reads is done."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _in_turn(self, key: K, before: asyncio.Task[T] | None, work: Callable[[], Awaitable[T]]) -> T:
        if before is not None:
            await asyncio.wait({before})
        # From here on the read may be older than a question, so that the next to ask starts another.
        task = self._queued.pop(key)
        self._running[key] = task
        try:
            return await work()
        finally:
            if self._running.get(key) is task:
                del self._running[key]

    def _start(self, work: Coroutine[Any, Any, R]) -> asyncio.Task[R]:
        # The read serves many requests, so it must not end with the deadline of the one that happened to start it.
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
    except Exception as error:  # noqa: BLE001 - whoever waits for the result raises it
        landed.set_exception(error)
        _retrieve(landed)
    finally:
        if after is not None:
            await after(result)


def _retrieve(ended: asyncio.Future[T]) -> None:
    """Look at how it ended, because all who waited for it may have gone."""
    if not ended.cancelled():
        ended.exception()
