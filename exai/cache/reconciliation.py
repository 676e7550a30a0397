"""Reconcile Redis with the database about every half second and renew the licence to serve older entries.

One reconciliation is called a pass. A pass by any daemon serves all daemons. Without passes, entries are served for one
staleness bound after they were filled; nothing else depends on this task.

Invariant: a licence is renewed only after every change visible to the database snapshot is enforced in Redis, and to a
time taken before that snapshot.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias, TypeVar, cast

import structlog

from exai.cache.entry import anchor, place
from exai.cache.redis.client import RedisClient
from exai.cache.redis.faults import REDIS, CacheRefused
from exai.cache.redis.scripts import Scripts
from exai.errors import CacheError
from exai.models import ContinuationId, Owner, Recorder
from exai.resilience import Random
from exai.settings.load import CacheSettings

MAX_ROWS: Final = 5_000
"""Changed conversations that a pass enforces individually. With more, it drops the licence, so that older entries are
no longer served."""

PASS_LIMIT_S: Final = 10.0
PASS_JITTER: Final = 0.2
MICROSECOND: Final = 1_000_000

T = TypeVar("T")
ReconciliationOutcome: TypeAlias = Literal["renewed", "generation", "skipped", "lost", "overflow", "failed"]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ChangedRevisions:
    """Conversations changed since a snapshot, seen by a newer one.

    `xmin` is the newer snapshot's xmin, `inc` the database's incarnation, a row is (owner, continuation id, revision).
    `overflow` means that there were more rows than the statement's limit.
    """

    xmin: str
    inc: str
    rows: Sequence[tuple[Owner, ContinuationId, int]] = ()
    overflow: bool = False


ChangesSince: TypeAlias = Callable[[str | None], Awaitable[ChangedRevisions]]
"""Returns the conversations last changed by a transaction id not below the given xmin; no rows for None."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """A slot group's licence at the start of a pass; `now_us` is the server's time, taken before everything else."""

    group: int
    now_us: int
    generation: bytes
    xmin: bytes
    inc: bytes
    asof: bytes

    @property
    def age_us(self) -> int | None:
        """Microseconds since the licence was renewed, None without one; negative if the clock was set back since."""
        return self.now_us - int(self.asof) if self.asof else None

    def is_fresh(self, within_us: float) -> bool:
        """Return whether the licence was renewed less than `within_us` microseconds ago."""
        return self.age_us is not None and 0 <= self.age_us < within_us


@dataclass(slots=True)
class Licence:
    """Renews the licences of all slot groups; one per process."""

    client: RedisClient
    scripts: Scripts
    changes: ChangesSince
    settings: CacheSettings
    recorder: Recorder
    rand: Random = random.random
    problem: str | None = None
    """The error of the last pass, None if it succeeded."""
    _seen: tuple[float, float] | None = field(default=None, init=False)

    @property
    def age_s(self) -> float | None:
        """Seconds since the oldest slot group's licence was renewed, as known here; None before the first pass."""
        if self._seen is None:
            return None
        age_s, at = self._seen
        return age_s + time.monotonic() - at

    async def keep(self) -> None:
        """Run passes until cancelled. Errors do not end the loop; each is counted and shown in the status."""
        while True:
            try:
                async with asyncio.timeout(PASS_LIMIT_S):
                    outcome = await self.renew()
                self.problem = None
            except Exception as error:  # noqa: BLE001 - the boundary of a side task that must outlive any fault
                outcome = "failed"
                self._log_failure(error)
            self.recorder.count("cache_reconciliations_total", outcome=outcome)
            if self.age_s is not None:
                self.recorder.gauge("cache_watermark_age_seconds", self.age_s)
            # Jittered, so that daemons started together do not all pass at the same moment.
            await asyncio.sleep(self.settings.reconcile_interval_s * (1 - PASS_JITTER + 2 * PASS_JITTER * self.rand()))

    async def renew(self) -> ReconciliationOutcome:
        """Run one pass: 1 database round trip and 2 Redis round trips per slot group.

        A group whose server is down does not prevent the renewal of the others; its error is raised at the end. Raises
        `CacheError` and the errors of `changes`.
        """
        # The order matters: the anchors, with the servers' times, are read before the database snapshot is taken. A
        # licence dated after the snapshot would cover changes that the snapshot does not see.
        looked_at = time.monotonic()
        anchors, faults = await _all(self._look(group) for group in range(self.client.groups))
        fresh_us = self.settings.reconcile_interval_s / 2 * MICROSECOND
        due = [each for each in anchors if not each.is_fresh(fresh_us)]
        outcomes: list[ReconciliationOutcome] = []
        if due:
            # One query serves all groups that are due, so it starts at the oldest of their cursors.
            known = [int(each.xmin) for each in due if each.xmin]
            changes = await self.changes(str(min(known)) if known else None)
            outcomes, more_faults = await _all(self._renew(each, changes) for each in due)
            faults += more_faults
        if faults:
            raise faults[0]
        for outcome in ("overflow", "lost"):
            if outcome in outcomes:
                return cast("ReconciliationOutcome", outcome)
        # The age reported for groups renewed now is that of this pass, for the others the age found in their anchor.
        oldest_us = max((each.age_us or 0 for each in anchors if each not in due), default=0)
        self._seen = (oldest_us / MICROSECOND, looked_at)
        if not outcomes:
            return "skipped"
        return "generation" if "generation" in outcomes else "renewed"

    async def _look(self, group: int) -> Anchor:
        reply = await self.client.run(self.scripts.anchor, group, (anchor(group),), ())
        match reply:
            case [int() as now_us, bytes() as generation, bytes() as xmin, bytes() as inc, bytes() as asof]:
                return Anchor(group, now_us, generation, xmin, inc, asof)
            case _:
                raise CacheError(REDIS, "holds a licence that cannot be read")

    async def _renew(self, found: Anchor, changes: ChangedRevisions) -> ReconciliationOutcome:
        if changes.overflow or len(changes.rows) > MAX_ROWS:
            await self.client.call(found.group, "DEL", anchor(found.group))
            return "overflow"
        keys, revisions = [anchor(found.group)], []
        for owner, continuation_id, revision in changes.rows:
            where = place(owner, continuation_id, self.client.groups)
            if where.group == found.group:
                keys += [where.entry, where.lease]
                revisions.append(revision)
        expected = (found.generation, found.xmin, found.inc, found.asof)
        renewed = (secrets.token_hex(8), changes.xmin, changes.inc, found.now_us)
        reply = await self.client.run(self.scripts.renew, found.group, tuple(keys), (*expected, *renewed, *revisions))
        match reply:
            case [int() as verdict, int() as removed]:
                if removed:
                    self.recorder.count("cache_repaired_total", removed)
                outcomes: tuple[ReconciliationOutcome, ...] = ("lost", "renewed", "generation")
                return outcomes[verdict]
            case _:
                raise CacheError(REDIS, "answered a pass with something else")

    def _log_failure(self, error: Exception) -> None:
        problem = f"{error.reply_code}" if isinstance(error, CacheRefused) else str(error) or type(error).__name__
        if self.problem is None:
            log.warning("cache_pass_failed", problem=problem, error=type(error).__name__)
        self.problem = problem


async def _all(steps: Iterable[Awaitable[T]]) -> tuple[list[T], list[BaseException]]:
    """Await all of them; return the results and the exceptions."""
    results = await asyncio.gather(*steps, return_exceptions=True)
    done: list[T] = []
    failed: list[BaseException] = []
    for result in results:
        if isinstance(result, BaseException):
            failed.append(result)
        else:
            done.append(result)
    return done, failed
