"""One session without a door: calls that never begin, and how each that did is told of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson

from exai.mcp.core.jsonrpc import parse
from exai.mcp.identity import Admitted
from exai.mcp.session.session import Session
from exai.models import LOCAL_OWNER
from exai.monitoring.metrics import MetricsRecorder
from tests.support.mcp_server import WAIT_S, Tools, fast_settings, modern, new_server, tool_call


@asynccontextmanager
async def open_session(tools: Tools, *, recorder: MetricsRecorder, max_in_flight: int) -> AsyncIterator[Session]:
    server = new_server(tools, fast_settings(owner_max_in_flight=max_in_flight), recorder=recorder)
    session = server.open_session(Admitted(LOCAL_OWNER), peer="test")
    yield session
    await session.end()
    await asyncio.sleep(0)  # What has ended is told at the end of a turn of the event loop.


def take(session: Session, message: dict[str, Any]) -> None:
    data = orjson.dumps(message)
    session.process(parse(data), len(data))


async def answered(session: Session) -> dict[str, Any]:
    async with asyncio.timeout(WAIT_S):
        message = await session.outbox.get()
    assert message is not None
    answer: dict[str, Any] = orjson.loads(message.data)
    return answer


async def test_calls_cancelled_before_they_begin_are_never_done_and_leave_room() -> None:
    """A call and its cancellation may arrive together."""
    tools, recorder = Tools(), MetricsRecorder()
    async with open_session(tools, recorder=recorder, max_in_flight=1) as session:
        for key in range(3):
            take(session, modern(key, "tools/call", tool_call("slow")))
            cancel = {"method": "notifications/cancelled", "params": {"requestId": key}}
            take(session, {"jsonrpc": "2.0", **cancel})
            assert session.is_idle
        take(session, modern("last", "tools/call", tool_call("echo", text="here")))
        assert (await answered(session))["id"] == "last"
        assert not len(session.outbox)
    assert len(tools.contexts) == 1
    assert recorder.labelled("mcp_requests_total") == {
        (("method", "tools/call"), ("outcome", "ok"), ("tool", "echo")): 1
    }


async def test_every_outcome_is_counted_and_timed_once() -> None:
    """Style: metrics of every request, however it ends; and a defect is answered all the same."""
    tools, recorder = Tools(), MetricsRecorder()
    called = {
        "echo": "ok",
        "refuse": "invalid_argument",
        "busy": "database_busy",
        "hasty": "deadline_exceeded",
        "crash": "internal",
        "unsound": "internal",
        "vanish": "cancelled",
    }
    async with open_session(tools, recorder=recorder, max_in_flight=10) as session:
        for name in called:
            take(session, modern(name, "tools/call", tool_call(name, **({"text": "x"} if name == "echo" else {}))))
        assert {(await answered(session))["id"] for _ in called} == set(called)
        await asyncio.sleep(0)
        assert session.is_idle
    assert recorder.labelled("mcp_requests_total") == {
        (("method", "tools/call"), ("outcome", outcome), ("tool", name)): 1 for name, outcome in called.items()
    }
    rendered = recorder.render().decode()
    for name in called:
        assert f'exai_mcp_request_seconds_count{{method="tools/call",tool="{name}"}} 1.0' in rendered
