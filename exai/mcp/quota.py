"""What one owner may ask of this process, over all its connections and through any door.

The invariant is that an owner who asks for more is told which limit it met and when to try again, that what another
owner may have does not depend on it, and that nothing is kept of an owner who has been quiet for `BURST_S`.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf

from exai.account import Account
from exai.config import ServerSettings
from exai.errors import Overloaded
from exai.models import Owner

BURST_S = 10.0
"""What an owner did not use of a rate is saved for so long: work comes in bursts."""

TIME_SHARE = 0.5
"""The part of the processor that reading and parsing an owner's input may have, beyond `TIME_BURST_S`."""

TIME_BURST_S = 0.1
MAX_PAUSE_S = 1.0
ALONE_AFTER_S = 1.0
"""An owner is alone, and may have all of the processor, when no other has sent anything for so long."""


BARRED_S = 5.0

MAX_ADDRESSES = 16_000
"""Addresses that one owner may have subscribed to, over all its connections."""

_LOOKED_AT = 2
"""Quiet owners that are forgotten whenever one speaks; more than one, so that they never pile up."""

Clock = Callable[[], float]


class Bucket:
    """A rate with a burst; what is taken comes back as time passes."""

    def __init__(self, per_s: float, now: float, *, least: float = 1.0) -> None:
        self._per_s = per_s
        self._most = max(per_s * BURST_S, least)
        self._left = self._most
        self._filled_at = now

    def wait_s(self, wanted: float, now: float) -> float:
        """Return in how many seconds so much can be taken, 0 when it can be now."""
        left = self._left + (now - self._filled_at) * self._per_s
        self._left = left if left < self._most else self._most  # noqa: FURB136 - `min` takes longer than all of this
        self._filled_at = now
        if wanted <= self._left:
            return 0.0
        return max(0.0, (min(wanted, self._most) - self._left) / self._per_s)

    def take(self, wanted: float) -> None:
        """Take what `wait_s` has just allowed, or all there is."""
        self._left = self._left - wanted if self._left > wanted else 0.0


class Lately:
    """The two owners that spoke last, which is enough to know whether an owner is alone."""

    def __init__(self) -> None:
        self._last: tuple[Quota | None, float] = (None, -inf)
        self._before: tuple[Quota | None, float] = (None, -inf)

    def spoke(self, owner: Quota, now: float) -> None:
        """An owner has sent something."""
        if self._last[0] is not owner:
            self._before = self._last
        self._last = (owner, now)

    def is_shared(self, owner: Quota, now: float) -> bool:
        """Whether another owner has sent something within `ALONE_AFTER_S`."""
        _, spoke_at = self._before if self._last[0] is owner else self._last
        return now - spoke_at < ALONE_AFTER_S


class Quota:
    """One owner's share; made by `Quotas`."""

    def __init__(self, limits: ServerSettings, clock: Clock, lately: Lately) -> None:
        self._limits, self._clock, self._lately = limits, clock, lately
        self._connections = 0
        self._running = 0
        self._addresses = 0
        self._barred_until = 0.0
        self.account = Account(limits.owner_max_in_flight_bytes)
        self.used_at = clock()
        self._debt_s, self._debt_at = 0.0, self.used_at
        self._requests = Bucket(limits.owner_requests_per_s, self.used_at)
        self._bytes = Bucket(limits.owner_bytes_per_s, self.used_at, least=limits.message_max_bytes)

    @property
    def is_idle(self) -> bool:
        """Whether nothing of this owner is here any more."""
        return not self._connections and not self._running and not self.account.held_bytes

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Count one WebSocket or HTTP request meanwhile. Raises `Overloaded`."""
        if not self.connect():
            most = self._limits.owner_max_connections
            raise Overloaded("EXAI_SERVER__OWNER_MAX_CONNECTIONS of one owner's connections", most)
        try:
            yield
        finally:
            self.disconnect()

    def connect(self) -> bool:
        """Count one until `disconnect`; False when the owner has too many."""
        if self._connections >= self._limits.owner_max_connections:
            return False
        self._connections += 1
        return True

    def disconnect(self) -> None:
        """One less."""
        self._connections -= 1

    def bar(self) -> None:
        """Have no WebSocket of this owner opened for `BARRED_S`: one was just closed for what it sent."""
        self._barred_until = self._clock() + BARRED_S

    def check_barred(self) -> None:
        """Raise `Overloaded` while the owner may open no WebSocket."""
        if (wait_s := self._barred_until - self._clock()) > 0:
            raise Overloaded("connecting again after a connection was closed for abuse", BARRED_S, retry_after_s=wait_s)

    def take(self, size_bytes: int) -> None:
        """Count one message by number and size; a refused one counts for nothing. Raises `Overloaded`."""
        now = self._clock()
        if (wait_s := self._requests.wait_s(1, now)) > 0:
            limit = "EXAI_SERVER__OWNER_REQUESTS_PER_S of one owner's requests a second"
            raise Overloaded(limit, round(self._limits.owner_requests_per_s, 3), retry_after_s=wait_s)
        if (wait_s := self._bytes.wait_s(size_bytes, now)) > 0:
            limit = "EXAI_SERVER__OWNER_BYTES_PER_S of one owner's bytes a second"
            raise Overloaded(limit, self._limits.owner_bytes_per_s, retry_after_s=wait_s)
        self._lately.spoke(self, now)
        self._requests.take(1)
        self._bytes.take(size_bytes)

    def spend(self, size_bytes: int, count: int = 1) -> bool:
        """Count messages or frames that nothing answers and so nothing can refuse; False when beyond a rate."""
        now = self._clock()
        is_within = self._requests.wait_s(count, now) <= 0 and self._bytes.wait_s(size_bytes, now) <= 0
        self._requests.take(count)
        self._bytes.take(size_bytes)
        return is_within

    def spent_s(self, seconds: float) -> float:
        """Count processor time; return how long the owner's next input should wait for others to have their share."""
        now = self._clock()
        self._debt_s = max(0.0, self._debt_s - (now - self._debt_at) * TIME_SHARE) + seconds
        self._debt_at = now
        if self._debt_s <= TIME_BURST_S or not self._lately.is_shared(self, now):
            self._debt_s = min(self._debt_s, TIME_BURST_S)
            return 0.0
        return min((self._debt_s - TIME_BURST_S) / TIME_SHARE, MAX_PAUSE_S)

    def subscribe(self, count: int, size_bytes: int) -> None:
        """Count addresses that a connection subscribes to, and their bytes. Raises `Overloaded`."""
        if self._addresses + count > MAX_ADDRESSES:
            raise Overloaded("one owner's subscribed addresses", MAX_ADDRESSES, cure="Unsubscribe from others first")
        self.account.take(size_bytes, "subscriptions")
        self._addresses += count

    def unsubscribe(self, count: int, size_bytes: int) -> None:
        """Give them back."""
        self._addresses -= count
        self.account.give(size_bytes)

    def begin(self, size_bytes: int) -> None:
        """Count one running request of this size until `end`. Raises `Overloaded`."""
        most = self._limits.owner_max_in_flight
        if self._running >= most:
            raise Overloaded("EXAI_SERVER__OWNER_MAX_IN_FLIGHT of one owner's running requests", most)
        self.account.take(size_bytes)
        self._running += 1

    def end(self, size_bytes: int) -> None:
        """One running request of this size less."""
        self._running -= 1
        self.account.give(size_bytes)


class Quotas:
    """The owners that speak or have spoken lately."""

    def __init__(self, limits: ServerSettings, clock: Clock = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._lately = Lately()
        self._known: OrderedDict[Owner, Quota] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def of(self, owner: Owner) -> Quota:
        """Return an owner's quota, the same one for as long as it matters."""
        now = self._clock()
        self._forget_quiet(now)
        quota = self._known.get(owner)
        if quota is None:
            quota = self._known[owner] = Quota(self._limits, self._clock, self._lately)
        quota.used_at = now
        self._known.move_to_end(owner)
        return quota

    def _forget_quiet(self, now: float) -> None:
        for _ in range(_LOOKED_AT):
            owner = next(iter(self._known), None)
            if owner is None or self._known[owner].used_at + BURST_S > now:
                return
            if self._known[owner].is_idle:
                del self._known[owner]
            else:
                self._known[owner].used_at = now
                self._known.move_to_end(owner)
