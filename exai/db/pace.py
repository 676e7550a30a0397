"""When statements that several callers share are sent: how many at once, and how long the others wait meanwhile.

The invariant is that nobody waits here for twice `PATIENCE_S` because something hangs, and that as long as statements
are answered a part of the pool is left to whatever else is asked, however many wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from math import ceil, inf
from typing import Any, Final, Generic, TypeVar

from exai.fairness import Line
from exai.models import Owner

T = TypeVar("T")

SPACING_S: Final = 0.002
"""A database that takes longer to answer, when it is not busy, is far: so many statements are under way to it that one
goes about so often. To one that is near there go as few as makes for the largest groups."""

WINDOW: Final = 256
"""Statements of which the quickest says how far the database is."""

PATIENCE_S: Final = 0.05
"""What was under way before somebody began to wait, and still is after so long, is waited for no more. About what a far
database takes to answer; with less, a server that is slow because it is busy would get more and smaller groups."""


class Pace:
    """How many statements may be under way at once: `least` to a database that is near, `most` at most."""

    def __init__(self, least: int, most: int) -> None:
        self._least, self._most = min(least, most), most
        self._quickest_s = self._quickest_before_s = inf
        self._seen = 0
        self.at_once = self._least

    def saw(self, took_s: float) -> None:
        """Take in how long a statement took."""
        self._quickest_s = min(self._quickest_s, took_s)
        self._seen += 1
        wanted = ceil(min(self._quickest_s, self._quickest_before_s) / SPACING_S)
        self.at_once = max(self._least, min(self._most, wanted))
        if self._seen == WINDOW:
            self._quickest_before_s, self._quickest_s, self._seen = self._quickest_s, inf, 0


class Room:
    """How many connections of a pool of `size` all gates together may take up: half of them.

    One gate may have all of these while the others are idle. Half of them each gate may have in any case, so none
    starves beside another that is always busy, and together two never have more than three quarters of a pool of four
    or more.
    """

    def __init__(self, size: int) -> None:
        self.places = max(1, size // 2)
        self._own = max(1, self.places // 2)
        self._gates: list[Gate[Any]] = []

    def add(self, gate: Gate[Any]) -> None:
        """Count a gate from now on."""
        self._gates.append(gate)

    def is_left(self, under_way: int) -> bool:
        """Whether a gate with so many statements under way may send one more."""
        return under_way < self._own or sum(gate.under_way for gate in self._gates) < self.places

    def freed(self) -> None:
        """Let those go who wait for a place."""
        for gate in self._gates:
            gate.look()


class Gate(Generic[T]):
    """Those of one kind who wait to be sent: the owners take turns, and each owner's go in their order.

    `send` takes some of them out of the queue and sends them as one statement, under the name of the first, or takes
    out those who have left and returns None. It is called at the end of a turn of the event loop, so what comes
    together goes together; when nothing is under way, that is at once. The context is an empty one, so that what is
    done for several has nobody's deadline.
    """

    def __init__(self, room: Room, send: Callable[[Line[T]], T | None], *, least: int = 1) -> None:
        self._room, self._send = room, send
        self._pace = Pace(least, room.places)
        self.saw = self._pace.saw
        self._waiting: Line[T] = Line()
        self._under_way: set[T] = set()
        self._coming = 0
        self._is_due = False
        self._timer: asyncio.TimerHandle | None = None
        room.add(self)

    @property
    def under_way(self) -> int:
        """Statements that were sent and may still be answered soon."""
        return len(self._under_way)

    async def goes_alone(self, one: T) -> bool:
        """Whether `one` may go and nobody else comes in this turn; then it is under way, and was never in the queue.

        The short way of those who meet nobody. Who does not go alone is to be put into the queue at once, and is then
        sent with those whom it met.
        """
        if self._waiting or not self._may_go():
            return False
        self._coming += 1
        try:
            await asyncio.sleep(0)
        finally:
            self._coming -= 1
        if self._coming or self._waiting or not self._may_go():
            return False
        self._under_way.add(one)
        return True

    def put(self, owner: Owner, one: T) -> None:
        """Let one more wait; owners take turns."""
        self._waiting.put(owner, one)
        self.look()

    def end(self, first: T) -> None:
        """Note that the statement of that name has ended, if it was under way."""
        self._under_way.discard(first)
        self._room.freed()

    def look(self) -> None:
        """See at the end of this turn whether somebody may go."""
        if self._waiting and not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._go, context=Context())

    def _go(self) -> None:
        """Send what may be sent now, and see to it that the rest is not kept for long."""
        self._is_due = False
        while self._waiting and self._may_go() and self._sent():
            pass
        if not self._waiting and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        elif self._waiting and self._timer is None:
            before = frozenset(self._under_way)
            self._timer = asyncio.get_running_loop().call_later(PATIENCE_S, self._lose_patience, before)

    def _may_go(self) -> bool:
        return len(self._under_way) < self._pace.at_once and self._room.is_left(len(self._under_way))

    def _lose_patience(self, before: frozenset[T]) -> None:
        self._timer = None
        # What has been under way for so long may hang, and is waited for no more. When all of it does, so may the next.
        # But a queue that is long while statements are answered is to be worked off in the places there are.
        hanging = self._under_way & before
        self._under_way -= hanging
        if hanging and not self._under_way:
            while self._waiting and self._sent():
                pass
        self._go()

    def _sent(self) -> bool:
        """Whether a statement was sent; False when nobody waits any more."""
        first = self._send(self._waiting)
        if first is None:
            return False
        self._under_way.add(first)
        return True
