"""Figures of this process that `GET /health` and the tool `status` show beside the components."""

from __future__ import annotations

import os
from typing import Any, Final

from exai.monitoring.metrics import MetricsRecorder

RECENT_S: Final = 300.0


def figures(recorder: MetricsRecorder, staleness_bound_s: float) -> dict[str, Any]:
    """Return process id, limits, and recent activity from the metrics."""

    def results(name: str) -> dict[str, int]:
        return {labels[0][1]: int(count) for labels, count in recorder.labelled(name).items()}

    statements = recorder.quantiles("db_statement_seconds", RECENT_S)
    return {
        "pid": os.getpid(),
        "staleness_bound_s": staleness_bound_s,
        "cache_reads": results("cache_reads_total"),
        "answer_cache": {
            "reads": results("answer_cache_reads_total"),
            "stores": results("answer_cache_stores_total"),
        },
        "recorder": {
            "waiting": int(recorder.value("recorder_queue")),
            "stored": int(recorder.value("recorder_events_total", outcome="stored")),
            "dropped": int(recorder.value("recorder_dropped_total")),
        },
        "statement_ms": statements
        and {"p50": round(statements.p50 * 1000, 2), "p99": round(statements.p99 * 1000, 2), "seen": statements.count},
    }
