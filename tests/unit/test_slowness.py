"""The report of a slow operation: counted by what it waited for longest, and logged as a warning."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from exai.monitoring.metrics import MetricsRecorder
from exai.slowness import note_slow


@pytest.mark.parametrize(
    ("waits", "longest", "waited_ms"),
    [
        ({}, "server", {"server": 900}),
        ({"connection": 0.6}, "connection", {"connection": 600, "server": 300}),
        ({"connection": 0.2, "retry": 0.1}, "server", {"connection": 200, "retry": 100, "server": 600}),
        ({"connection": 0.0004}, "server", {"server": 900}),
        ({"connection": 0.5, "retry": 0.5}, "connection", {"connection": 500, "retry": 500}),
    ],
)
def test_it_names_what_was_waited_for(waits: dict[str, float], longest: str, waited_ms: dict[str, int]) -> None:
    """Parts below a millisecond are left out; clocks that disagree make no negative part."""
    recorder = MetricsRecorder()
    with capture_logs() as lines:
        note_slow(recorder, "read_page", 0.9, waits, "server")
    (line,) = lines
    assert (line["event"], line["log_level"], line["operation"], line["ms"]) == (
        "slow_operation",
        "warning",
        "read_page",
        900,
    )
    assert line["waited_ms"] == waited_ms
    labels = (("operation", "read_page"), ("waited_for", longest))
    assert recorder.labelled("slow_operation_seconds") == {labels: 0.9}
