"""The metrics of processes as values that can be sent, added up, and written in Prometheus's text format.

Invariant: the sums over the processes of a daemon never decrease, whichever process returns them, and also when a
process ends, because its counters are kept (`kept_of`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from operator import add
from typing import Any, Final, Literal, NamedTuple

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from exai.monitoring.meanings import MEANINGS

PREFIX = "exai_"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

MetricKind = Literal["counter", "gauge", "histogram"]

GREATEST: Final = frozenset(
    {
        "exai_breaker_state",
        "exai_budget_limit_usd",
        "exai_build_info",
        "exai_cache_watermark_age_seconds",
        "exai_messages_unindexed",
        "exai_metrics_expired_rows",
        "exai_requests_oldest_age_seconds",
        "exai_requests_waiting",
        "process_max_fds",
    }
)
LEAST: Final = frozenset({"exai_component_up", "process_start_time_seconds"})
"""Gauges of a daemon that are the greatest or the least of its processes; all others are sums."""


class SeriesValues(NamedTuple):
    """One label set: the value of a counter or gauge, or sum, number and numbers by range of a histogram."""

    total: float
    number: int
    buckets: list[int]

    def plus(self, other: SeriesValues, gauge: Callable[[float, float], float] | None) -> SeriesValues:
        """Return the values of two processes together."""
        if gauge is not None:
            return self._replace(total=gauge(self.total, other.total))
        buckets = [one + more for one, more in zip(self.buckets, other.buckets, strict=True)]
        return SeriesValues(self.total + other.total, self.number + other.number, buckets)


class FamilyValues(NamedTuple):
    """All series of one metric, by the values of its labels."""

    kind: MetricKind
    labels: tuple[str, ...]
    bounds: tuple[float, ...]
    series: dict[tuple[str, ...], SeriesValues]


Values = dict[str, FamilyValues]
"""The metrics of one process, or of several, by their full names."""


def as_json(values: Values) -> dict[str, Any]:
    """Return values in a form for JSON."""
    return {
        name: [each.kind, each.labels, each.bounds, [[labels, *series] for labels, series in each.series.items()]]
        for name, each in values.items()
    }


def from_json(given: Mapping[str, Any]) -> Values:
    """Return values that another process of the same version has sent."""
    return {
        name: FamilyValues(
            kind, tuple(labels), tuple(bounds), {tuple(own): SeriesValues(*numbers) for own, *numbers in series}
        )
        for name, (kind, labels, bounds, series) in given.items()
    }


def add_up_values(processes: Iterable[Values]) -> Values:
    """Return the metrics of several processes as those of one. Of metrics with different shapes the first is taken."""
    total: Values = {}
    for values in processes:
        for name, family in values.items():
            own = total.get(name)
            if own is None:
                total[name] = family._replace(series=dict(family.series))
            elif own[:3] == family[:3]:
                gauge = _rule(name) if family.kind == "gauge" else None
                for labels, series in family.series.items():
                    known = own.series.get(labels)
                    own.series[labels] = series if known is None else known.plus(series, gauge)
    return total


def kept_of(values: Values) -> Values:
    """Return the values that are kept after the end of a process: counters and histograms, but no gauges."""
    return {name: family for name, family in values.items() if family.kind != "gauge"}


def values_of_process() -> Values:
    """Return the metrics of this process that the operating system provides."""
    return {
        f"{metric.name}_total" if metric.type == "counter" else metric.name: FamilyValues(
            "counter" if metric.type == "counter" else "gauge",
            (),
            (),
            {(): SeriesValues(metric.samples[0].value, 0, [])},
        )
        for metric in ProcessCollector(registry=None).collect()
        if metric.samples
    }


def render(values: Values) -> bytes:
    """Return metrics in Prometheus's text format."""
    registry = CollectorRegistry()
    registry.register(_Families(values))
    return generate_latest(registry)


class _Families(Collector):
    def __init__(self, values: Values) -> None:
        self._values = values

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics as objects of the library."""
        for name, family in self._values.items():
            yield _export(name, family)


def _rule(name: str) -> Callable[[float, float], float]:
    if name in GREATEST:
        return max
    return min if name in LEAST else add


def _export(name: str, family: FamilyValues) -> Metric:
    text = MEANINGS.get(name.removeprefix(PREFIX)) or name.removesuffix("_total").replace("_", " ")
    match family.kind:
        case "counter":
            counter = CounterMetricFamily(name, text, labels=family.labels)
            for values, series in family.series.items():
                counter.add_metric(values, series.total)
            return counter
        case "gauge":
            gauge = GaugeMetricFamily(name, text, labels=family.labels)
            for values, series in family.series.items():
                gauge.add_metric(values, series.total)
            return gauge
        case "histogram":
            histogram = HistogramMetricFamily(name, text, labels=family.labels)
            bounds = [*(str(float(bound)) for bound in family.bounds), "+Inf"]
            for values, series in family.series.items():
                buckets = zip(bounds, map(float, accumulate(series.buckets)), strict=True)
                histogram.add_metric(values, list(buckets), series.total)
            return histogram
