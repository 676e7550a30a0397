"""Every metric has a line in `GET /metrics` that says what it is."""

from __future__ import annotations

import re
from pathlib import Path

import exai
from exai.monitoring.exposition import MEANINGS, render
from exai.monitoring.metrics import MetricsRecorder

RECORDED = re.compile(r'\.(?:count|observe|gauge)\(\s*"([a-z_]+)"')


def test_every_metric_that_is_recorded_has_a_meaning_and_no_other() -> None:
    """A new metric cannot be forgotten."""
    sources = Path(exai.__file__).parent.rglob("*.py")
    recorded = {name for path in sources for name in RECORDED.findall(path.read_text("utf-8"))}
    assert recorded == set(MEANINGS)


def test_a_scrape_states_the_meaning() -> None:
    recorder = MetricsRecorder()
    recorder.observe("request_statements", 2, tool="chat")
    text = render(recorder.values()).decode()
    assert f"# HELP exai_request_statements {MEANINGS['request_statements']}\n" in text
