"""Metrics of all daemons, in Postgres: batches are stored, read back by step, and removed when they have expired.

Each method is one statement and one round trip, after the first use of the statement on a connection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, Literal, NamedTuple, cast

import orjson

from exai.db.driver.pool import Database, Record
from exai.distribution import quantile
from exai.errors import InvalidArgument
from exai.models import Owner
from exai.validation import check_time

MAX_STEPS: Final = 2_000
MAX_POINTS: Final = 10_000
MAX_METRIC_CHARS: Final = 200
MIN_STEP_S: Final = 60
MAX_EVENTS: Final = 50
EVENTS_MINUTES: Final = 7 * 24 * 60
"""Raw metrics are kept for so long."""

RETENTION_ROWS: Final = 10_000
"""Rows of each kind that one statement removes."""

StoreStatus = Literal["stored", "duplicate", "refused", "failed"]


@dataclass(frozen=True, slots=True)
class HistoryQuery:
    """The sums of `metric` from `since` (inclusive) to `until` (exclusive), by steps of `step_s` seconds from `since`.

    Sums are made for each combination of the labels `by`, of the rows whose labels include `where`. With `owner`, rows
    of other owners are left out; most metrics have no owner.
    """

    metric: str
    since: datetime
    until: datetime
    step_s: int
    by: Sequence[str] = ()
    where: Mapping[str, str] = field(default_factory=dict)
    owner: Owner | None = None

    def validate(self) -> None:
        """Raise `InvalidArgument` for a value that no history can have."""
        if not 0 < len(self.metric) <= MAX_METRIC_CHARS:
            raise InvalidArgument("metric", "is not the name of a metric", f"Use 1 to {MAX_METRIC_CHARS} characters")
        check_time("since", self.since)
        check_time("until", self.until)
        if self.until <= self.since:
            raise InvalidArgument("until", "is not after since", "Give a later time")
        if self.step_s < MIN_STEP_S:
            raise InvalidArgument("step_s", "is shorter than the sums", f"Give at least {MIN_STEP_S} seconds")
        if (self.until - self.since).total_seconds() > MAX_STEPS * self.step_s:
            cure = f"Give at most {MAX_STEPS} steps: a longer step, or a shorter time"
            raise InvalidArgument("step_s", "is too short for the time from since to until", cure)


@dataclass(frozen=True, slots=True)
class HistoryPoint:
    """One step of one combination of labels. Quantiles are estimates, None for a metric without durations."""

    at: datetime
    labels: Mapping[str, str]
    count: int
    sum: float | None
    min: float | None
    max: float | None
    p50: float | None
    p99: float | None


class RecentMetric(NamedTuple):
    """One raw row."""

    type: str
    data: Mapping[str, Any]
    at: datetime


class BatchStored(NamedTuple):
    """The database's answer to a batch; `error` is the reason of `refused` and `failed`."""

    status: StoreStatus
    stored: int
    rejected: int
    error: str | None


class Removed(NamedTuple):
    """The result of one run of the retention for one table; `remaining` rows have expired and are not removed yet."""

    what: str
    removed: int
    remaining: int


class HistoryRepository:
    """The schema `monitoring`. Each method raises `DatabaseError`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def store(self, metrics: bytes, batch_id: str, source: str) -> BatchStored:
        """Store a JSON array of metrics, once per batch id."""
        row = (await self._database.fetch("store_metrics", metrics.decode(), batch_id, source))[0]
        return BatchStored(cast("StoreStatus", row["status"]), row["stored"], row["rejected"], row["error"])

    async def read(self, query: HistoryQuery) -> tuple[HistoryPoint, ...]:
        """Return the points of a history, oldest first; a step without rows has none. Raises `InvalidArgument`."""
        query.validate()
        rows = await self._database.fetch(
            "metrics_history",
            query.metric,
            query.since,
            query.until,
            timedelta(seconds=query.step_s),
            list(query.by),
            orjson.dumps(dict(query.where)).decode(),
            query.owner,
            MAX_POINTS,
        )
        return tuple(map(_point, rows))

    async def recent(self, metric: str | None, minutes: int = 60, limit: int = 100) -> tuple[RecentMetric, ...]:
        """Return the newest raw rows of a metric, or of all, newest first; at most 1,000."""
        rows = await self._database.fetch("recent_metrics", metric, minutes, limit)
        return tuple(RecentMetric(row["type"], orjson.loads(row["data"]), row["at"]) for row in rows)

    async def insert(self, metric: str, data: Mapping[str, Any]) -> None:
        """Store one metric of a process that sends no batches."""
        await self._database.fetch("insert_metric", metric, orjson.dumps(data).decode())

    async def events(self, minutes: int = EVENTS_MINUTES, limit: int = MAX_EVENTS) -> tuple[RecentMetric, ...]:
        """Return the newest changes of health, runs of commands and batches of metrics with a problem, newest first.

        A batch has the type `metrics_batch` and is read from the processing log.
        """
        rows = await self._database.fetch("recent_events", minutes, limit)
        return tuple(RecentMetric(row["type"], orjson.loads(row["data"]), row["at"]) for row in rows)

    async def create_partitions(self) -> int:
        """Create the partitions of the coming days; returns how many were missing."""
        made: int = (await self._database.fetch("create_metrics_partitions"))[0]["made"]
        return made

    async def apply_retention(self, limit: int = RETENTION_ROWS) -> tuple[Removed, ...]:
        """Remove expired metrics, at most `limit` rows of each kind; returns nothing if another daemon does it now."""
        rows = await self._database.fetch("apply_metrics_retention", limit)
        return tuple(Removed(row["what"], row["removed"], row["remaining"]) for row in rows)


def _point(row: Record) -> HistoryPoint:
    counts = [] if row["buckets"] is None else orjson.loads(row["buckets"])
    return HistoryPoint(
        at=row["at"],
        labels=orjson.loads(row["labels"]),
        count=row["count"],
        sum=row["sum"],
        min=row["min"],
        max=row["max"],
        p50=quantile(counts, 0.5, row["max"]),
        p99=quantile(counts, 0.99, row["max"]),
    )
