"""Limit how many batched statements are in flight to the database at once.

A statement is delayed only while the database is busy. The network floor is the shortest round trip observed, and a
statement occupies the server for about 1 ms. While fewer statements are in flight than the network floor has
milliseconds, the next one is sent at once on a free connection; further ones wait for a reply and then share a batch.
A near database therefore receives one statement at a time, with the largest batches, and a far one as many at a time
as the batchers' share of the pool permits, at even intervals.

Invariant: as long as the database replies, part of the pool stays free for other statements, however many items wait.
"""

from __future__ import annotations

import time
from math import ceil, inf
from typing import Final

from exai.batching import Queue
from exai.resilience import Clock

OCCUPIED_S: Final = 0.001
"""Approximate server time of one statement. It is less than the statement's duration, because commits share a write to
disk. A longer round trip consists mostly of network time."""

WINDOW_S: Final = 60.0
"""The network floor is the shortest round trip of the current window of this length and the previous one."""

WHOLE_CROWD: Final = 8
"""Up to this many waiting items share a batch; of more, half are sent. The server then processes one half while this
process handles the callers of the other. If all were sent, their callers would return together, and send their next
requests together, so that server and process would take turns being idle."""

UNPACED: Final = 4
"""While less than this part (1/4) of the places is in use, a statement is sent at once; further ones are sent at even
intervals, so that a place is free again when the last one is taken. Without intervals, the first few arrivals take all
places for themselves, and the next ones wait for a whole round trip."""

MIN_INTERVALS: Final = 7
"""Intervals in a round trip, at least: with fewer places, a statement is delayed by no more than this part."""

MIN_INTERVAL_S: Final = 0.002
"""Shorter intervals are not kept: the event loop's timers have a resolution of 1 ms."""

LEAST_PACED_S: Final = MIN_INTERVALS * MIN_INTERVAL_S
"""The shortest round trip that has such intervals."""

HANGING_S: Final = 0.05
"""A statement in flight for this long beyond the network floor may hang, and no longer delays the next batch. A smaller
value would send more and smaller batches to a server that is merely busy."""


class NetworkFloor:
    """The shortest round trip to the database, an estimate of the network's part. Every statement is observed.

    The pool also observes the round trips that open a connection, so the floor is known before the first request. It is
    a minimum, so statements that wait for a lock or a busy server do not raise it.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._quickest_s = self._quickest_before_s = inf
        self._window_ends = clock() + WINDOW_S
        self.floor_s = 0.0
        """The shortest round trip in seconds; 0 before the first observation."""

    @property
    def is_far(self) -> bool:
        """Whether the network floor exceeds the server time of a statement."""
        return self.floor_s > OCCUPIED_S

    def observe(self, took_s: float) -> None:
        """Record the duration of a round trip."""
        now = self._clock()
        if now >= self._window_ends:
            self._quickest_before_s, self._quickest_s = self._quickest_s, inf
            self._window_ends = now + WINDOW_S
        self._quickest_s = min(self._quickest_s, took_s)
        self.floor_s = min(self._quickest_s, self._quickest_before_s)


class PoolShare:
    """The connections of a pool of `size` that all batchers together may use.

    To a near database that is half of the pool, all of it available to one batcher while the others are idle. Each
    batcher may always use a quarter of the pool, so that none starves beside one that is always busy. A statement in
    flight to a far database occupies a connection but hardly the server, so there the share is three quarters, less if
    one connection would not remain beside another batcher's quarter.
    """

    def __init__(self, size: int, network: NetworkFloor) -> None:
        self.network = network
        self._near = max(1, size // 2)
        self._own = max(1, self._near // 2)
        self._far = max(self._near, min(size * 3 // 4, size - self._own - 1))
        self._batchers: list[Queue] = []

    @property
    def places(self) -> int:
        """Connections that one batcher may use while the others are idle."""
        return self._far if self.network.is_far else self._near

    def add(self, batcher: Queue) -> None:
        """Include a batcher in the share."""
        self._batchers.append(batcher)

    def has_place(self, in_flight: int) -> bool:
        """Return whether a batcher with `in_flight` statements may send another one."""
        return in_flight < self._own or sum(batcher.in_flight for batcher in self._batchers) < self.places

    def note_end(self) -> None:
        """Wake the batchers that wait for a place."""
        for batcher in self._batchers:
            batcher.look()


class ConcurrencyLimit:
    """The limit of one batcher's statements in flight: at least `least`, at most the places of the pool's share."""

    def __init__(self, share: PoolShare, *, least: int = 1, clock: Clock = time.monotonic) -> None:
        self._share, self._network, self._least, self._clock = share, share.network, least, clock
        self._started = -inf

    @property
    def at_once(self) -> int:
        """Statements that may be in flight now."""
        return min(max(self._least, ceil(self._network.floor_s / OCCUPIED_S)), self._share.places)

    @property
    def _interval_s(self) -> float:
        """Time between two statements that keeps all places in use; 0 if it is too short to be worth a timer."""
        interval_s = self._network.floor_s / max(self.at_once, MIN_INTERVALS)
        return interval_s if interval_s >= MIN_INTERVAL_S else 0.0

    def attach(self, batcher: Queue) -> None:
        """Implement `Limit`."""
        self._share.add(batcher)

    def pause_s(self, in_flight: int) -> float:
        """Implement `Limit`: the rest of the interval at which all places are used in turn."""
        if self._network.floor_s < LEAST_PACED_S:
            return 0.0
        interval_s = self._interval_s
        if not interval_s or in_flight * UNPACED < self.at_once:
            return 0.0
        return self._started + interval_s - self._clock()

    def note_start(self) -> None:
        """Implement `Limit`."""
        self._started = self._clock()

    def may_send(self, in_flight: int) -> bool:
        """Implement `Limit`."""
        return in_flight < self.at_once and self._share.has_place(in_flight)

    def batch_size(self, waiting: int) -> int:
        """Implement `Limit`: at even intervals, callers return spread out, so all that wait may be sent."""
        return waiting if self._interval_s else max(ceil(waiting / 2), WHOLE_CROWD)

    def max_wait_s(self) -> float:
        """Implement `Limit`."""
        return self._network.floor_s + HANGING_S

    def note_end(self) -> None:
        """Implement `Limit`."""
        self._share.note_end()
