"""The numbers of now: what they count, and that those of several processes add up."""

from __future__ import annotations

import json

import pytest

from exai.monitoring.live import Live, ProcessNumbers, add_up, read_numbers
from exai.monitoring.metrics import MetricsRecorder


def live(recorder: MetricsRecorder) -> Live:
    provider = {"name": "kimi", "configured": True, "state": "ok", "breaker": "closed", "detail": ""}
    return Live(recorder, pool=lambda: (1, 4, 4), providers=lambda: [provider], running=lambda: 2)


def call(recorder: MetricsRecorder, tool: str, outcome: str, *seconds: float, method: str = "tools/call") -> None:
    recorder.count("mcp_requests_total", len(seconds), method=method, tool=tool, outcome=outcome)
    recorder.observe("mcp_request_seconds", *seconds, method=method, tool=tool)


async def test_calls_of_tools_are_counted_and_other_methods_are_not() -> None:
    """A cancelled call is no error."""
    recorder = MetricsRecorder()
    call(recorder, "chat", "ok", 1.0, 3.0)
    call(recorder, "chat", "timeout", 5.0)
    call(recorder, "status", "cancelled", 0.001)
    call(recorder, "", "ok", 9.0, method="tools/list")
    seen = await live(recorder).gather()
    assert (seen.requests, seen.errors, seen.errors_recent) == (4, 1, 1)
    chat, status = seen.tools
    assert (chat.tool, chat.calls, chat.errors, chat.recent) == ("chat", 3, 1, 3)
    assert (chat.p50_ms, chat.p99_ms) == (3000.0, 5000.0)
    assert (status.tool, status.errors, status.p50_ms) == ("status", 0, 1.0)


async def test_a_new_daemon_has_numbers_too() -> None:
    """No rate is made of nothing."""
    seen = await live(MetricsRecorder()).gather()
    assert (seen.requests, seen.tools, seen.cache["hit_rate"], seen.running) == (0, (), None, 2)
    assert json.loads(json.dumps(seen.as_json()))["pool"] == {"in_use": 1, "open": 4, "size": 4}


async def test_the_processes_of_a_daemon_add_up() -> None:
    """Each sends its numbers as JSON; quantiles are those of all calls."""
    one, other = MetricsRecorder(), MetricsRecorder()
    call(one, "chat", "ok", *[0.1] * 10)
    call(other, "chat", "ok", *[0.5] * 30)
    call(other, "usage", "ok", 0.2)
    other.count("cache_reads_total", 3, result="hit")
    other.count("cache_reads_total", 1, result="miss")
    sent = read_numbers(json.loads(json.dumps(live(other).numbers().as_json())))

    async def gather(own: ProcessNumbers) -> list[ProcessNumbers]:
        return [own, sent]

    seen = await Live(one, pool=lambda: (0, 4, 4), providers=list, running=lambda: 0, gather=gather).gather()
    assert (seen.requests, seen.running, len(seen.pids)) == (41, 2, 2)
    assert (seen.tools[0].calls, seen.tools[0].p50_ms) == (40, 500.0)
    assert seen.cache["hit_rate"] == 0.75
    assert seen.pool == {"in_use": 1, "open": 8, "size": 8}


@pytest.mark.parametrize("order", [1, -1])
def test_a_provider_is_in_the_worst_state_that_a_process_sees(order: int) -> None:
    """A breaker opens in one process first."""

    def numbers(breaker: str) -> ProcessNumbers:
        return ProcessNumbers([1], 1.0, providers=[{"name": "kimi", "breaker": breaker}])

    seen = add_up([numbers("closed"), numbers("open")][::order])
    assert seen.providers == [{"name": "kimi", "breaker": "open"}]
