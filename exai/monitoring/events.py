"""A bounded buffer of the events of this process, from which they are stored as history.

Calls of tools and of models, reads and reconciliations of the cache, and slow operations are counted by the metrics;
`collect` takes their growth since the last time, so that an event of these kinds costs a request nothing.

Invariant: recording never blocks, never raises and never holds more than `capacity` items. Equal events of one minute
share an item. Beyond the capacity the oldest item is dropped, and its events are counted as dropped.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from typing import Any, Final

import orjson

from exai.models import Usage
from exai.monitoring.metrics import MetricsRecorder, Sums

CAPACITY: Final = 10_000
FLUSH_ITEMS: Final = 50
MINUTE_S: Final = 60.0
TOOL_CALL: Final = "tools/call"

TYPES: Final = (
    "tool_call",
    "turn",
    "turn_tokens",
    "turn_cost_usd",
    "provider_call",
    "cache_read",
    "cache_pass",
    "slow_operation",
    "health_change",
)

BACKGROUND: Final = frozenset({"cache_pass"})
"""Types that an idle daemon produces, too; they do not cause a flush."""


@dataclass(slots=True)
class EventItem:
    """One event, or the sums of equal ones in a minute. `details` are fields of a single event."""

    type: str
    at: float
    labels: Mapping[str, str]
    count: int = 1
    sum: float | None = None
    buckets: list[int] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def add(self, sums: Sums) -> None:
        """Add further events."""
        self.count += sums.count
        self.sum = sums.sum if self.sum is None else self.sum + (sums.sum or 0.0)
        if sums.buckets is not None:
            own = self.buckets or [0] * len(sums.buckets)
            self.buckets = [one + other for one, other in zip(own, sums.buckets, strict=True)]

    def as_metric(self) -> dict[str, Any]:
        """Return the item in the form that `monitoring.aggregate_metrics` takes."""
        data: dict[str, Any] = {**self.details, "labels": self.labels, "count": self.count}
        if self.sum is not None:
            data["sum"] = self.sum
            if self.count == 1:
                data["value"] = self.sum
        if self.buckets is not None:
            data["buckets"] = self.buckets
        return {"type": self.type, "timestamp": datetime.fromtimestamp(self.at, UTC).isoformat(), "data": data}


def encode(items: list[EventItem]) -> bytes:
    """Return a batch as a JSON array."""
    return orjson.dumps([item.as_metric() for item in items])


class EventRecorder:
    """The buffer. Closed until `open`, because without a flusher nothing would empty it."""

    def __init__(
        self,
        metrics: MetricsRecorder,
        *,
        capacity: int = CAPACITY,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._metrics, self._capacity, self._now = metrics, capacity, now
        self._items: OrderedDict[tuple[object, ...], EventItem] = OrderedDict()
        self._numbers = count()
        self._seen: dict[tuple[str, tuple[tuple[str, str], ...]], Sums] = {}
        self._in_flight = 0
        self._is_open = False
        for type_ in TYPES:
            metrics.count("recorder_dropped_total", 0, type=type_)
        self.filled = asyncio.Event()
        """Set while at least `FLUSH_ITEMS` items wait."""

    def __len__(self) -> int:
        return len(self._items)

    @property
    def is_due(self) -> bool:
        """Return whether the waiting items justify a statement: there are enough, or one is no background event."""
        return len(self._items) >= FLUSH_ITEMS or any(item.type not in BACKGROUND for item in self._items.values())

    def open(self) -> None:
        """Begin to record, from the present values of the metrics on."""
        self._is_open = True
        for _ in self._grown():
            pass

    def close(self) -> None:
        """Stop recording; waiting items can still be taken."""
        self._is_open = False

    def tool_calls(self, tool: str, outcome: str, calls: Sums) -> None:
        """Record calls of a tool."""
        self._add("tool_call", {"tool": tool, "outcome": outcome}, calls)

    def turn(
        self,
        owner: str,
        model: str,
        outcome: str,
        *,
        usage: Usage | None = None,
        cost_usd: float | None = None,
        seconds: float | None = None,
        turn_id: str | None = None,
    ) -> None:
        """Record the end of one turn, with its tokens and cost."""
        tokens = {} if usage is None else {kind: getattr(usage, f"{kind}_tokens") for kind in TOKEN_KINDS}
        details = {"turn_id": turn_id, "tokens": tokens, "cost_usd": cost_usd}
        self._put("turn", {"owner": owner, "model": model, "outcome": outcome}, seconds, details)
        for kind, number in tokens.items():
            if number:
                self._add("turn_tokens", {"owner": owner, "model": model, "kind": kind}, Sums(1, float(number)))
        if cost_usd:
            self._add("turn_cost_usd", {"owner": owner, "model": model}, Sums(1, cost_usd))

    def provider_calls(self, provider: str, model: str, outcome: str, calls: Sums) -> None:
        """Record requests to a provider."""
        self._add("provider_call", {"provider": provider, "model": model, "outcome": outcome}, calls)

    def cache_reads(self, result: str, reads: Sums) -> None:
        """Record reads of the cache."""
        self._add("cache_read", {"result": result}, reads)

    def cache_passes(self, outcome: str, passes: Sums) -> None:
        """Record reconciliations of the cache with the database."""
        self._add("cache_pass", {"outcome": outcome}, passes)

    def slow_operations(self, operation: str, waited_for: str, operations: Sums) -> None:
        """Record operations that took longer than the threshold."""
        self._add("slow_operation", {"operation": operation, "waited_for": waited_for}, operations)

    def health_change(self, component: str, state: str, before: str, detail: str) -> None:
        """Record that a component has entered another state."""
        labels = {"component": component, "state": state}
        self._put("health_change", labels, None, {"before": before, "detail": detail})

    def collect(self) -> None:
        """Record the growth of the metrics since the last time."""
        if not self._is_open:
            return
        for name, by, grown in self._grown():
            match name:
                case "mcp_request_seconds":
                    if by["method"] == TOOL_CALL:
                        self.tool_calls(by["tool"], by["outcome"], grown)
                case "provider_seconds":
                    self.provider_calls(by["provider"], by["model"], by["outcome"], grown)
                case "cache_reads_total":
                    self.cache_reads(by["result"], grown)
                case "cache_reconciliations_total":
                    self.cache_passes(by["outcome"], grown)
                case _:
                    self.slow_operations(by["operation"], by["waited_for"], grown)

    def take(self, limit: int) -> list[EventItem]:
        """Remove the oldest items for a batch; they count towards the capacity until `settle`."""
        items = [self._items.popitem(last=False)[1] for _ in range(min(limit, len(self._items)))]
        self._in_flight += len(items)
        self._note_size()
        return items

    def settle(self, items: list[EventItem]) -> None:
        """Release the items of a batch that has been stored or dropped."""
        self._in_flight -= len(items)
        self._note_size()

    def count_dropped(self, item: EventItem) -> None:
        """Count the events of an item that will not be stored."""
        self._metrics.count("recorder_dropped_total", item.count, type=item.type)

    def _grown(self) -> Iterator[tuple[str, dict[str, str], Sums]]:
        for name in _COUNTED:
            for labels, sums in self._metrics.sums(name):
                key = (name, labels)
                before = self._seen.get(key)
                if before is None or before.count != sums.count:
                    self._seen[key] = sums
                    yield name, dict(labels), sums if before is None else sums.less(before)

    def _add(self, type_: str, labels: dict[str, str], sums: Sums) -> None:
        """Add to the item of this minute."""
        if not self._is_open or not sums.count:
            return
        now = self._now()
        key = (type_, now // MINUTE_S, *labels.values())
        item = self._items.get(key)
        if item is not None:
            item.add(sums)
        else:
            self._insert(key, EventItem(type_, now, labels, sums.count, sums.sum, sums.buckets))

    def _put(self, type_: str, labels: dict[str, str], value: float | None, details: dict[str, Any]) -> None:
        """Add one event as an item of its own."""
        if self._is_open:
            self._insert((next(self._numbers),), EventItem(type_, self._now(), labels, 1, value, None, details))

    def _insert(self, key: tuple[object, ...], item: EventItem) -> None:
        if len(self._items) + self._in_flight >= self._capacity:
            if not self._items:
                self.count_dropped(item)
                return
            self.count_dropped(self._items.popitem(last=False)[1])
        self._items[key] = item
        self._note_size()

    def _note_size(self) -> None:
        self._metrics.gauge("recorder_queue", len(self._items) + self._in_flight)
        if len(self._items) >= FLUSH_ITEMS:
            self.filled.set()
        else:
            self.filled.clear()


TOKEN_KINDS: Final = ("input", "output", "cached", "reasoning")

_COUNTED: Final = (
    "mcp_request_seconds",
    "provider_seconds",
    "cache_reads_total",
    "cache_reconciliations_total",
    "slow_operation_seconds",
)
"""Metrics from which events are made."""
