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

MEANINGS: Final = {
    "answer_cache_reads_total": "Calls that asked the answer cache, by result",
    "answer_cache_stores_total": "Answers given to the answer cache, by result",
    "answer_embeddings_total": "Requests for vectors of the answer cache, by outcome",
    "breaker_calls_total": "Calls through a circuit breaker, by outcome",
    "breaker_state": "State of a circuit breaker: 0 closed, 1 half open, 2 open",
    "budget_limit_usd": "Budgets in US dollars",
    "build_info": "1, with the version of EXAI",
    "cache_applies_total": "Changes applied to pages in Redis, by result",
    "cache_call_seconds": "Duration of calls of Redis, by script",
    "cache_calls_total": "Calls of Redis, by script and outcome",
    "cache_checks_total": "Cached pages that were compared with Postgres",
    "cache_fills_total": "Pages stored in Redis after a miss, by result",
    "cache_reads_total": "Reads of conversations through the cache, by result",
    "cache_reconciliations_total": "Passes that bring Redis up to date with Postgres, by outcome",
    "cache_repaired_total": "Entries of Redis that such a pass removed",
    "cache_stale_total": "Comparisons that found a cached page out of date; must stay 0",
    "cache_undecodable_total": "Entries of Redis that could not be decoded, and were read from Postgres",
    "cache_unencodable_total": "Pages that could not be encoded for Redis",
    "cache_watermark_age_seconds": "Time since Redis was last known to have every change",
    "component_probe_seconds": "Duration of the daemon's checks of a component",
    "component_up": "1 if a component works, 0 if it is down",
    "db_errors_total": "Statements that failed, by error",
    "db_pool_connections": "Connections to Postgres, by state",
    "db_pool_wait_seconds": "Time that statements waited for a connection",
    "db_pool_waiting": "Statements that wait for a connection now",
    "db_retries_total": "Statements that were repeated after a lost connection",
    "db_statement_seconds": "Duration of statements, with the way to Postgres",
    "db_statements_total": "Statements sent to Postgres, each one round trip",
    "event_loop_lag_seconds": "Delay of timers in the process",
    "event_loop_stalls_total": "Times that the process did not serve anything for a while",
    "indexing_failed_total": "Passes that failed to index messages for search",
    "mcp_calls_deduplicated_total": "Repeated calls that shared the answer of the first",
    "mcp_messages_refused_total": "Messages that were refused, by JSON-RPC error code",
    "mcp_request_seconds": "Duration of requests, by method or tool",
    "mcp_requests_total": "Requests, by method or tool and outcome",
    "mcp_sessions": "Open sessions of clients",
    "mcp_slow_peers_total": "Connections closed because the client did not read",
    "mcp_tasks": "MCP tasks that run now",
    "mcp_tasks_total": "MCP tasks that have ended, by outcome",
    "memory_collection_seconds": "Duration of garbage collections",
    "messages_indexed_total": "Messages indexed for search",
    "messages_unindexed": "Messages that wait to be indexed, which a search reads one by one",
    "metrics_dropped_total": "Observations that were not recorded, by metric",
    "metrics_expired_rows": "Rows of the history that are due for removal",
    "metrics_merged_total": "Observations recorded without their labels because there were too many, by metric",
    "metrics_partitions_created_total": "Partitions of the history that were created",
    "metrics_removed_total": "Rows and partitions of the history that were removed",
    "metrics_upkeep_failed_total": "Failed passes of the upkeep of the history",
    "notifications_failed_total": "Failed looks for changes made by other daemons",
    "owner_limited_total": "Refusals because of an owner's limit, by limit",
    "process_resident_bytes": "Resident memory of the process",
    "provider_cost_usd_total": "Cost of turns in US dollars, where the price is known",
    "provider_extracts_total": "Documents read as text by a provider, by outcome",
    "provider_first_token_seconds": "Time from a request to the first token of its answer",
    "provider_requests_total": "Requests to providers, by model and outcome",
    "provider_retries_total": "Requests to providers that were repeated",
    "provider_seconds": "Duration of requests to providers",
    "provider_token_counts_total": "Questions to a provider for the number of tokens, by outcome",
    "provider_token_gap_seconds": "Mean time between two parts of an answer, which are about a token each",
    "provider_tokens_total": "Tokens as providers report them, by model and kind",
    "provider_unread_total": "Parts of answers that EXAI does not read",
    "recorder_defects_total": "Events that could not be collected because of a defect",
    "recorder_dropped_total": "Events for the history that were dropped because the queue was full, by type",
    "recorder_events_total": "Events for the history, by outcome",
    "recorder_flush_seconds": "Duration of the statements that store events",
    "recorder_flushes_total": "Batches of events, by outcome",
    "recorder_queue": "Events that wait to be stored",
    "request_statements": "Round trips to Postgres of each call, by tool",
    "requests_claimed_total": "Requests stored by clients that this daemon answered, by outcome",
    "requests_oldest_age_seconds": "Age of the oldest stored request that waits",
    "requests_removed_total": "Stored requests that were removed after their time",
    "requests_waiting": "Stored requests that wait",
    "retention_expired_total": "Conversations deleted because their time had come",
    "retention_failed_total": "Failed passes of the retention",
    "retention_removed_total": "Deleted conversations that were removed for good",
    "search_scan_rows": "Rows that a search read",
    "slow_operation_seconds": "Duration of operations of 500 ms or more",
    "stale_reads_total": "Reads answered from the cache while Postgres could not be asked",
    "turns_running": "Turns of models that run now",
    "turns_total": "Turns of models that have ended, by model and outcome",
    "workers": "Processes that serve",
    "ws_connections": "Open WebSocket connections",
    "ws_send_queue_bytes": "Bytes that wait for clients to read",
}
"""What each metric counts or measures: every one that EXAI records, by its name without `exai_`, and no other."""


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
