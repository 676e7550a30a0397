"""The report of the calls that end in one iteration of the event loop: each once, and each as itself."""

from __future__ import annotations

import asyncio

import structlog
from structlog.testing import capture_logs

from exai.mcp.session.accounting import Accounting
from exai.models import Owner
from exai.monitoring.metrics import MetricsRecorder


async def test_each_call_of_an_iteration_is_reported_once_and_as_its_own() -> None:
    """Style: one line per request; the context of one call is not that of another."""
    recorder = MetricsRecorder()
    accounting, loop = Accounting(recorder), asyncio.get_running_loop()
    with (
        capture_logs() as lines,
        structlog.contextvars.bound_contextvars(peer="x"),
    ):
        structlog.get_config()["processors"].insert(0, structlog.contextvars.merge_contextvars)
        for number, outcome in enumerate(("ok", "ok", "error")):
            accounting.add((Owner(f"o{number}"), "tools/call", "chat", outcome), f"r{number}", 0.25, number, loop)
        assert not lines
        await asyncio.sleep(0)
        accounting.add((Owner("o3"), "prompts/get", "", "ok"), "r3", 0.5, 7, loop)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert [(line["request"], line["owner"], line["outcome"]) for line in lines] == [
        ("r0", "o0", "ok"),
        ("r1", "o1", "ok"),
        ("r2", "o2", "error"),
        ("r3", "o3", "ok"),
    ]
    assert not any("peer" in line for line in lines)
    assert lines[0]["ms"] == 250.0
    assert recorder.value("mcp_requests_total") == 4
    assert recorder.value("mcp_requests_total", tool="chat", outcome="ok") == 2
    assert recorder.value("mcp_request_seconds", method="tools/call") == 0.75
    assert recorder.labelled("request_statements") == {(("tool", "chat"),): 3, (("tool", "prompts/get"),): 7}
