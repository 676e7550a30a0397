"""A fixed set of connections that heals itself: taking and giving one back costs no task, no timer and no round trip.

The driver's own pool starts a task for each release, which is a quarter of the whole client cost of reading a page.
Here a connection whose statement ended goes straight to the next waiter, owners in turn (`exai.fairness`); one whose
statement was cut off is first settled in the background, and counts as its owner's until then; a lost one is replaced
in the background, at once, and again and again until it succeeds.

Each of the `size` places is, at any time, exactly one of: idle, taken, or being mended.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import asyncpg

from exai.errors import ShuttingDown
from exai.fairness import Holder, Turns
from exai.resilience import Clock, backoff_s

SETTLE_LIMIT_S: Final = 1.0
"""How long a cancelled statement may take to be acknowledged before its connection is dropped."""

CLOSE_LIMIT_S: Final = 5.0
RECONNECT_BASE_S: Final = 0.05
RECONNECT_CAP_S: Final = 2.0

PATIENCE_S: Final = 3.0
"""For this long after the last connection was lost callers still wait for a new one: a server or pooler that restarts
is back by then. Later they are told at once, until a connection could be made."""


_ARRAY_AGG: Final = re.compile(r"(?<![\w.])array_agg\(")


class OneTrip(asyncpg.Connection):
    """Parse, Bind, Execute and Sync in one write; nothing is left on the server between statements."""

    __slots__ = ("generation", "holder", "is_read_committed")
    generation: int
    is_read_committed: bool
    """Whether a transaction is read committed unless it asks for something else."""
    holder: Holder
    """The owner that the connection is taken for."""

    def get_reset_query(self) -> str:
        """Nothing: there is no session state, and through a pooler a reset would hit some other session."""
        return ""

    def _get_unique_id(self, prefix: str) -> str:
        return "" if prefix == "stmt" else str(super()._get_unique_id(prefix))

    async def _get_statement(self, *args: Any, **kwargs: Any) -> Any:
        statement = await super()._get_statement(*args, **kwargs)
        if not statement.name:
            # Makes the driver send Parse along with each Bind instead of relying on the server to remember.
            statement.mark_unprepared()
        return statement

    async def _introspect_types(self, typeoids: Any, timeout: float | None) -> Any:
        # The driver's own question for unknown types must not find functions that others have created, either.
        self._intro_query = _ARRAY_AGG.sub("pg_catalog.array_agg(", self._intro_query)
        return await super()._introspect_types(typeoids, timeout)


class Connections:
    """Made empty; `start` fills it, `close` empties it for good. For the tasks of one event loop."""

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
    def away_s(self) -> float | None:
        """Seconds since no connection was open and none could be made; None while that is not so."""
        if self._away_since is None or self.live:
            return None
        return self.clock() - self._away_since

    async def start(self) -> None:
        """Open all of them at once. Raises what the opener raises, with nothing left open."""
        results = await asyncio.gather(*(self._open() for _ in range(self.size)), return_exceptions=True)
        errors = [result for result in results if isinstance(result, BaseException)]
        self._idle.extend(result for result in results if not isinstance(result, BaseException))
        if errors:
            await self.close()
            raise errors[0]

    def take_nowait(self, owner: Holder) -> OneTrip | None:
        """An idle connection for this owner, or None if one would have to be waited for."""
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
        """A connection for this owner, waited for in turn.

        Raises:
            TimeoutError: none became free within `limit_s`, or none can be made for longer than anybody waits.
            ShuttingDown: the pool is being closed.

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
                # It was handed over in the instant in which we stopped waiting.
                self.give(waiter.result())
            else:
                waiter.cancel()
                self._turns.leave(owner, waiter)
            raise

    def give(self, connection: OneTrip) -> None:
        """Give back a connection whose statement has ended, well or badly."""
        self._release(connection)
        if self._closing or connection.generation != self._generation or not _is_usable(connection):
            self._mend(connection)
        else:
            self._add(connection)

    def _add(self, connection: OneTrip) -> None:
        """Hand one more usable connection to the next waiter, or keep it idle."""
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
        """Give back a connection whose statement was cut off by a timeout or a cancellation."""
        self._taken.discard(connection)
        self._mend(connection, settle=True)

    def renew(self) -> None:
        """Let every connection be replaced: idle ones now, taken ones when they come back."""
        self._generation += 1
        while self._idle:
            self._mend(self._idle.pop())

    async def close(self) -> None:
        """Wait for the statements in flight, within a limit, and close everything."""
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
        generation = self._generation
        connection = await self._opener()
        connection.generation = generation
        connection.add_termination_listener(self._lost)
        return connection

    def _lost(self, connection: OneTrip) -> None:
        # A taken connection tells its taker; an idle one has nobody else to notice.
        if connection in self._idle:
            self._idle.remove(connection)
            self._mend(connection)

    def _mend(self, connection: OneTrip, *, settle: bool = False) -> None:
        task = asyncio.create_task(self._mended(connection, settle=settle), name="db-mend")
        self._menders.add(task)
        task.add_done_callback(self._menders.discard)

    async def _mended(self, connection: OneTrip, *, settle: bool) -> None:
        if settle:
            is_settled = not self._closing and await _settled(connection)
            self._turns.end(connection.holder)
            if is_settled:
                self.give(connection)
                return
        connection.terminate()
        attempt = 0
        while not self._closing:
            try:
                fresh = await self._open()
            except Exception as error:  # noqa: BLE001 - whatever the driver makes of half an answer, the place is mended
                self.last_error = error
                if self._away_since is None and not self.live:
                    self._away_since = self.clock()
                attempt += 1
                await asyncio.sleep(backoff_s(attempt, RECONNECT_BASE_S, RECONNECT_CAP_S))
            else:
                self.last_error = self._away_since = None
                self.give(fresh)
                return


async def _settled(connection: OneTrip) -> bool:
    """Whether the server has acknowledged the cancellation; the driver waits for that before the next statement."""
    try:
        await connection.execute("select 1", timeout=SETTLE_LIMIT_S)
    except Exception:  # noqa: BLE001 - the driver has more kinds of errors than it tells, and all mean no
        return False
    return _is_usable(connection)


def _is_usable(connection: OneTrip) -> bool:
    return not (connection.is_closed() or connection.is_in_transaction())
