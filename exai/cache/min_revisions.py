"""Remember committed changes that this process failed to apply to Redis.

Invariant: for one staleness bound after such a change, no read of this process accepts an older entry. After that time
the entry is no longer served, or a licence covers the change. If there are more than `MAX_FLOORS` such changes, this
process reads nothing from the cache for that time.
"""

from __future__ import annotations

import time
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

from exai.resilience import Clock

K = TypeVar("K", bound=Hashable)

MAX_FLOORS: Final = 10_000


class Floors(Generic[K]):
    """Least acceptable revisions by conversation, each valid for `max_staleness_s` seconds."""

    def __init__(self, max_staleness_s: float, *, clock: Clock = time.monotonic) -> None:
        self._bound_s, self._clock = max_staleness_s, clock
        self._floors: dict[K, tuple[int, float]] = {}
        self._closed_until = 0.0

    def note(self, key: K, revision: int) -> None:
        """Record a committed change that may be missing in Redis."""
        now = self._clock()
        if len(self._floors) >= MAX_FLOORS:
            self._forget(now)
        if len(self._floors) >= MAX_FLOORS:
            self._closed_until = now + self._bound_s
            return
        known, _ = self._floors.pop(key, (0, 0.0))
        self._floors[key] = (max(known, revision), now + self._bound_s)

    def least(self, key: K) -> int | None:
        """Return the least revision to accept from the cache: 0 for any, None if no entry is acceptable."""
        if not self._floors and not self._closed_until:
            return 0
        now = self._clock()
        if now < self._closed_until:
            return None
        revision, until = self._floors.get(key, (0, 0.0))
        return revision if now < until else 0

    def __len__(self) -> int:
        self._forget(self._clock())
        return len(self._floors)

    def _forget(self, now: float) -> None:
        # The dict is ordered by expiry: `note` reinserts each key at the end, and all keys have the same duration.
        while self._floors:
            key = next(iter(self._floors))
            if self._floors[key][1] > now:
                return
            del self._floors[key]
