"""The recorder: correct numbers, bounded memory, and no exception for any value."""

from __future__ import annotations

import math

import pytest
from prometheus_client.parser import text_string_to_metric_families

from exai.models import Recorder
from exai.monitoring.metrics import MAX_FAMILIES, MAX_LABEL_CHARS, MAX_SERIES_PER_FAMILY, MetricsRecorder


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def recorder(clock: Clock) -> MetricsRecorder:
    return MetricsRecorder(clock)


def exposed(recorder: MetricsRecorder, name: str) -> dict[tuple[tuple[str, str], ...], float]:
    """The samples a Prometheus server would read under this exact name."""
    return {
        tuple(sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(recorder.render().decode())
        for sample in family.samples
        if sample.name == name
    }


def test_recorder_is_what_every_part_is_given(recorder: MetricsRecorder) -> None:
    """models.Recorder is the protocol; mypy checks the assignment, this line that it stays here."""
    seam: Recorder = recorder
    assert seam is recorder


def test_counters_add_up_by_label_set(recorder: MetricsRecorder) -> None:
    """Promise 1 to 3 are counted with this: statements by name."""
    for statement, times in (("read_page", 3), ("append", 2)):
        for _ in range(times):
            recorder.count("db_statements_total", statement=statement)
    assert recorder.value("db_statements_total", statement="read_page") == 3
    assert recorder.value("db_statements_total") == 5
    assert recorder.labelled("db_statements_total") == {
        (("statement", "read_page"),): 3,
        (("statement", "append"),): 2,
    }
    assert exposed(recorder, "exai_db_statements_total") == {
        (("statement", "append"),): 2,
        (("statement", "read_page"),): 3,
    }


def test_order_of_labels_makes_no_difference(recorder: MetricsRecorder) -> None:
    """Two call sites may spell the same label set differently."""
    recorder.count("calls_total", provider="kimi", outcome="ok")
    recorder.count("calls_total", outcome="ok", provider="kimi")
    assert exposed(recorder, "exai_calls_total") == {(("outcome", "ok"), ("provider", "kimi")): 2}


def test_gauges_show_their_newest_value(recorder: MetricsRecorder) -> None:
    """A gauge is set, not added to."""
    recorder.gauge("breaker_state", 2, breaker="redis")
    recorder.gauge("breaker_state", 0, breaker="redis")
    assert exposed(recorder, "exai_breaker_state") == {(("breaker", "redis"),): 0}


def test_histograms_count_every_value_in_cumulative_buckets(recorder: MetricsRecorder) -> None:
    """The Prometheus format: a bucket holds everything up to and including its bound."""
    for value in (0.0005, 0.003, 0.004, 700):
        recorder.observe("provider_seconds", value)
    buckets = exposed(recorder, "exai_provider_seconds_bucket")
    assert buckets[(("le", "0.0005"),)] == 1
    assert buckets[(("le", "0.005"),)] == 3
    assert buckets[(("le", "600.0"),)] == 3
    assert buckets[(("le", "+Inf"),)] == 4
    assert exposed(recorder, "exai_provider_seconds_count") == {(): 4}
    assert exposed(recorder, "exai_provider_seconds_sum") == {(): pytest.approx(700.0075)}


def test_statements_and_answers_of_models_have_ranges_of_their_own(recorder: MetricsRecorder) -> None:
    """A statement takes a fraction of a millisecond, an answer up to ten minutes."""
    for name in ("db_statement_seconds", "mcp_request_seconds"):
        recorder.observe(name, 1.0)
    bounds = {
        name: [float(dict(labels)["le"]) for labels in exposed(recorder, f"exai_{name}_bucket")]
        for name in ("db_statement_seconds", "mcp_request_seconds")
    }
    assert (min(bounds["db_statement_seconds"]), sorted(bounds["db_statement_seconds"])[-2]) == (0.0001, 10.0)
    assert (min(bounds["mcp_request_seconds"]), sorted(bounds["mcp_request_seconds"])[-2]) == (0.0005, 600.0)


def test_values_put_in_together_count_as_each_alone(clock: Clock) -> None:
    """Calls that end in one iteration of the event loop are recorded together."""
    together, alone = MetricsRecorder(clock), MetricsRecorder(clock)
    values = (0.0004, 0.003, 0.003, math.nan, 700.0)
    together.observe("call_seconds", *values, tool="chat")
    for value in values:
        alone.observe("call_seconds", value, tool="chat")
    for part in ("bucket", "count", "sum"):
        name = f"exai_call_seconds_{part}"
        assert exposed(together, name) == exposed(alone, name) != {}
    assert together.quantiles("call_seconds") == alone.quantiles("call_seconds")
    assert together.value("metrics_dropped_total", metric="call_seconds") == 1


def test_sizes_get_buckets_of_their_own(recorder: MetricsRecorder) -> None:
    """A size in seconds buckets would always be infinite."""
    recorder.observe("reply_bytes", 5_000)
    assert exposed(recorder, "exai_reply_bytes_bucket")[(("le", "16384.0"),)] == 1


def test_process_and_build_are_exposed(recorder: MetricsRecorder) -> None:
    """An operator asks first which version runs and how much memory it takes."""
    text = recorder.render().decode()
    assert 'exai_build_info{version="' in text
    assert "process_resident_memory_bytes" in text


def test_recent_growth_forgets_what_is_older_than_the_window(recorder: MetricsRecorder, clock: Clock) -> None:
    """Status shows what happens now, not since the start."""
    recorder.count("requests_total", 5, tool="chat")
    clock.now += 60
    recorder.count("requests_total", 2, tool="chat")
    recorder.count("requests_total", 1, tool="status")
    assert recorder.recent("requests_total", 30) == 3
    assert recorder.recent("requests_total", 30, tool="chat") == 2
    assert recorder.recent("requests_total", 120) == 8
    clock.now += 1_000
    assert recorder.recent("requests_total", 300) == 0
    assert recorder.value("requests_total") == 8


def test_quantiles_are_those_of_the_recent_observations(recorder: MetricsRecorder, clock: Clock) -> None:
    """Status shows latency as people read it."""
    recorder.observe("turn_seconds", 99)
    clock.now += 400
    for value in range(1, 101):
        recorder.observe("turn_seconds", value)
    quantiles = recorder.quantiles("turn_seconds")
    assert quantiles is not None
    assert (quantiles.count, quantiles.p50, quantiles.p95, quantiles.p99, quantiles.max) == (100, 51, 96, 100, 100)
    clock.now += 400
    assert recorder.quantiles("turn_seconds") is None
    assert recorder.quantiles("unknown_seconds") is None


def test_label_sets_beyond_the_limit_are_merged_and_counted(recorder: MetricsRecorder) -> None:
    """Facts on monitoring: bounded by label sets, not by traffic; the total stays exact."""
    for number in range(MAX_SERIES_PER_FAMILY + 50):
        recorder.count("calls_total", caller=str(number))
    assert len(recorder.labelled("calls_total")) == MAX_SERIES_PER_FAMILY + 1
    assert recorder.value("calls_total") == MAX_SERIES_PER_FAMILY + 50
    assert recorder.value("calls_total", caller="other") == 50
    assert recorder.value("metrics_merged_total", metric="calls_total") == 50


def test_metrics_beyond_the_limit_are_lost_and_counted(recorder: MetricsRecorder) -> None:
    """A name made from data must not eat the memory."""
    for number in range(MAX_FAMILIES + 50):
        recorder.count(f"made_{number}_total")
    assert recorder.value("metrics_dropped_total") > 50
    assert len([name for name in recorder.values() if name.startswith("exai_")]) == MAX_FAMILIES


def test_every_metric_may_overflow_without_end(recorder: MetricsRecorder) -> None:
    """The counter of merged series has a limit like any other, and must not count itself for ever."""
    for metric in range(MAX_SERIES_PER_FAMILY + 5):
        for number in range(MAX_SERIES_PER_FAMILY + 1):
            recorder.count(f"made_{metric}_total", caller=str(number))
    assert recorder.value("metrics_merged_total") == MAX_SERIES_PER_FAMILY + 5


@pytest.mark.parametrize("value", [-1, math.nan, math.inf])
def test_values_that_would_spoil_a_counter_are_lost_and_counted(recorder: MetricsRecorder, value: float) -> None:
    """A recorder never raises; the defect shows in its own counter."""
    recorder.count("calls_total", 2)
    recorder.count("calls_total", value)
    recorder.observe("call_seconds", math.nan)
    assert recorder.value("calls_total") == 2
    assert recorder.value("metrics_dropped_total", metric="calls_total") == 1
    assert recorder.value("metrics_dropped_total", metric="call_seconds") == 1


def test_misuse_never_raises_and_is_counted(recorder: MetricsRecorder) -> None:
    """The same name as two kinds, with other labels, or unfit for Prometheus."""
    recorder.count("calls_total", tool="a")
    recorder.gauge("calls_total", 1)
    recorder.count("calls_total")
    recorder.count("calls_total", other_label="a")
    recorder.count("not a name")
    assert recorder.value("calls_total") == 1
    assert recorder.value("metrics_dropped_total") == 4
    recorder.render()


def test_label_values_are_cut_and_made_encodable(recorder: MetricsRecorder) -> None:
    """A label may come from a client: long, or with a lone surrogate."""
    recorder.count("calls_total", tool="x" * 10_000)
    recorder.count("calls_total", tool="\ud800")
    assert max(len(labels[0][1]) for labels in exposed(recorder, "exai_calls_total")) == MAX_LABEL_CHARS
    assert recorder.value("calls_total", tool="?") == 1


def test_two_recorders_share_nothing(recorder: MetricsRecorder) -> None:
    """Style: no module-level registries."""
    other = MetricsRecorder()
    recorder.count("calls_total")
    assert other.value("calls_total") == 0
