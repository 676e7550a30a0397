"""One session without a transport: calls that never begin, and the report of each that did."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson

from exai.errors import DeadlineExceeded
from exai.mcp.core.connection import Connection
from exai.mcp.core.jsonrpc import Json, parse
from exai.mcp.core.protocol import Call, CallContext, Cancel, Feature, Method, Send, Surface, Terms
from exai.mcp.core.versions import OVERLOADED
from exai.mcp.identity import Admitted
from exai.mcp.session.runtime import Runtime
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
    await asyncio.sleep(0)  # Ended calls are reported at the end of an iteration of the event loop.


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
    """Style: every request has metrics for each kind of end; a defect has an answer, too."""
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
    for name, outcome in called.items():
        labels = f'method="tools/call",outcome="{outcome}",tool="{name}"'
        assert f"exai_mcp_request_seconds_count{{{labels}}} 1.0" in rendered


class Waiting:
    """A method that is no tool: its calls state their label, wait for `open`, and are identical if their key is.

    A "stubborn" call answers its cancellation with a result.
    """

    def __init__(self, *, timeout_s: float | None = None) -> None:
        self.open = asyncio.Event()
        self.begun = 0
        self.tasks: list[asyncio.Task[Any] | None] = []
        self._timeout_s = timeout_s
        self.feature = Feature({}, [Method("wait", work=self._work, terms_of=self._terms_of)])

    def _terms_of(self, call: Call) -> Terms:
        return Terms(
            str(call.params["label"]), self._timeout_s, lambda call: bytes(call.params["key"], "ascii") or None
        )

    async def _work(self, call: Call, context: CallContext) -> Json:
        self.begun += 1
        self.tasks.append(asyncio.current_task())
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            if call.params["label"] == "stubborn":
                return {"late": True}
            raise
        return {}


def session_of(feature: Feature, recorder: MetricsRecorder, ended: list[Session]) -> Session:
    """A session without a server: the methods and the runtime are all that it knows."""
    settings = fast_settings()
    connection = Connection(Surface("t", "1", [feature]), max_in_flight=10, reply_max_bytes=settings.reply_max_bytes)
    runtime = Runtime(settings, recorder, 30.0)
    return Session(runtime, connection, Admitted(LOCAL_OWNER), peer="test", on_end=ended.append)


async def test_methods_state_their_own_terms_and_a_session_needs_no_server() -> None:
    """Labels and identity of a call are those of its method, for any feature."""
    waiting, recorder, ended = Waiting(), MetricsRecorder(), list[Session]()
    session = session_of(waiting.feature, recorder, ended)
    for key, (label, identity) in enumerate((("a", "same"), ("a", "same"), ("b", ""))):
        take(session, modern(key, "wait", {"label": label, "key": identity}))
    await asyncio.sleep(0)
    waiting.open.set()
    assert {(await answered(session))["id"] for _ in range(3)} == {0, 1, 2}
    assert waiting.begun == 2
    await session.end()
    await asyncio.sleep(0)
    assert ended == [session]
    assert recorder.value("mcp_calls_deduplicated_total", tool="a") == 1
    assert recorder.value("mcp_requests_total", method="wait", tool="a", outcome="ok") == 2
    assert recorder.value("mcp_requests_total", method="wait", tool="b", outcome="ok") == 1


async def test_timeout_ends_a_call_and_leaves_its_task_uncancelled_if_the_work_went_on() -> None:
    """A timeout that stays counted would be taken for one of a later wait in the same task."""
    waiting, recorder = Waiting(timeout_s=-2.0), MetricsRecorder()
    session = session_of(waiting.feature, recorder, [])
    take(session, modern(1, "wait", {"label": "patient", "key": ""}))
    take(session, modern(2, "wait", {"label": "stubborn", "key": ""}))
    found = {answer["id"]: answer for answer in (await answered(session), await answered(session))}
    assert found[1]["error"]["data"]["code"] == DeadlineExceeded.code
    assert found[2]["result"]["late"] is True
    assert [task.cancelling() for task in waiting.tasks if task is not None] == [0, 0]
    await session.end()


async def test_process_returns_the_action_and_whether_the_message_was_within_its_rate() -> None:
    """A transport closes a connection by it; a cancellation is carried out even over the rate."""
    tools, recorder = Tools(), MetricsRecorder()
    server = new_server(tools, fast_settings(owner_requests_per_s=0.2), recorder=recorder)
    session = server.open_session(Admitted(LOCAL_OWNER), peer="test")

    def processed(message: dict[str, Any]) -> tuple[object, bool]:
        data = orjson.dumps(message)
        return session.process(parse(data), len(data))

    _, is_within_rate = processed(modern("slow", "tools/call", tool_call("slow")))
    assert is_within_rate
    while is_within_rate:
        action, is_within_rate = processed(modern("listed", "tools/list"))
    assert isinstance(action, Send)
    assert action.error is not None
    assert action.error.code == OVERLOADED
    cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "slow"}}
    assert processed(cancel) == (Cancel("slow"), False)
    await session.end()
