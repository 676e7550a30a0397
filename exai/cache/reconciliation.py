"""Reconcile Redis with the database about every half second and advance the watermark up to which entries are served.

A reconciliation by any daemon serves all daemons. Without it, entries are served for one staleness bound after they
were filled; nothing else depends on this task.

Invariant: a watermark is advanced only after every change visible to the database snapshot is enforced in Redis, and to
a time taken before that snapshot.
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

from exai.cache.entry import cache_keys, watermark_key
from exai.cache.redis.client import RedisClient
from exai.cache.redis.faults import DEPENDENCY, CacheRefused
from exai.cache.redis.scripts import Scripts
from exai.errors import CacheError
from exai.models import ContinuationId, ConversationKey, Owner, Recorder
from exai.resilience import Random
from exai.settings.load import CacheSettings

MAX_ROWS: Final = 5_000
"""Changed conversations that a reconciliation enforces individually. With more, it drops the watermark, so that older
entries are no longer served."""

RECONCILE_TIMEOUT_S: Final = 10.0
RECONCILE_JITTER: Final = 0.2
MICROSECOND: Final = 1_000_000

T = TypeVar("T")
ReconciliationOutcome: TypeAlias = Literal["advanced", "generation", "skipped", "lost", "overflow", "failed"]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ChangedRevisions:
    """Conversations changed since a snapshot, seen by a newer one.

    `xmin` is the newer snapshot's xmin, a row is (owner, continuation id, revision).
    `overflow` means that there were more rows than the statement's limit.
    """

    xmin: str
    server_epoch: str
    rows: Sequence[tuple[Owner, ContinuationId, int]] = ()
    overflow: bool = False


ChangesSince: TypeAlias = Callable[[str | None], Awaitable[ChangedRevisions]]
"""Returns the conversations last changed by a transaction id not below the given xmin; no rows for None."""


@dataclass(frozen=True, slots=True)
class Watermark:
    """A slot group's watermark before a reconciliation; `now_us` is the server's time, taken before everything else."""

    group: int
    now_us: int
    generation: bytes
    xmin: bytes
    server_epoch: bytes
    asof: bytes

    @property
    def age_us(self) -> int | None:
        """Microseconds since the watermark was advanced, None without one; negative if the clock was set back since."""
        return self.now_us - int(self.asof) if self.asof else None

    def is_fresh(self, within_us: float) -> bool:
        """Return whether the watermark was advanced less than `within_us` microseconds ago."""
        return self.age_us is not None and 0 <= self.age_us < within_us


@dataclass(slots=True)
class Reconciler:
    """Advances the watermarks of all slot groups; one per process."""

    client: RedisClient
    scripts: Scripts
    changes: ChangesSince
    settings: CacheSettings
    recorder: Recorder
    rand: Random = random.random
    problem: str | None = None
    """The error of the last reconciliation, None if it succeeded."""
    _seen: tuple[float, float] | None = field(default=None, init=False)

    @property
    def age_s(self) -> float | None:
        """Age of the oldest slot group's watermark in seconds, as known here; None before the first reconciliation."""
        if self._seen is None:
            return None
        age_s, at = self._seen
        return age_s + time.monotonic() - at

    async def run(self) -> None:
        """Reconcile repeatedly until cancelled. Errors do not end the loop; each is counted and shown in the status."""
        while True:
            try:
                async with asyncio.timeout(RECONCILE_TIMEOUT_S):
                    outcome = await self.reconcile()
                self.problem = None
            except Exception as error:  # noqa: BLE001 - the boundary of a side task that must outlive any fault
                outcome = "failed"
                self._log_failure(error)
            self.recorder.count("cache_reconciliations_total", outcome=outcome)
            if self.age_s is not None:
                self.recorder.gauge("cache_watermark_age_seconds", self.age_s)
            # Jittered, so that daemons started together do not all reconcile at the same moment.
            await asyncio.sleep(
                self.settings.reconcile_interval_s * (1 - RECONCILE_JITTER + 2 * RECONCILE_JITTER * self.rand())
            )

    async def reconcile(self) -> ReconciliationOutcome:
        """Reconcile once: 1 database round trip and 2 Redis round trips per slot group.

        A group whose server is down does not prevent the reconciliation of the others; its error is raised at the end.
        Raises `CacheError` and the errors of `changes`.
        """
        # The order matters: the watermarks, with the servers' times, are read before the database snapshot is taken. A
        # watermark dated after the snapshot would cover changes that the snapshot does not see.
        began_at = time.monotonic()
        watermarks, faults = await _all(self._read_watermark(group) for group in range(self.client.groups))
        recent_us = self.settings.reconcile_interval_s / 2 * MICROSECOND
        due = [each for each in watermarks if not each.is_fresh(recent_us)]
        outcomes: list[ReconciliationOutcome] = []
        if due:
            # One query serves all groups that are due, so it starts at the oldest of their cursors.
            known = [int(each.xmin) for each in due if each.xmin]
            changes = await self.changes(str(min(known)) if known else None)
            outcomes, more_faults = await _all(self._advance(each, changes) for each in due)
            faults += more_faults
        if faults:
            raise faults[0]
        for outcome in ("overflow", "lost"):
            if outcome in outcomes:
                return cast("ReconciliationOutcome", outcome)
        # Groups reconciled now have the age of this reconciliation, the others the age found in their watermark.
        oldest_us = max((each.age_us or 0 for each in watermarks if each not in due), default=0)
        self._seen = (oldest_us / MICROSECOND, began_at)
        if not outcomes:
            return "skipped"
        return "generation" if "generation" in outcomes else "advanced"

    async def _read_watermark(self, group: int) -> Watermark:
        reply = await self.client.run(self.scripts.watermark, group, (watermark_key(group),), ())
        match reply:
            case [int() as now_us, bytes() as generation, bytes() as xmin, bytes() as server_epoch, bytes() as asof]:
                return Watermark(group, now_us, generation, xmin, server_epoch, asof)
            case _:
                raise CacheError(DEPENDENCY, "holds a watermark that cannot be read")

    async def _advance(self, found: Watermark, changes: ChangedRevisions) -> ReconciliationOutcome:
        if changes.overflow or len(changes.rows) > MAX_ROWS:
            await self.client.call(found.group, "DEL", watermark_key(found.group))
            return "overflow"
        keys, revisions = [watermark_key(found.group)], []
        for owner, continuation_id, revision in changes.rows:
            where = cache_keys(ConversationKey(owner, continuation_id), self.client.groups)
            if where.group == found.group:
                keys += [where.entry, where.lease]
                revisions.append(revision)
        expected = (found.generation, found.xmin, found.server_epoch, found.asof)
        advanced = (secrets.token_hex(8), changes.xmin, changes.server_epoch, found.now_us)
        reply = await self.client.run(
            self.scripts.advance, found.group, tuple(keys), (*expected, *advanced, *revisions)
        )
        match reply:
            case [int() as verdict, int() as removed]:
                if removed:
                    self.recorder.count("cache_repaired_total", removed)
                outcomes: tuple[ReconciliationOutcome, ...] = ("lost", "advanced", "generation")
                return outcomes[verdict]
            case _:
                raise CacheError(DEPENDENCY, "returned an unexpected reply to a reconciliation")

    def _log_failure(self, error: Exception) -> None:
        problem = f"{error.reply_code}" if isinstance(error, CacheRefused) else str(error) or type(error).__name__
        if self.problem is None:
            log.warning("cache_reconciliation_failed", problem=problem, error=type(error).__name__)
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
