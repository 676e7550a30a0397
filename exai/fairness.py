"""Fair shares of a limited number of places, such as connections, between the owners that want them.

An owner that is alone may use every place. While other owners wait, those that wait are served in turn, one place each,
and an owner gets no further place beyond half of them. The requests of one owner are served in their order. Work that
belongs to no owner, such as a batch for several of them, takes its turn like one more owner and has no limit of its
own. Invariant: no place stays free while a request waits that may have it, and every operation takes constant time.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Final, Generic, TypeAlias, TypeVar

from exai.models import Owner
from exai.resilience import bounded

W = TypeVar("W")

Holder: TypeAlias = Owner | None
"""The owner a place is counted for; None for work of no single owner."""

WHAT: Final = "a free place"


class RequestWork:
    """What the current request has done: its round trips to the database, those shared with other requests included."""

    __slots__ = ("statements",)

    def __init__(self) -> None:
        self.statements = 0


request_work: ContextVar[RequestWork | None] = ContextVar("request_work", default=None)
"""The work of the current request; None for background work and for work done for several requests at once."""


def count_shared(works: Iterable[RequestWork | None]) -> None:
    """Count one round trip for each request that it serves."""
    for work in works:
        if work is not None:
            work.statements += 1


request_owner: ContextVar[Holder] = ContextVar("request_owner", default=None)
"""The owner of the current request; None for background work and for work done for several owners at once."""


class FairQueue(Generic[W]):
    """Waiters of several owners: the owners take turns, and those of one owner come out in their order."""

    def __init__(self) -> None:
        # Linked lists with keys: a waiter leaves from anywhere in constant time.
        self._waiting: OrderedDict[Holder, OrderedDict[W, None]] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        """Return the number of waiters."""
        return self._length

    def __iter__(self) -> Iterator[Holder]:
        """Iterate over the waiting owners in the order of their turns."""
        return iter(self._waiting)

    def __contains__(self, owner: Holder) -> bool:
        """Return whether this owner waits."""
        return owner in self._waiting

    def put(self, owner: Holder, waiter: W) -> None:
        """Add a waiter behind the owner's earlier ones."""
        queue = self._waiting.get(owner)
        if queue is None:
            queue = self._waiting[owner] = OrderedDict()
        queue[waiter] = None
        self._length += 1

    def put_back(self, owner: Holder, waiter: W) -> None:
        """Return a waiter that was taken out to the front of its owner's waiters."""
        self.put(owner, waiter)
        self._waiting[owner].move_to_end(waiter, last=False)

    def leave(self, owner: Holder, waiter: W) -> None:
        """Remove a waiter, if it is still waiting."""
        queue = self._waiting.get(owner)
        if queue is None or waiter not in queue:
            return
        del queue[waiter]
        self._length -= 1
        if not queue:
            del self._waiting[owner]

    def take(self) -> W:
        """Take out the first waiter of the next owner; there must be one."""
        return self.take_of(next(iter(self._waiting)))

    def take_of(self, owner: Holder) -> W:
        """Take out the first waiter of this owner, who must wait; the owner's next turn comes after all others'."""
        queue = self._waiting[owner]
        waiter, _ = queue.popitem(last=False)
        self._length -= 1
        if queue:
            self._waiting.move_to_end(owner)
        else:
            del self._waiting[owner]
        return waiter


class Turns(Generic[W]):
    """Decides which waiter gets the next of `size` places, and counts the places each owner holds. Does no I/O.

    With a `reserve`, an owner that holds half of the places takes no further one unless more than `reserve` are free,
    so that another owner finds a place at once even if places are held for long.
    """

    def __init__(self, size: int, *, reserve: int = 0) -> None:
        self.share = max(1, size // 2)
        self._reserve = reserve
        self._held: dict[Holder, int] = {}
        self._line: FairQueue[W] = FairQueue()

    def __bool__(self) -> bool:
        """Return whether any request waits."""
        return bool(self._line)

    def held(self, owner: Holder) -> int:
        """Return the number of places this owner holds."""
        return self._held.get(owner, 0)

    def may_begin(self, owner: Holder, free: int) -> bool:
        """Return whether a request that has not waited may take one of `free` places now."""
        if free <= 0 or owner in self._line:
            return False
        return self._is_below_share(owner) or free > self._reserve

    def begin(self, owner: Holder) -> None:
        """Count one more place of this owner."""
        self._held[owner] = self._held.get(owner, 0) + 1

    def end(self, owner: Holder) -> None:
        """Count one place less of this owner."""
        left = self._held[owner] - 1
        if left:
            self._held[owner] = left
        else:
            del self._held[owner]

    def wait(self, owner: Holder, waiter: W) -> None:
        """Queue a request behind the owner's earlier ones."""
        self._line.put(owner, waiter)

    def leave(self, owner: Holder, waiter: W) -> None:
        """Remove a request that no longer waits; does nothing if it has already been chosen."""
        self._line.leave(owner, waiter)

    @property
    def waiting(self) -> int:
        """Number of waiters."""
        return len(self._line)

    def choose(self, free: int) -> tuple[Holder, W] | None:
        """Take out the waiter that gets one of `free` places, and count the place; None if no waiter may have one."""
        if free <= 0 or not self._line:
            return None
        # Few owners can hold half of the places, so few are passed over. They keep their turn.
        for owner in self._line:
            if self._is_below_share(owner):
                break
        else:
            if free <= self._reserve:
                return None
            owner = next(iter(self._line))
        self.begin(owner)
        return owner, self._line.take_of(owner)

    def clear(self) -> list[W]:
        """Take out all waiters."""
        return [self._line.take() for _ in range(len(self._line))]

    def _is_below_share(self, owner: Holder) -> bool:
        return owner is None or self._held.get(owner, 0) < self.share


class Places:
    """`size` places for the tasks of one event loop, shared as `Turns` decides."""

    def __init__(self, size: int, *, reserve: int = 0) -> None:
        self.size = size
        self.free = size
        self._turns: Turns[asyncio.Future[None]] = Turns(size, reserve=reserve)

    def held(self, owner: Holder) -> int:
        """Return the number of places this owner holds."""
        return self._turns.held(owner)

    def take_nowait(self, owner: Holder) -> bool:
        """Take a place if this owner may have one now."""
        if not self._turns.may_begin(owner, self.free):
            return False
        self._turns.begin(owner)
        self.free -= 1
        return True

    async def take(self, owner: Holder, limit_s: float | None = None, what: str = WHAT) -> None:
        """Take a place, waited for in turn; `what` names it in errors. `give` returns it.

        Raises:
            DeadlineExceeded: the request's deadline passed first.
            TimeoutError: none became free within `limit_s`.

        """
        if self.take_nowait(owner):
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._turns.wait(owner, waiter)
        try:
            await bounded(waiter, limit_s, what)
        except BaseException:
            if waiter.done() and not waiter.cancelled():
                # The place was granted at the moment in which the wait ended.
                self.give(owner)
            else:
                self._turns.leave(owner, waiter)
            raise

    def give(self, owner: Holder) -> None:
        """Return a place of this owner; the next waiter gets it."""
        self._turns.end(owner)
        self.free += 1
        while (chosen := self._turns.choose(self.free)) is not None:
            holder, waiter = chosen
            if waiter.done():
                # The waiter was cancelled, and its task has not run since.
                self._turns.end(holder)
                continue
            self.free -= 1
            waiter.set_result(None)

    @asynccontextmanager
    async def hold(self, owner: Holder, limit_s: float | None = None, what: str = WHAT) -> AsyncIterator[None]:
        """Hold a place for this owner. Raises as `take`."""
        await self.take(owner, limit_s, what)
        try:
            yield
        finally:
            self.give(owner)
