"""Remember committed changes that this process failed to apply to Redis.

Invariant: for one staleness bound after such a change, no read of this process accepts an older entry. After that time
the entry is no longer served, or a watermark covers the change. If there are more than `MAX_REVISIONS` such changes,
this process reads nothing from the cache for that time.
"""

from __future__ import annotations

import time
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

from exai.resilience import Clock

K = TypeVar("K", bound=Hashable)

MAX_REVISIONS: Final = 10_000


class MinRevisions(Generic[K]):
    """Least acceptable revisions by conversation, each valid for `max_staleness_s` seconds."""

    def __init__(self, max_staleness_s: float, *, clock: Clock = time.monotonic) -> None:
        self._max_staleness_s, self._clock = max_staleness_s, clock
        self._min_revisions: dict[K, tuple[int, float]] = {}
        self._closed_until = 0.0

    def note(self, key: K, revision: int) -> None:
        """Record a committed change that may be missing in Redis."""
        now = self._clock()
        if len(self._min_revisions) >= MAX_REVISIONS:
            self._forget(now)
        if len(self._min_revisions) >= MAX_REVISIONS:
            self._closed_until = now + self._max_staleness_s
            return
        known, _ = self._min_revisions.pop(key, (0, 0.0))
        self._min_revisions[key] = (max(known, revision), now + self._max_staleness_s)

    def minimum(self, key: K) -> int | None:
        """Return the least revision to accept from the cache: 0 for any, None if no entry is acceptable."""
        if not self._min_revisions and not self._closed_until:
            return 0
        now = self._clock()
        if now < self._closed_until:
            return None
        revision, until = self._min_revisions.get(key, (0, 0.0))
        return revision if now < until else 0

    def __len__(self) -> int:
        self._forget(self._clock())
        return len(self._min_revisions)

    def _forget(self, now: float) -> None:
        # The dict is ordered by expiry: `note` reinserts each key at the end, and all keys have the same duration.
        while self._min_revisions:
            key = next(iter(self._min_revisions))
            if self._min_revisions[key][1] > now:
                return
            del self._min_revisions[key]
