"""Limits the connections without an admitted request, and chooses which one to drop for a new one.

Invariant: pending connections never keep out a connection that would be admitted. When all places are taken, the oldest
idle pending connection is dropped for the new one; refused connections are counted and logged.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable

import structlog

STATE = "exai.pending"
"""The key of a connection's `PendingConnection` in the `state` of its ASGI scopes."""

KEEP_ALIVE_S = 5
"""Seconds that a pending connection stays open between two requests."""

MAX_EXAMINED = 64
LOG_INTERVAL_S = 10.0

log = structlog.get_logger(__name__)


class PendingConnection:
    """A connection whose owner is not known yet. `drop` closes it if it is idle and returns whether it did."""

    __slots__ = ("_among", "address", "drop", "when_admitted")

    def __init__(self, among: PendingConnections, address: str, drop: Callable[[], bool]) -> None:
        self._among: PendingConnections | None = among
        self.address = address
        self.drop = drop
        self.when_admitted: Callable[[], None] | None = None

    def admit(self) -> None:
        """End the pending state because the owner is known. Further calls do nothing."""
        if self._among is not None:
            when_admitted = self.when_admitted
            self.leave()
            if when_admitted is not None:
                when_admitted()

    def leave(self) -> None:
        """End the pending state. Drops the references to the protocol, so that both objects are freed at once."""
        if self._among is not None:
            self._among.forget(self)
            self._among = self.when_admitted = None
            self.drop = _is_gone


class PendingConnections:
    """The pending connections of one server, oldest first."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._all: dict[PendingConnection, None] = {}
        self._by_address: Counter[str] = Counter()
        self._clock = clock
        self._refused = 0
        self._logged_at: float | None = None

    def __len__(self) -> int:
        return len(self._all)

    def add(self, address: str, drop: Callable[[], bool]) -> PendingConnection:
        """Count a new connection."""
        pending = PendingConnection(self, address, drop)
        self._all[pending] = None
        self._by_address[address] += 1
        return pending

    def forget(self, pending: PendingConnection) -> None:
        """Remove a connection; see `PendingConnection.leave`. Addresses without pending connections are not kept."""
        del self._all[pending]
        self._by_address[pending.address] -= 1
        if not self._by_address[pending.address]:
            del self._by_address[pending.address]

    def of(self, address: str) -> int:
        """Return the number of pending connections from this address."""
        return self._by_address[address]

    def drop_oldest(self, newcomer: PendingConnection) -> bool:
        """Drop the oldest idle connection except `newcomer`. Returns False if there is none."""
        for pending in list(itertools.islice(self._all, MAX_EXAMINED)):
            if pending is not newcomer and pending.drop():
                pending.leave()
                return True
        return False

    def refused(self, setting: str, limit: int) -> None:
        """Count a connection refused for this limit, and log the count at most once in `LOG_INTERVAL_S`."""
        self._refused += 1
        now = self._clock()
        if self._logged_at is None or now - self._logged_at >= LOG_INTERVAL_S:
            log.warning("refused connections", setting=setting, limit=limit, refused=self._refused)
            self._logged_at, self._refused = now, 0


def _is_gone() -> bool:
    return False


def admit(state: object) -> None:
    """Note in an ASGI scope's `state` that the connection's owner is known."""
    pending = state.get(STATE) if isinstance(state, dict) else None
    if isinstance(pending, PendingConnection):
        pending.admit()
