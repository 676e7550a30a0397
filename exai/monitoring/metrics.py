"""The one recorder: counters, gauges and histograms of this process, as Prometheus text and as recent values.

Invariant: recording never blocks, never raises and never grows with traffic. The number of series is bounded;
series beyond a bound are merged into the series `other` and counted. For the event loop's thread only.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import inf, isfinite

from exai import __version__
from exai.distribution import SECONDS_BOUNDS, SHORT_BOUNDS
from exai.monitoring.exposition import (
    PREFIX,
    FamilyValues,
    MetricKind,
    SeriesValues,
    Values,
    render,
    values_of_process,
)

MAX_FAMILIES = 300
MAX_SERIES_PER_FAMILY = 200
MAX_LABEL_CHARS = 100
OTHER = "other"

RECENT_SLOT_S = 5
RECENT_SLOTS = 60
RECENT_VALUES = 256

BYTES_BUCKETS = tuple(float(256 * 4**power) for power in range(10))
STATEMENT_BUCKETS = (0.0, 1, 2, 3, 4, 5, 6, 8, 10, 20, 50, 100)
NUMBER_BUCKETS = (1.0, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 10_000, 100_000)

LONG = ("mcp_request_", "provider_", "slow_operation_", "turn_")
"""Beginnings of the names of durations that include answers of models."""


class _Series:
    """One label set of a metric; one class for all kinds, so that recording takes the same short path for each."""

    __slots__ = ("buckets", "count", "recent", "sum")

    def __init__(self, buckets: int, recent: int) -> None:
        self.sum = 0.0
        self.count = 0
        self.buckets = [0] * buckets
        self.recent: deque[tuple[float, float]] = deque(maxlen=recent)


@dataclass(frozen=True, slots=True)
class _Family:
    kind: MetricKind
    labels: tuple[str, ...]
    bounds: tuple[float, ...]
    series: dict[tuple[str, ...], _Series]


@dataclass(frozen=True, slots=True)
class Sums:
    """The values of a counter or histogram: their number, sum, and number in each bucket; None without values."""

    count: int
    sum: float | None = None
    buckets: list[int] | None = None

    def less(self, before: Sums) -> Sums:
        """Return the difference to earlier sums of the same series."""
        total = None if self.sum is None else self.sum - (before.sum or 0.0)
        if self.buckets is None:
            return Sums(self.count - before.count, total)
        earlier = before.buckets or [0] * len(self.buckets)
        return Sums(self.count - before.count, total, [n - m for n, m in zip(self.buckets, earlier, strict=True)])


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Quantiles of the observations of a recent window; `count` is the number of observations."""

    count: int
    p50: float
    p95: float
    p99: float
    max: float


class MetricsRecorder:
    """Implements `exai.models.Recorder` and returns the recorded values."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._families: dict[str, _Family] = {}
        self._known: dict[tuple[object, ...], _Series] = {}
        self._watched: list[Callable[[], None]] = []
        self.gauge("build_info", 1, version=__version__)
        # Created first, so that losses can be counted even when there is no room for further series.
        self.count("metrics_dropped_total", 0, metric=OTHER)
        self.count("metrics_merged_total", 0, metric=OTHER)

    def count(self, name: str, value: float = 1, /, **labels: str) -> None:
        """Add to a counter (`..._total`)."""
        series = self._known.get(("counter", name, *labels.items())) or self._resolve("counter", name, labels)
        if series is None or not 0 <= value < inf:
            return self._count_dropped(name)
        series.sum += value
        slot = self._clock() // RECENT_SLOT_S
        if series.recent and series.recent[-1][0] == slot:
            value += series.recent.pop()[1]
        series.recent.append((slot, value))
        return None

    def observe(self, name: str, /, *values: float, **labels: str) -> None:
        """Add observations to a histogram (`..._seconds`, `..._bytes`)."""
        series = self._known.get(("histogram", name, *labels.items())) or self._resolve("histogram", name, labels)
        if series is None:
            for _ in values:
                self._count_dropped(name)
            return
        now, bounds, buckets, recent = self._clock(), self._families[name].bounds, series.buckets, series.recent
        for value in values:
            if not isfinite(value):
                self._count_dropped(name)
                continue
            series.sum += value
            series.count += 1
            buckets[bisect_left(bounds, value)] += 1
            recent.append((now, value))

    def gauge(self, name: str, value: float, /, **labels: str) -> None:
        """Set a gauge."""
        series = self._known.get(("gauge", name, *labels.items())) or self._resolve("gauge", name, labels)
        if series is None:
            return self._count_dropped(name)
        series.sum = value
        return None

    def watch(self, report: Callable[[], None]) -> None:
        """Call `report`, which sets gauges, whenever the metrics are read."""
        self._watched.append(report)

    def value(self, name: str, /, **labels: str) -> float:
        """Return the sum over all series with these labels: a counter's total, a gauge, a histogram's sum."""
        return sum(series.sum for _, series in self._matching(name, labels))

    def recent(self, name: str, window_s: float = 60, /, **labels: str) -> float:
        """Return the growth of a counter in the last `window_s` (at most 300), to the nearest 5 s."""
        oldest = (self._clock() - window_s) // RECENT_SLOT_S
        return sum(
            grown for _, series in self._matching(name, labels) for slot, grown in series.recent if slot > oldest
        )

    def quantiles(self, name: str, window_s: float = 300, /, **labels: str) -> Quantiles | None:
        """Return quantiles of a histogram's latest observations within `window_s`, or None if there are none."""
        values = sorted(self.latest(name, window_s, **labels))
        if not values:
            return None
        p50, p95, p99 = (values[min(int(len(values) * share), len(values) - 1)] for share in (0.5, 0.95, 0.99))
        return Quantiles(len(values), p50, p95, p99, values[-1])

    def latest(self, name: str, window_s: float = 300, /, **labels: str) -> list[float]:
        """Return the latest observations of a histogram within `window_s`; at most 256 of each series."""
        oldest = self._clock() - window_s
        return [value for _, series in self._matching(name, labels) for when, value in series.recent if when >= oldest]

    def labelled(self, name: str) -> dict[tuple[tuple[str, str], ...], float]:
        """Return every series of a metric by its labels, for tests that count statements and for the status tool."""
        return {tuple(labels.items()): series.sum for labels, series in self._matching(name, {})}

    def sums(self, name: str) -> Iterator[tuple[tuple[tuple[str, str], ...], Sums]]:
        """Yield the sums of every series of a counter or histogram, by its labels."""
        family = self._families.get(name)
        for values, series in family.series.items() if family else ():
            labels = tuple(zip(family.labels if family else (), values, strict=True))
            if family and family.kind == "histogram":
                yield labels, Sums(series.count, series.sum, list(series.buckets))
            else:
                yield labels, Sums(int(series.sum))

    def render(self) -> bytes:
        """Return the metrics of this process in the Prometheus text format."""
        return render(self.values())

    def values(self) -> Values:
        """Return all metrics of this process, with those that the operating system provides."""
        for report in self._watched:
            report()
        own = {
            PREFIX + name: FamilyValues(
                family.kind,
                family.labels,
                family.bounds,
                {
                    labels: SeriesValues(series.sum, series.count, list(series.buckets))
                    for labels, series in family.series.items()
                },
            )
            for name, family in self._families.items()
        }
        return own | values_of_process()

    def _resolve(self, kind: MetricKind, name: str, labels: Mapping[str, str]) -> _Series | None:
        """Return the series of a label set not yet seen in this spelling, or None if it cannot be recorded."""
        names = tuple(sorted(labels))
        family = self._families.get(name)
        if family is None:
            if len(self._families) >= MAX_FAMILIES or not (PREFIX + name).isidentifier():
                return None
            family = self._families[name] = _Family(kind, names, _bounds(kind, name), {})
        if family.kind != kind or family.labels != names:
            return None
        values = tuple(_label(labels[each]) for each in names)
        series = family.series.get(values)
        if series is None and len(family.series) >= MAX_SERIES_PER_FAMILY:
            # Otherwise a full `metrics_merged_total` would recurse without end.
            if name != "metrics_merged_total":
                self.count("metrics_merged_total", metric=name)
            return family.series.setdefault(tuple(OTHER for _ in names), _new_series(family))
        if series is None:
            series = family.series[values] = _new_series(family)
        # Only spellings of retained series are cached: otherwise the cache would grow with callers' input.
        if len(self._known) < MAX_FAMILIES * MAX_SERIES_PER_FAMILY:
            self._known[(kind, name, *labels.items())] = series
        return series

    def _count_dropped(self, name: str) -> None:
        """Count a value that could not be recorded, instead of raising: a defect here must not fail the caller."""
        if name != "metrics_dropped_total":
            self.count("metrics_dropped_total", metric=name if name in self._families else OTHER)

    def _matching(self, name: str, labels: Mapping[str, str]) -> Iterator[tuple[dict[str, str], _Series]]:
        family = self._families.get(name)
        for values, series in family.series.items() if family else ():
            own = dict(zip(family.labels if family else (), values, strict=True))
            if labels.items() <= own.items():
                yield own, series


def _label(value: str) -> str:
    """Return a label value that is short and can be encoded."""
    return str(value)[:MAX_LABEL_CHARS].encode("utf-8", "replace").decode()


def _bounds(kind: MetricKind, name: str) -> tuple[float, ...]:
    if kind != "histogram":
        return ()
    if name.endswith("_seconds"):
        return SECONDS_BOUNDS if name.startswith(LONG) else SHORT_BOUNDS
    if name.endswith("_statements"):
        return STATEMENT_BUCKETS
    return BYTES_BUCKETS if name.endswith("_bytes") else NUMBER_BUCKETS


def _new_series(family: _Family) -> _Series:
    match family.kind:
        case "counter":
            return _Series(0, RECENT_SLOTS)
        case "histogram":
            return _Series(len(family.bounds) + 1, RECENT_VALUES)
        case "gauge":
            return _Series(0, 0)
