"""How many batches of statements are in flight to the database at once.

Rule: a statement is delayed only while the database is what is busy. The quickest round trip of any statement is the
network floor, and a statement occupies the server for about a millisecond of it, so while fewer statements are in
flight than the network floor has milliseconds, another one is sent at once on a free connection; further ones wait for
an answer and then go together. A near database so gets one statement at a time and the largest batches, and a far one
as many as the batchers' share of the pool allows.

Invariant: as long as statements are answered, a part of the pool is left to other statements, however many wait.
"""

from __future__ import annotations

import time
from math import ceil, inf
from typing import Final

from exai.batching import Queue
from exai.resilience import Clock

OCCUPIED_S: Final = 0.001
"""About how long a statement keeps a server from the next one: less than it takes, since commits share a write to the
disk. A round trip that takes longer is mostly network."""

WINDOW_S: Final = 60.0
"""The network floor is the quickest round trip of this window and the one before it."""

WHOLE_CROWD: Final = 8
"""So many waiting items go together; of more only half do, so that the server works for some while this process works
for the others. Otherwise those that once went together would always arrive and wait together."""

HANGING_S: Final = 0.05
"""A statement in flight for so long beyond the network floor may hang. With less, a server that is slow because it is
busy would get more and smaller batches."""


class NetworkFloor:
    """The quickest round trip to the database, which is mostly network. Every statement is taken in.

    The pool takes in what it asks when it opens a connection, so the floor is known before the first request. What
    only waits for a lock, or for a busy server, does not raise it.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._quickest_s = self._quickest_before_s = inf
        self._window_ends = clock() + WINDOW_S

    @property
    def floor_s(self) -> float:
        """Seconds of the quickest round trip; 0 before the first."""
        quickest_s = min(self._quickest_s, self._quickest_before_s)
        return 0.0 if quickest_s == inf else quickest_s

    @property
    def is_far(self) -> bool:
        """Whether a round trip takes longer than a statement occupies the server."""
        return self.floor_s > OCCUPIED_S

    def observe(self, took_s: float) -> None:
        """Take in how long a round trip took."""
        now = self._clock()
        if now >= self._window_ends:
            self._quickest_before_s, self._quickest_s = self._quickest_s, inf
            self._window_ends = now + WINDOW_S
        self._quickest_s = min(self._quickest_s, took_s)


class PoolShare:
    """How many connections of a pool of `size` the batchers together may take up.

    Half of them, so that one batcher may have these while the others are idle. Half of that each batcher may have in
    any case, so that none starves beside another that is always busy. A statement to a far database occupies a
    connection and no server, so one batcher may have three quarters, if one connection is left beside the others' part.
    """

    def __init__(self, size: int, network: NetworkFloor) -> None:
        self.network = network
        self._near = max(1, size // 2)
        self._own = max(1, self._near // 2)
        self._far = max(self._near, min(size * 3 // 4, size - self._own - 1))
        self._batchers: list[Queue] = []

    @property
    def places(self) -> int:
        """Connections that one batcher may take up while the others are idle."""
        return self._far if self.network.is_far else self._near

    def add(self, batcher: Queue) -> None:
        """Count a batcher from now on."""
        self._batchers.append(batcher)

    def has_place(self, in_flight: int) -> bool:
        """Whether a batcher with so many statements in flight may send one more."""
        return in_flight < self._own or sum(batcher.in_flight for batcher in self._batchers) < self.places

    def note_end(self) -> None:
        """Let batchers send that wait for a place."""
        for batcher in self._batchers:
            batcher.look()


class ConcurrencyLimit:
    """How many statements of one kind may be in flight: at least `least`, at most the places of the pool's share."""

    def __init__(self, share: PoolShare, *, least: int = 1) -> None:
        self._share, self._network, self._least = share, share.network, least

    @property
    def at_once(self) -> int:
        """Statements that may be in flight now."""
        return min(max(self._least, ceil(self._network.floor_s / OCCUPIED_S)), self._share.places)

    def attach(self, batcher: Queue) -> None:
        """Implement `Limit`."""
        self._share.add(batcher)

    def may_send(self, in_flight: int) -> bool:
        """Implement `Limit`."""
        return in_flight < self.at_once and self._share.has_place(in_flight)

    def batch_size(self, waiting: int) -> int:
        """Implement `Limit`."""
        return max(ceil(waiting / 2), WHOLE_CROWD)

    def max_wait_s(self) -> float:
        """Implement `Limit`."""
        return self._network.floor_s + HANGING_S

    def note_end(self) -> None:
        """Implement `Limit`."""
        self._share.note_end()
