"""Keep a fixed number of connections and replace lost ones; acquiring and releasing cost no task or round trip.

asyncpg's pool creates a task for each release, a quarter of the client-side cost of reading a page. Here a connection
whose statement has ended is handed to the next waiter, owners in turn (`exai.fairness`). One whose statement was
cancelled is first settled in the background and counts as its owner's until then. A lost connection is replaced in the
background, with retries until one can be opened.

Invariant: each of the `size` places is idle, taken, or being replaced by exactly one `db-mend` task.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

import asyncpg

from exai.errors import ShuttingDown
from exai.fairness import Holder, Turns
from exai.resilience import Clock, backoff_s

SETTLE_LIMIT_S: Final = 1.0
"""Time for the server to acknowledge the cancellation of a statement, after which the connection is dropped."""

CLOSE_LIMIT_S: Final = 5.0
RECONNECT_BASE_S: Final = 0.05
RECONNECT_CAP_S: Final = 2.0

PATIENCE_S: Final = 3.0
"""Time after the loss of the last connection during which callers wait for a new one, long enough for a server or
pooler to restart. Later calls fail at once until a connection has been opened."""


Descriptions: TypeAlias = dict[str, Any]
"""What the server replied about statements, the types of their parameters and columns, by the text of the statement."""

_ARRAY_AGG: Final = re.compile(r"(?<![\w.])array_agg\(")


class OneTrip(asyncpg.Connection):
    """A connection that sends Parse, Bind, Execute and Sync in one write and keeps no state on the server.

    It is opened with a statement cache of size 0: the driver then names no statement, and parses one at each use.
    """

    __slots__ = ("descriptions", "generation", "holder", "is_read_committed")
    descriptions: Descriptions | None
    """Statements that are not described again, shared by the connections of a pool; None: each use describes."""
    generation: int
    is_read_committed: bool
    """Whether read committed is the session's default isolation level."""
    holder: Holder
    """The owner for whose request the connection is taken."""

    def get_reset_query(self) -> str:
        """Return no reset query: there is no session state, and a pooler could run the reset in another session."""
        return ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.descriptions = None

    async def _get_statement(self, query: str, *args: Any, **kwargs: Any) -> Any:
        # A description holds for other connections, too: its types are those of every database, with the same numbers.
        known = self.descriptions
        if known is None or kwargs.get("ignore_custom_codec"):
            return await super()._get_statement(query, *args, **kwargs)
        statement = known.get(query)
        if statement is None:
            statement = known[query] = await super()._get_statement(query, *args, **kwargs)
        return statement

    async def _introspect_types(self, typeoids: Any, timeout: float | None) -> Any:
        # The driver's introspection query calls array_agg unqualified, which may resolve to a user's function.
        self._intro_query = _ARRAY_AGG.sub("pg_catalog.array_agg(", self._intro_query)
        return await super()._introspect_types(typeoids, timeout)


class Connections:
    """The connections of one pool. Empty until `start`; unusable after `close`. For the tasks of one event loop."""

    def __init__(
        self, opener: Callable[[], Awaitable[OneTrip]], size: int, *, reserve: int = 0, clock: Clock = time.monotonic
    ) -> None:
        self.size = size
        self.clock = clock
        self._away_since: float | None = None
        self.last_error: Exception | None = None
        self._opener = opener
        self._idle: list[OneTrip] = []
        self._turns: Turns[asyncio.Future[OneTrip]] = Turns(size, reserve=reserve)
        self._taken: set[OneTrip] = set()
        self._menders: set[asyncio.Task[None]] = set()
        self._generation = 0
        self._closing = False

    @property
    def in_use(self) -> int:
        """Connections that run a statement now."""
        return len(self._taken)

    @property
    def live(self) -> int:
        """Connections that are open."""
        return len(self._idle) + len(self._taken)

    @property
    def waiting(self) -> int:
        """Callers that wait for a connection."""
        return self._turns.waiting

    @property
    def away_s(self) -> float | None:
        """Seconds since the database became unreachable; None while a connection is open or none has failed."""
        if self._away_since is None or self.live:
            return None
        return self.clock() - self._away_since

    async def start(self) -> None:
        """Open all connections concurrently. Raises the opener's first error, after closing the others."""
        results = await asyncio.gather(*(self._open() for _ in range(self.size)), return_exceptions=True)
        errors = [result for result in results if isinstance(result, BaseException)]
        self._idle.extend(result for result in results if not isinstance(result, BaseException))
        if errors:
            await self.close()
            raise errors[0]

    def take_nowait(self, owner: Holder) -> OneTrip | None:
        """Return an idle connection for this owner, None if it has to wait for one."""
        if not self._turns.may_begin(owner, len(self._idle)):
            return None
        self._turns.begin(owner)
        return self._taken_for(owner)

    def _taken_for(self, owner: Holder) -> OneTrip:
        connection = self._idle.pop()
        connection.holder = owner
        self._taken.add(connection)
        return connection

    async def take(self, owner: Holder, limit_s: float) -> OneTrip:
        """Return a connection for this owner, after waiting for the owner's turn if none is free.

        Raises:
            TimeoutError: none became free within `limit_s`, or the database has been away for `PATIENCE_S`.
            ShuttingDown: the pool is closing.

        """
        if self._closing:
            raise ShuttingDown
        connection = self.take_nowait(owner)
        if connection is not None:
            return connection
        if (self.away_s or 0.0) > PATIENCE_S:
            raise TimeoutError
        waiter: asyncio.Future[OneTrip] = asyncio.get_running_loop().create_future()
        self._turns.wait(owner, waiter)
        try:
            async with asyncio.timeout(limit_s):
                return await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                # `_add` handed over a connection in the same loop iteration as the timeout or cancellation. Without
                # this the connection would stay taken forever.
                self.give(waiter.result())
            else:
                waiter.cancel()
                self._turns.leave(owner, waiter)
            raise

    def give(self, connection: OneTrip) -> None:
        """Release a connection whose statement has ended, with a result or a server error."""
        self._release(connection)
        if self._closing or connection.generation != self._generation or not _is_usable(connection):
            self._mend(connection)
        else:
            self._add(connection)

    def _add(self, connection: OneTrip) -> None:
        """Hand a usable connection to the next waiter, or keep it idle."""
        self._idle.append(connection)
        while (chosen := self._turns.choose(len(self._idle))) is not None:
            owner, waiter = chosen
            if waiter.done():
                self._turns.end(owner)
            else:
                waiter.set_result(self._taken_for(owner))

    def _release(self, connection: OneTrip) -> None:
        if connection in self._taken:
            self._taken.remove(connection)
            self._turns.end(connection.holder)

    def give_unsettled(self, connection: OneTrip) -> None:
        """Release a connection whose statement was interrupted by a timeout or a cancellation."""
        # `_turns.end` follows in `_restore`: the server may still execute the statement, so it still counts for its
        # owner. Otherwise an owner could occupy the server with statements it has cancelled.
        self._taken.discard(connection)
        self._mend(connection, settle=True)

    def renew(self) -> None:
        """Replace every connection: idle ones now, taken ones when they are released."""
        self._generation += 1
        while self._idle:
            self._mend(self._idle.pop())

    async def close(self) -> None:
        """Wait up to `CLOSE_LIMIT_S` for statements in flight, then close all connections."""
        self._closing = True
        for waiter in self._turns.clear():
            if not waiter.done():
                waiter.set_exception(ShuttingDown())
        try:
            async with asyncio.timeout(CLOSE_LIMIT_S):
                while self._taken or self._menders:
                    if self._menders:
                        await asyncio.wait(self._menders)
                    else:
                        await asyncio.sleep(0.01)
                await asyncio.gather(*(connection.close() for connection in self._idle))
        except (TimeoutError, OSError):
            pass
        finally:
            for mender in self._menders:
                mender.cancel()
            for connection in (*self._idle, *self._taken):
                connection.terminate()
            self._idle.clear()

    async def _open(self) -> OneTrip:
        # Read before the await: a connection opened before `renew` must count as outdated.
        generation = self._generation
        connection = await self._opener()
        connection.generation = generation
        connection.add_termination_listener(self._discard_lost)
        return connection

    def _discard_lost(self, connection: OneTrip) -> None:
        # The task that holds a taken connection gets the error and releases it; an idle one has no such task.
        if connection in self._idle:
            self._idle.remove(connection)
            self._mend(connection)

    def _mend(self, connection: OneTrip, *, settle: bool = False) -> None:
        task = asyncio.create_task(self._restore(connection, settle=settle), name="db-mend")
        self._menders.add(task)
        task.add_done_callback(self._menders.discard)

    async def _restore(self, connection: OneTrip, *, settle: bool) -> None:
        if settle:
            is_settled = not self._closing and await _settle(connection)
            self._turns.end(connection.holder)
            if is_settled:
                self.give(connection)
                return
        connection.terminate()
        attempt = 0
        while not self._closing:
            try:
                fresh = await self._open()
            except Exception as error:  # noqa: BLE001 - the driver may raise anything for half an answer
                self.last_error = error
                if self._away_since is None and not self.live:
                    self._away_since = self.clock()
                attempt += 1
                await asyncio.sleep(backoff_s(attempt, RECONNECT_BASE_S, RECONNECT_CAP_S))
            else:
                self.last_error = self._away_since = None
                self.give(fresh)
                return


async def _settle(connection: OneTrip) -> bool:
    """Return whether the server acknowledged the cancellation, for which the driver waits before the next statement."""
    try:
        # asyncpg before 0.32 does not apply its own timeout to the wait for the cancellation.
        async with asyncio.timeout(SETTLE_LIMIT_S):
            await connection.execute("select 1")
    except Exception:  # noqa: BLE001 - the driver raises undocumented types, and any error means not settled
        return False
    return _is_usable(connection)


def _is_usable(connection: OneTrip) -> bool:
    return not (connection.is_closed() or connection.is_in_transaction())
