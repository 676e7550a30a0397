"""Sends items of several callers together, as one statement or command.

Most of the cost of a small request is the statement or command around it. Items that arrive in one iteration of the
event loop are sent as one batch; items that arrive while no further batch may be sent wait, and form the next batch.

Invariant: an item is in at most one batch. What becomes of it there affects no other item, and a caller that leaves
affects no other caller. An item whose batch gave no outcome for it is sent by its own caller, as if there were no
batches. Work done for a batch runs in an empty context: it has no caller's deadline and no caller's owner.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import Final, Generic, Literal, Protocol, TypeAlias, TypeVar

from exai.errors import DeadlineExceeded, ExaiError
from exai.fairness import FairQueue, Holder
from exai.resilience import bounded

T = TypeVar("T")
R = TypeVar("R")

Fit: TypeAlias = Literal["take", "later", "full"]
"""What becomes of the next item: it joins the batch, it waits for a later one, or the batch is complete without it."""

MAX_PASSED_OVER: Final = 64
"""Items that one batch may leave for a later one; after so many no more items are examined."""


class Unanswered(DeadlineExceeded):
    """The deadline passed while a batch with the item was in flight: whether it was carried out is not known."""


class Limit(Protocol):
    """Decides how many batches of a batcher are in flight, and how large they are."""

    def attach(self, batcher: Queue) -> None:
        """Decide for this batcher from now on."""

    def may_send(self, in_flight: int) -> bool:
        """Return whether one more batch may be sent beside `in_flight` others."""

    def pause_s(self, in_flight: int) -> float:
        """Return how long items wait for others to join them before the next batch, although it may be sent."""

    def note_start(self) -> None:
        """Handle the sending of a batch."""

    def batch_size(self, waiting: int) -> int:
        """Return the maximum size of the next batch when `waiting` items wait."""

    def max_wait_s(self) -> float | None:
        """Return how long items wait for batches in flight, which may hang; None means without limit."""

    def note_end(self) -> None:
        """Handle the end of a batch: every batcher that may send now does so."""


class Queue(Protocol):
    """The part of a batcher that its limit uses."""

    @property
    def in_flight(self) -> int:
        """Batches that were sent and may still be answered soon."""

    def look(self) -> None:
        """Check at the end of this iteration of the event loop whether a batch may be sent."""


class Unlimited:
    """A limit for servers that take one command after the other on one connection: nothing waits."""

    def attach(self, batcher: Queue) -> None:
        """Implement `Limit`."""

    def may_send(self, in_flight: int) -> bool:  # noqa: ARG002
        """Implement `Limit`."""
        return True

    def pause_s(self, in_flight: int) -> float:  # noqa: ARG002
        """Implement `Limit`."""
        return 0.0

    def note_start(self) -> None:
        """Implement `Limit`."""

    def batch_size(self, waiting: int) -> int:
        """Implement `Limit`."""
        return waiting

    def max_wait_s(self) -> float | None:
        """Implement `Limit`."""
        return None

    def note_end(self) -> None:
        """Implement `Limit`."""


class _Entry(Generic[T, R]):
    """One item, from its arrival to its end. The `outcome` becomes None if the caller is to send the item itself.

    It is cancelled when the caller has left. `batch` are the entries it was sent with, by `task`, if it was.
    """

    __slots__ = ("batch", "item", "outcome", "owner", "task")

    def __init__(self, owner: Holder, item: T) -> None:
        self.owner, self.item = owner, item
        self.outcome: asyncio.Future[R | None] = asyncio.get_running_loop().create_future()
        self.batch: Sequence[_Entry[T, R]] = ()
        self.task: asyncio.Task[None] | None = None


class Batcher(Generic[T, R]):
    """Batches of one kind; owners take turns, and the items of one owner keep their order.

    `send` sends several items and returns an outcome for each, None for an item that its caller is to send. `fallback`
    sends one item by itself, in its caller's task. `failure` is asked for each item of a batch that failed: it returns
    the exception for the item's caller, or None if the caller is to send the item. `choose` is called for each batch,
    and what it returns for each item. With `is_read` a batch whose callers have all left is cancelled. `what` names the
    server where the request's deadline is to bound the wait; None where `send` is bounded itself.
    """

    def __init__(
        self,
        limit: Limit,
        send: Callable[[Sequence[T]], Awaitable[Sequence[R | None]]],
        fallback: Callable[[T], Awaitable[R]],
        *,
        failure: Callable[[T, ExaiError], Exception | None],
        name: str,
        what: str | None,
        max_items: int,
        choose: Callable[[], Callable[[T], Fit]] | None = None,
        is_read: bool = False,
    ) -> None:
        self._limit, self._send, self._fallback, self._failure = limit, send, fallback, failure
        self._name, self._what, self._max_items, self._choose, self._is_read = name, what, max_items, choose, is_read
        self._waiting: FairQueue[_Entry[T, R]] = FairQueue()
        # A batch is in flight under the name of its first entry.
        self._in_flight: set[_Entry[T, R]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._arriving = 0
        self._is_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._closed: Callable[[], Exception] | None = None
        limit.attach(self)

    @property
    def in_flight(self) -> int:
        """Batches, and items sent by their callers, that were sent and may still be answered soon."""
        return len(self._in_flight)

    async def run(self, owner: Holder, item: T) -> R:
        """Send an item, with others or alone, and return its outcome.

        Raises what `fallback` or `failure` says, `DeadlineExceeded` if the request's deadline passes before the item
        is sent, and `Unanswered` if it passes while a batch with it is in flight.
        """
        entry: _Entry[T, R] = _Entry(owner, item)
        try:
            goes_alone = await self._goes_alone(entry)
            if self._closed is not None:
                raise self._closed()
            if not goes_alone:
                self._waiting.put(owner, entry)
                self.look()
                outcome = await self._outcome(entry)
                if outcome is not None:
                    return outcome
            return await self._fallback(item)
        finally:
            self._leave(entry)

    async def _outcome(self, entry: _Entry[T, R]) -> R | None:
        if self._what is None:
            return await entry.outcome
        try:
            return await bounded(entry.outcome, None, self._what)
        except DeadlineExceeded as error:
            if entry.task is None:
                raise
            raise Unanswered(self._what) from error

    async def close(self, closed: Callable[[], Exception]) -> None:
        """Cancel all batches in flight; every waiting caller gets an exception from `closed`."""
        self._closed = closed
        while self._waiting:
            self._settle([self._waiting.take()], None)
        for timer in (self._timer, self._pause):
            if timer is not None:
                timer.cancel()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def look(self) -> None:
        """Check at the end of this iteration of the event loop whether a batch may be sent."""
        if self._waiting and not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._dispatch, context=Context())

    async def _goes_alone(self, entry: _Entry[T, R]) -> bool:
        """Return whether the item is sent alone: a batch may be sent and no other item arrives in this iteration.

        That bypasses the queue. The caller must queue any other entry at once, so that it is sent with the others of
        its iteration.
        """
        if self._waiting or not self._may_send_now():
            return False
        self._arriving += 1
        try:
            await asyncio.sleep(0)
        finally:
            self._arriving -= 1
        # The last of several concurrent arrivals finds `_arriving` at 0, but the others are in the queue.
        if self._arriving or self._waiting or not self._may_send_now():
            return False
        self._begin(entry)
        return True

    def _may_send_now(self) -> bool:
        return self._limit.may_send(len(self._in_flight)) and self._limit.pause_s(len(self._in_flight)) <= 0

    def _begin(self, first: _Entry[T, R]) -> None:
        self._in_flight.add(first)
        self._limit.note_start()

    def _dispatch(self) -> None:
        """Send all batches that may be sent now, and limit the wait of the remaining items."""
        self._is_due = False
        while self._waiting and self._limit.may_send(len(self._in_flight)):
            if (pause_s := self._limit.pause_s(len(self._in_flight))) > 0:
                if self._pause is None:
                    self._pause = asyncio.get_running_loop().call_later(pause_s, self._end_pause, context=Context())
                break
            if not self._send_next():
                break
        if not self._waiting and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        elif self._waiting and self._timer is None and (wait_s := self._limit.max_wait_s()) is not None:
            before = frozenset(self._in_flight)
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._stop_waiting_for, before)

    def _end_pause(self) -> None:
        self._pause = None
        self._dispatch()

    def _stop_waiting_for(self, before: frozenset[_Entry[T, R]]) -> None:
        self._timer = None
        # A batch in flight for so long may hang and is no longer counted. If all of them hang, everything that waits is
        # sent. If some are answered, a long queue is processed in the remaining places.
        hanging = self._in_flight & before
        self._in_flight -= hanging
        if hanging and not self._in_flight:
            while self._waiting and self._send_next():
                pass
        self._dispatch()

    def _send_next(self) -> bool:
        """Send one batch. Returns False if no caller waits any more."""
        entries = self._compose()
        if not entries:
            return False
        self._begin(entries[0])
        if len(entries) == 1:
            entries[0].outcome.set_result(None)
            return True
        task = asyncio.create_task(self._run(entries), name=self._name)
        self._tasks.add(task)
        for entry in entries:
            entry.batch, entry.task = entries, task

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._settle(entries, None)
            # A task that is cancelled before its first step has not run its `finally` blocks.
            if entries[0] in self._in_flight:
                self._end(entries[0])

        task.add_done_callback(ended)
        return True

    def _compose(self) -> list[_Entry[T, R]]:
        """Take the items of the next batch out of the queue; owners take turns."""
        entries: list[_Entry[T, R]] = []
        passed_over: list[_Entry[T, R]] = []
        fit = self._choose() if self._choose is not None else _take_any
        most = min(self._limit.batch_size(len(self._waiting)), self._max_items)
        while self._waiting and len(entries) < most and len(passed_over) < MAX_PASSED_OVER:
            entry = self._waiting.take()
            if entry.outcome.done():
                continue
            verdict = fit(entry.item)
            if verdict == "take":
                entries.append(entry)
                continue
            passed_over.append(entry)
            if verdict == "full":
                break
        for entry in reversed(passed_over):
            self._waiting.put_back(entry.owner, entry)
        return entries

    async def _run(self, entries: Sequence[_Entry[T, R]]) -> None:
        try:
            outcomes = await self._send([entry.item for entry in entries])
        except ExaiError as error:
            for entry in entries:
                if not entry.outcome.done() and (own := self._failure(entry.item, error)) is not None:
                    entry.outcome.set_exception(own)
        else:
            self._settle(entries, outcomes)
        finally:
            self._end(entries[0])

    def _settle(self, entries: Sequence[_Entry[T, R]], outcomes: Sequence[R | None] | None) -> None:
        """Set the outcomes of the callers that have none yet."""
        for number, entry in enumerate(entries):
            if entry.outcome.done():
                continue
            if outcomes is None and self._closed is not None:
                entry.outcome.set_exception(self._closed())
            else:
                entry.outcome.set_result(outcomes[number] if outcomes is not None else None)

    def _end(self, first: _Entry[T, R]) -> None:
        self._in_flight.discard(first)
        self._limit.note_end()

    def _leave(self, entry: _Entry[T, R]) -> None:
        """Cancel the work for `entry`, unless it serves other entries too."""
        if not entry.outcome.cancel() and not entry.outcome.cancelled():
            # Retrieves the exception: a caller cancelled at this moment does not, and asyncio would log it as lost.
            entry.outcome.exception()
        if entry.task is None:
            self._end(entry)
        elif self._is_read and not entry.task.done() and all(each.outcome.done() for each in entry.batch):
            entry.task.cancel()
        # Break the reference cycle of a batch's entries, which otherwise keeps outcomes until a garbage collection.
        entry.batch, entry.task = (), None


def _take_any(_: object) -> Fit:
    return "take"
