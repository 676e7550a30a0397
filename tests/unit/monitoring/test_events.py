"""The buffer of events: what shares an item, what is dropped, and that nothing is counted twice."""

from __future__ import annotations

from typing import Any

import orjson

from exai.models import Usage
from exai.monitoring.events import FLUSH_ITEMS, EventItem, EventRecorder, encode
from exai.monitoring.metrics import MetricsRecorder, Sums


class Now:
    def __init__(self) -> None:
        self.at = 1_800_000_000.0

    def __call__(self) -> float:
        return self.at


def opened(metrics: MetricsRecorder, now: Now | None = None, capacity: int = 10_000) -> EventRecorder:
    events = EventRecorder(metrics, capacity=capacity, now=now or Now())
    events.open()
    return events


def call(metrics: MetricsRecorder, *seconds: float, outcome: str = "ok", method: str = "tools/call") -> None:
    metrics.observe("mcp_request_seconds", *seconds, method=method, tool="chat", outcome=outcome)


def stored(items: list[EventItem]) -> list[dict[str, Any]]:
    metrics: list[dict[str, Any]] = orjson.loads(encode(items))
    return metrics


def test_calls_since_the_last_time_become_one_item() -> None:
    """Those from before the recording do not, and other methods never."""
    metrics = MetricsRecorder()
    call(metrics, 9.0)
    events = opened(metrics)
    call(metrics, 0.02, 0.03)
    call(metrics, 5.0, outcome="timeout")
    call(metrics, 0.1, method="tools/list")
    events.collect()
    events.collect()
    call(metrics, 0.04)
    events.collect()
    ok, late = stored(events.take(10))
    assert ok["data"]["labels"] == {"tool": "chat", "outcome": "ok"}
    assert (ok["data"]["count"], round(ok["data"]["sum"], 6), sum(ok["data"]["buckets"])) == (3, 0.09, 3)
    assert (late["data"]["count"], late["data"]["value"]) == (1, 5.0)


def test_each_minute_has_items_of_its_own() -> None:
    """So that sums by minute are exact, however late they are stored."""
    metrics, now = MetricsRecorder(), Now()
    events = opened(metrics, now)
    for _ in range(3):
        for _ in range(5):
            metrics.count("cache_reads_total", result="hit")
            events.collect()
            now.at += 11
        now.at += 5
    items = events.take(10)
    assert [item.count for item in items] == [5, 5, 5]
    assert len({item.at // 60 for item in items}) == 3


def test_a_turn_is_an_event_with_its_tokens_and_cost() -> None:
    """Its sums are by owner and model."""
    events = opened(MetricsRecorder())
    for _ in range(2):
        events.turn("anna", "kimi", "ok", usage=Usage(100, 20, 0, 5), cost_usd=0.25, seconds=1.5, turn_id="t")
    found = [
        (each["type"], each["data"]["labels"].get("kind"), each["data"]["sum"]) for each in stored(events.take(99))
    ]
    assert found == [
        ("turn", None, 1.5),
        ("turn_tokens", "input", 200.0),
        ("turn_tokens", "output", 40.0),
        ("turn_tokens", "reasoning", 10.0),
        ("turn_cost_usd", None, 0.5),
        ("turn", None, 1.5),
    ]


def test_the_oldest_item_makes_room_and_its_events_are_counted() -> None:
    """By type, exactly; the batch in flight counts towards the capacity."""
    metrics = MetricsRecorder()
    events = opened(metrics, capacity=4)
    metrics.count("cache_reads_total", 7, result="hit")
    events.collect()
    for number in range(5):
        events.health_change("cache", "down", "ok", str(number))
    assert len(events) == 4
    assert metrics.value("recorder_dropped_total", type="cache_read") == 7
    assert metrics.value("recorder_dropped_total", type="health_change") == 1
    sent = events.take(4)
    events.health_change("cache", "ok", "down", "")
    assert metrics.value("recorder_dropped_total", type="health_change") == 2
    events.settle(sent)
    events.health_change("cache", "ok", "down", "")
    assert len(events) == 1


def test_equal_events_are_merged_when_there_is_no_room() -> None:
    """None of them is lost while its item waits."""
    metrics = MetricsRecorder()
    events = opened(metrics, capacity=2)
    for _ in range(1000):
        events.cache_reads("hit", Sums(1))
        events.cache_reads("miss", Sums(1))
    assert [item.count for item in events.take(9)] == [1000, 1000]
    assert metrics.value("recorder_dropped_total") == 0


def test_only_a_recorder_with_a_flusher_records() -> None:
    """Commands of the terminal have none, so that nothing would empty the buffer."""
    events = EventRecorder(MetricsRecorder())
    events.turn("anna", "kimi", "ok")
    events.collect()
    assert len(events) == 0


def test_passes_of_an_idle_daemon_cause_no_statement_of_their_own() -> None:
    """They go with the next event, or when there are many."""
    metrics, now = MetricsRecorder(), Now()
    events = opened(metrics, now)
    for _ in range(FLUSH_ITEMS - 1):
        metrics.count("cache_reconciliations_total", outcome="ok")
        events.collect()
        now.at += 60
    assert (events.is_due, events.filled.is_set()) == (False, False)
    events.cache_passes("ok", Sums(1))
    assert (events.is_due, events.filled.is_set()) == (True, True)
    events.take(1)
    assert (events.is_due, events.filled.is_set()) == (False, False)
    events.cache_reads("hit", Sums(1))
    assert events.is_due
