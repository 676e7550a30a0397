"""The limits of one owner in this process, over all its connections and transports.

Invariant: an owner over a limit receives the name of the limit and when to try again; limits of different owners are
independent; nothing is kept of an owner that has been idle for `BURST_S`.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from typing import Final

from exai.account import Account
from exai.errors import Overloaded
from exai.models import Owner, Recorder
from exai.resilience import Clock
from exai.settings.load import ServerSettings

BURST_S = 10.0
"""The unused part of a rate is saved for this time, since requests come in bursts."""

TIME_SHARE = 0.5
"""The share of processor time for reading and parsing an owner's input, beyond `TIME_BURST_S`."""

TIME_BURST_S = 0.1
MAX_PAUSE_S = 1.0
ALONE_AFTER_S = 1.0
"""An owner is alone, and may use the whole processor, if no other owner has sent anything for this time."""


BARRED_S = 5.0

MAX_ADDRESSES = 16_000
"""Subscribed URIs of one owner, over all its connections."""

LIMITS: Final = (
    "barred",
    "bytes_per_s",
    "connection_requests",
    "connection_subscriptions",
    "connections",
    "in_flight",
    "in_flight_bytes",
    "processor_time",
    "requests_per_s",
    "subscribed_addresses",
    "tasks",
)
"""What can refuse or delay an owner's requests; those that begin with `connection_` limit each of its connections."""

_LOOKED_AT = 2
"""Idle owners to examine for removal at each lookup; more than one, so that their number cannot grow."""


class Bucket:
    """A token bucket: a rate with a burst."""

    def __init__(self, per_s: float, now: float, *, least: float = 1.0) -> None:
        self._per_s = per_s
        self._most = max(per_s * BURST_S, least)
        self.left = self._most
        self._filled_at = now

    def wait_s(self, wanted: float, now: float) -> float:
        """Return the seconds until this amount can be taken; 0 if it can be taken now."""
        left = self.refill(now)
        return 0.0 if wanted <= left else max(0.0, (min(wanted, self._most) - left) / self._per_s)

    def refill(self, now: float) -> float:
        """Add what has flowed in since the last time, and return the content."""
        left = self.left + (now - self._filled_at) * self._per_s
        self.left = left = left if left < self._most else self._most  # noqa: FURB136 - `min` takes longer than this
        self._filled_at = now
        return left

    def take(self, wanted: float) -> None:
        """Take an amount that `wait_s` has just allowed, or the whole content if it is less."""
        self.left = self.left - wanted if self.left > wanted else 0.0


class RecentSenders:
    """The two owners that sent last: enough to decide whether an owner is alone."""

    def __init__(self) -> None:
        self._last: Quota | None = None
        self._last_at = self._before_at = -inf

    def note(self, owner: Quota, now: float) -> None:
        """Note that an owner has sent something."""
        if self._last is not owner:
            self._last, self._before_at = owner, self._last_at
        self._last_at = now

    def is_shared(self, owner: Quota, now: float) -> bool:
        """Return whether another owner has sent something within `ALONE_AFTER_S`."""
        sent_at = self._before_at if self._last is owner else self._last_at
        return now - sent_at < ALONE_AFTER_S


class Quota:
    """The limits and usage of one owner; made by `Quotas`."""

    def __init__(self, limits: ServerSettings, clock: Clock, senders: RecentSenders, recorder: Recorder) -> None:
        self._limits, self._clock, self._senders, self._recorder = limits, clock, senders, recorder
        self._connections = 0
        self._running = 0
        self._addresses = 0
        self._barred_until = 0.0
        self.account = Account(limits.owner_max_in_flight_bytes, self.note_limited)
        self.used_at = clock()
        self._debt_s, self._debt_at = 0.0, self.used_at
        self._requests = Bucket(limits.owner_requests_per_s, self.used_at)
        self._bytes = Bucket(limits.owner_bytes_per_s, self.used_at, least=limits.message_max_bytes)

    @property
    def is_idle(self) -> bool:
        """Return whether the owner has no connection, running request or held bytes."""
        return not self._connections and not self._running and not self.account.held_bytes

    def note_limited(self, limit: str) -> None:
        """Count that a limit has refused or delayed something of this owner."""
        self._recorder.count("owner_limited_total", limit=limit)

    @contextmanager
    def hold_connection(self) -> Iterator[None]:
        """Count one WebSocket or HTTP request while the block runs. Raises `Overloaded`."""
        if not self.connect():
            most = self._limits.owner_max_connections
            raise Overloaded("EXAI_SERVER__OWNER_MAX_CONNECTIONS of one owner's connections", most)
        try:
            yield
        finally:
            self.disconnect()

    def connect(self) -> bool:
        """Count one connection until `disconnect`. Returns False if the owner has too many."""
        if self._connections >= self._limits.owner_max_connections:
            self.note_limited("connections")
            return False
        self._connections += 1
        return True

    def disconnect(self) -> None:
        """Release one connection."""
        self._connections -= 1

    def bar(self) -> None:
        """Refuse new WebSockets of this owner for `BARRED_S`, after one was closed because of its input."""
        self._barred_until = self._clock() + BARRED_S

    def check_barred(self) -> None:
        """Raise `Overloaded` while new WebSockets of this owner are refused."""
        if (wait_s := self._barred_until - self._clock()) > 0:
            self.note_limited("barred")
            raise Overloaded("connecting again after a connection was closed for abuse", BARRED_S, retry_after_s=wait_s)

    def take(self, size_bytes: int) -> None:
        """Count one message by number and size. Raises `Overloaded`, and then counts nothing."""
        now = self._clock()
        requests, volume = self._requests, self._bytes
        if requests.refill(now) >= 1 and volume.refill(now) >= size_bytes:
            requests.left -= 1
            volume.left -= size_bytes
            self._senders.note(self, now)
            return
        # Both limits are checked before either is charged, so that a refused message counts for nothing.
        if (wait_s := self._requests.wait_s(1, now)) > 0:
            self.note_limited("requests_per_s")
            limit = "EXAI_SERVER__OWNER_REQUESTS_PER_S of one owner's requests a second"
            raise Overloaded(limit, round(self._limits.owner_requests_per_s, 3), retry_after_s=wait_s)
        if (wait_s := self._bytes.wait_s(size_bytes, now)) > 0:
            self.note_limited("bytes_per_s")
            limit = "EXAI_SERVER__OWNER_BYTES_PER_S of one owner's bytes a second"
            raise Overloaded(limit, self._limits.owner_bytes_per_s, retry_after_s=wait_s)
        self._senders.note(self, now)
        self._requests.take(1)
        self._bytes.take(size_bytes)

    def spend(self, size_bytes: int, count: int = 1) -> bool:
        """Count messages or frames that cannot be refused, since they have no answer. Returns False over a rate."""
        now = self._clock()
        is_within = True
        if self._requests.wait_s(count, now) > 0:
            is_within = False
            self.note_limited("requests_per_s")
        elif self._bytes.wait_s(size_bytes, now) > 0:
            is_within = False
            self.note_limited("bytes_per_s")
        # Charged over the rate as well: the input has already been received.
        self._requests.take(count)
        self._bytes.take(size_bytes)
        return is_within

    def charge_time(self, seconds: float) -> float:
        """Count processor time; return the seconds that the owner's next input waits so that others get their share."""
        now = self._clock()
        self._debt_s = max(0.0, self._debt_s - (now - self._debt_at) * TIME_SHARE) + seconds
        self._debt_at = now
        if self._debt_s <= TIME_BURST_S or not self._senders.is_shared(self, now):
            # Time used while alone is not held against the owner when another one arrives.
            self._debt_s = min(self._debt_s, TIME_BURST_S)
            return 0.0
        self.note_limited("processor_time")
        return min((self._debt_s - TIME_BURST_S) / TIME_SHARE, MAX_PAUSE_S)

    def subscribe(self, count: int, size_bytes: int) -> None:
        """Count URIs to which a connection subscribes, and their bytes. Raises `Overloaded`."""
        if self._addresses + count > MAX_ADDRESSES:
            self.note_limited("subscribed_addresses")
            raise Overloaded("one owner's subscribed addresses", MAX_ADDRESSES, cure="Unsubscribe from others first")
        self.account.take(size_bytes, "subscriptions")
        self._addresses += count

    def unsubscribe(self, count: int, size_bytes: int) -> None:
        """Release URIs counted by `subscribe`."""
        self._addresses -= count
        self.account.give(size_bytes)

    def begin(self, size_bytes: int) -> None:
        """Count one running request of this size until `end`. Raises `Overloaded`."""
        most = self._limits.owner_max_in_flight
        if self._running >= most:
            self.note_limited("in_flight")
            raise Overloaded("EXAI_SERVER__OWNER_MAX_IN_FLIGHT of one owner's running requests", most)
        self.account.take(size_bytes)
        self._running += 1

    def end(self, size_bytes: int) -> None:
        """Release one running request of this size."""
        self._running -= 1
        self.account.give(size_bytes)


class Quotas:
    """The quotas of all owners that have sent something recently."""

    def __init__(self, limits: ServerSettings, recorder: Recorder, clock: Clock = time.monotonic) -> None:
        self._limits, self._recorder, self._clock = limits, recorder, clock
        for limit in LIMITS:
            recorder.count("owner_limited_total", 0, limit=limit)
        self._senders = RecentSenders()
        self._known: OrderedDict[Owner, Quota] = OrderedDict()
        # The owner that was looked up last, and the time before which no owner can be idle for long enough.
        self._newest: Quota | None = None
        self._newest_owner: Owner | None = None
        self._next_look = -inf

    def __len__(self) -> int:
        return len(self._known)

    def of(self, owner: Owner) -> Quota:
        """Return an owner's quota: the same object for as long as it has usage to remember."""
        now = self._clock()
        quota = self._newest
        if quota is None or owner != self._newest_owner or now >= self._next_look:
            self._forget_idle(now)
            quota = self._known.get(owner)
            if quota is None:
                quota = self._known[owner] = Quota(self._limits, self._clock, self._senders, self._recorder)
            self._known.move_to_end(owner)
            self._newest, self._newest_owner = quota, owner
        quota.used_at = now
        return quota

    def _forget_idle(self, now: float) -> None:
        for _ in range(_LOOKED_AT):
            owner = next(iter(self._known), None)
            self._next_look = now + BURST_S if owner is None else self._known[owner].used_at + BURST_S
            if owner is None or self._next_look > now:
                return
            if self._known[owner].is_idle:
                del self._known[owner]
            else:
                self._known[owner].used_at = now
                self._known.move_to_end(owner)
