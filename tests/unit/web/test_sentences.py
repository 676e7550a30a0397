"""The sentences of the overview."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from exai.models import Finding
from exai.monitoring.health import ComponentHealth, HealthReport, HealthState
from exai.web.sentences import event_text, problems_of

AT = datetime(2026, 11, 30, tzinfo=UTC)


def component(name: str, state: HealthState) -> ComponentHealth:
    return ComponentHealth(name, False, state, 1.0, "it does not answer", AT)


def test_a_problem_is_stated_once_and_with_its_cure() -> None:
    """In doctor's words where it has examined the part; what works is not stated."""
    parts = (component("cache", "down"), component("kimi", "degraded"), component("schema", "ok"))
    report = HealthReport("degraded", True, True, 1.0, 1.0, (*parts, component("glm", "degraded")))
    findings = [
        Finding("redis", "fail", "no answer within 5 s", "Start it"),
        Finding("provider glm", "fail", "the key is refused", "Correct GLM_API_KEY"),
        Finding("data directory", "warn", "0.1 GB free", "Free some space"),
    ]
    assert problems_of(report, findings, [{"configured": False}, {"configured": True}]) == [
        {"part": "kimi", "detail": "degraded: it does not answer", "cure": "", "since": AT.isoformat()},
        {"part": "redis", "detail": "no answer within 5 s", "cure": "Start it"},
        {"part": "provider glm", "detail": "the key is refused", "cure": "Correct GLM_API_KEY"},
        {"part": "data directory", "detail": "0.1 GB free", "cure": "Free some space"},
    ]


def test_a_daemon_without_a_model_says_what_to_set() -> None:
    """Its parts work, and still it is of little use."""
    report = HealthReport("ok", True, True, 1.0, 1.0, (component("schema", "ok"),))
    (problem,) = problems_of(report, [], [{"configured": False}])
    assert "KIMI_API_KEY" in problem["cure"]


@pytest.mark.parametrize(
    ("kind", "data", "text"),
    [
        (
            "health_change",
            {"labels": {"component": "cache", "state": "down"}, "before": "ok", "detail": "no answer"},
            "cache was ok, is down: no answer",
        ),
        (
            "command_run",
            {"labels": {"command": "prune", "outcome": "ok"}, "value": 1.52, "figures": {"files": 3}},
            "exai prune: ok after 1.5 s, 3 files",
        ),
        (
            "metrics_batch",
            {"status": "refused", "source": "a:1", "error": "not an array"},
            "metrics of a:1 were refused: not an array",
        ),
        ("metrics_batch", {"status": "moved"}, "metrics of a program were moved: their times were moved"),
        ("command_run", {}, "exai None: None"),
        ("health_change", {"labels": None}, "None was None, is None"),
    ],
)
def test_an_event_without_some_fields_is_a_sentence(kind: str, data: dict[str, Any], text: str) -> None:
    assert event_text(kind, data) == text
