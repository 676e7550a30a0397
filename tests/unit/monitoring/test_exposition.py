"""The metrics of several processes as one: what is added up, and what stays of a process that has ended."""

from __future__ import annotations

import json

from prometheus_client.parser import text_string_to_metric_families

from exai.monitoring.exposition import Values, add_up_values, as_json, from_json, kept_of, render
from exai.monitoring.metrics import MetricsRecorder


def process(number: int) -> MetricsRecorder:
    recorder = MetricsRecorder()
    recorder.count("calls_total", number, tool="chat")
    recorder.count("calls_total", 1, tool=f"t{number}")
    recorder.observe("wait_seconds", *[0.002] * number)
    recorder.gauge("sessions", number)
    recorder.gauge("breaker_state", number % 3, breaker="kimi")
    recorder.gauge("component_up", number % 2, component="cache")
    return recorder


def sent(recorder: MetricsRecorder) -> Values:
    return from_json(json.loads(json.dumps(as_json(recorder.values()))))


def samples(values: Values) -> dict[tuple[str, tuple[str, ...]], float]:
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(render(values).decode())
        for sample in family.samples
    }


def test_counts_are_added_and_states_are_compared() -> None:
    """A component that one process cannot reach is not up."""
    found = samples(add_up_values(sent(process(number)) for number in (1, 2, 3)))
    assert found["exai_calls_total", ("chat",)] == 6
    assert found["exai_calls_total", ("t2",)] == 1
    assert found["exai_wait_seconds_count", ()] == 6
    assert found["exai_wait_seconds_bucket", ("0.0025",)] == 6
    assert found["exai_sessions", ()] == 6
    assert found["exai_breaker_state", ("kimi",)] == 2
    assert found["exai_component_up", ("cache",)] == 0
    assert found["exai_build_info", (MetricsRecorder().values()["exai_build_info"].series.popitem()[0])] == 1


def test_the_sum_of_one_process_is_the_process() -> None:
    """Sent and added up, nothing changes."""
    recorder = process(2)
    values = recorder.values()
    assert samples(add_up_values([from_json(as_json(values))])) == samples(values)


def test_an_ended_process_keeps_its_counts_and_not_its_state() -> None:
    """So that no counter of the daemon goes back when a process ends."""
    found = samples(add_up_values([kept_of(sent(process(5))), sent(process(1))]))
    assert found["exai_calls_total", ("chat",)] == 6
    assert found["exai_sessions", ()] == 1


def test_a_metric_of_another_shape_is_left_out() -> None:
    """A worker of the next version may have other ranges or labels."""
    one, other = MetricsRecorder(), MetricsRecorder()
    one.count("calls_total", 3, tool="chat")
    other.count("calls_total", 4, tool="chat", outcome="ok")
    assert samples(add_up_values([sent(one), sent(other)]))["exai_calls_total", ("chat",)] == 3


def test_adding_up_changes_none_of_the_parts() -> None:
    """The parent keeps the last values of each worker."""
    one, other = sent(process(1)), sent(process(2))
    before = samples(one)
    add_up_values([one, other])
    assert samples(one) == before
