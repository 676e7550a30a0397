"""Calls that are answered at their client's deadline, while their work goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import orjson
import pytest
from websockets.asyncio.client import ClientConnection, connect

from exai.mcp.core.protocol import BegunWork, CallContext
from exai.mcp.features.tools import ToolSpec
from exai.settings.load import ServerSettings
from tests.support.mcp_server import (
    WAIT_S,
    Nothing,
    Running,
    fast_settings,
    handshake,
    request,
    running_server,
    tool_call,
)
from tests.support.memory_tasks import MemoryTasks
from tests.support.outputs import Fixed

SOON_S = 0.05


def unfinished(work: BegunWork) -> Fixed:
    return Fixed.of({"complete": False, **work.facts}, "not complete")


class Rig:
    """A server with a tool that declares its work as durable, and one that never does."""

    def __init__(self, server: Running, tasks: MemoryTasks) -> None:
        self.server, self.tasks, self.gate = server, tasks, server.tools.gate
        for name, handler in (("long", self._long), ("never_begun", self._never_begun)):
            server.tools.registry.add(
                ToolSpec(name, name, "A tool.", Nothing, Fixed, handler, timeout_s=None, answer_from=Fixed.answer_from)
            )
        server.tools.registry.add(ToolSpec("store", "Store", "A tool.", Nothing, Fixed, self._never_begun))

    async def _long(self, arguments: Nothing, context: CallContext) -> Fixed:
        return await self.tasks.do(context, self._waiting(arguments, context))

    async def _never_begun(self, arguments: Nothing, context: CallContext) -> Fixed:
        return await self._waiting(arguments, context)

    async def _waiting(self, arguments: Nothing, context: CallContext) -> Fixed:
        context.doing("waiting for the gate")
        self.gate.arrivals.release()
        try:
            await self.gate.open.wait()
        except asyncio.CancelledError:
            self.gate.cancellations.release()
            raise
        return Fixed.of({"done": True}, "done")

    async def ended(self) -> list[str]:
        async with asyncio.timeout(WAIT_S):
            while any(task.status == "working" for task in self.tasks.tasks.values()):
                await asyncio.sleep(0.005)
        return [task.status for task in self.tasks.tasks.values()]


@asynccontextmanager
async def opened(**settings: Any) -> AsyncIterator[Rig]:
    tasks = MemoryTasks()
    given = fast_settings(**{"call_deadlines": {"*": SOON_S}, **settings})
    async with running_server(given, task_store=tasks, unfinished=unfinished) as server:
        yield Rig(server, tasks)


@asynccontextmanager
async def client_named(rig: Rig, name: str) -> AsyncIterator[ClientConnection]:
    async with connect(rig.server.url, proxy=None) as socket:
        shake = handshake()
        shake["params"]["clientInfo"]["name"] = name
        await say(socket, shake)
        await heard(socket)
        yield socket


async def say(socket: ClientConnection, message: object) -> None:
    await socket.send(orjson.dumps(message), text=True)


async def heard(socket: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(WAIT_S):
        found = orjson.loads(await socket.recv())
    assert isinstance(found, dict)
    return found


async def test_a_call_is_answered_at_its_clients_deadline_and_its_work_goes_on() -> None:
    """The answer has the handle of the outcome, which is stored."""
    async with opened() as rig, client_named(rig, "cursor-vscode") as socket:
        await say(socket, request(1, "tools/call", tool_call("long")))
        found = (await heard(socket))["result"]
        assert found["isError"] is False
        ((_, task_id),) = rig.tasks.tasks
        assert found["structuredContent"] == {"complete": False, "turn": task_id}
        assert [task.status for task in rig.tasks.tasks.values()] == ["working"]
        rig.gate.open.set()
        assert await rig.ended() == ["completed"]


async def test_work_goes_on_after_its_connection_is_closed() -> None:
    """The turn is stored for later reads."""
    async with opened() as rig:
        async with client_named(rig, "mcp") as socket:
            await say(socket, request(1, "tools/call", tool_call("long")))
            assert (await heard(socket))["result"]["structuredContent"]["complete"] is False
        rig.gate.open.set()
        assert await rig.ended() == ["completed"]


async def test_a_patient_client_receives_the_answer_itself() -> None:
    """The name in clientInfo decides, by its beginning, in either case."""
    async with opened() as rig, client_named(rig, "Claude-Code-CLI") as socket:
        await say(socket, request(1, "tools/call", tool_call("long")))
        await rig.gate.arrived()
        rig.gate.open.set()
        assert (await heard(socket))["result"]["structuredContent"] == {"done": True}


async def test_a_call_with_nothing_durable_ends_with_an_error() -> None:
    """There is nothing to ask for later, so the work must not go on unseen."""
    async with opened() as rig, client_named(rig, "mcp") as socket:
        for name in ("never_begun", "store"):
            await say(socket, request(name, "tools/call", tool_call(name)))
            error = (await heard(socket))["result"]["structuredContent"]["error"]
            assert (error["code"], error["retryable"]) == ("deadline_exceeded", True)
            await rig.gate.cancelled()


async def test_an_owner_without_room_for_more_is_refused_by_the_limit() -> None:
    """Work that no call waits for is bounded."""
    async with opened(owner_max_tasks=1) as rig, client_named(rig, "mcp") as socket:
        await say(socket, request(1, "tools/call", tool_call("long")))
        assert (await heard(socket))["result"]["structuredContent"]["complete"] is False
        await say(socket, request(2, "tools/call", tool_call("long")))
        error = (await heard(socket))["result"]["structuredContent"]["error"]
        assert error["code"] == "overloaded"
        assert "calls that go on" in error["message"]


@pytest.mark.parametrize(("agent", "is_patient"), [("claude-code/2.1.240 (cli)", True), ("python-httpx/0.28", False)])
async def test_over_http_the_agent_stands_for_the_client(agent: str, is_patient: bool) -> None:
    """In the initialize era only the User-Agent of a POST names the client; each form of path is accepted."""
    for meta in ({}, {"progressToken": "p"}):
        async with opened() as rig, httpx.AsyncClient(base_url=rig.server.http, headers={"user-agent": agent}) as http:
            call = asyncio.create_task(
                http.post(
                    "/mcp",
                    json=request(1, "tools/call", tool_call("long"), **meta),
                    headers={"accept": "application/json", "mcp-protocol-version": "2025-11-25"},
                )
            )
            await rig.gate.arrived()
            if is_patient:
                rig.gate.open.set()
            found = (await call).json()["result"]["structuredContent"]
            assert found.get("done", False) is is_patient
            rig.gate.open.set()
            await rig.ended()


async def test_the_periodic_report_says_what_is_waited_for() -> None:
    """A user sees which model has not answered yet, not that something works."""
    async with opened(progress_interval_s=0.01, call_deadlines={"*": WAIT_S}) as rig:
        async with client_named(rig, "mcp") as socket:
            await say(socket, request(1, "tools/call", tool_call("long"), progressToken="p"))
            found = await heard(socket)
            assert found["params"]["message"].startswith("waiting for the gate (")
            rig.gate.open.set()


@pytest.mark.parametrize(
    ("client", "given", "deadline_s"),
    [
        ("codex-mcp-client", {}, 280.0),
        ("claude-code", {}, 3_600.0),
        ("gemini-cli-mcp-client", {}, 580.0),
        ("Anthropic/ClaudeAI", {}, 55.0),
        ("", {}, 55.0),
        ("codex-mcp-client", {"codex": 100.0}, 100.0),
        ("codex-mcp-client", {"*": 5.0}, 280.0),
        ("cursor-vscode", {"cursor": 30.0, "cursor-vs": 40.0}, 40.0),
        ("anything", {"*": 5.0}, 5.0),
    ],
)
def test_deadlines_of_clients(client: str, given: dict[str, float], deadline_s: float) -> None:
    """A setting is more than the default, and a longer beginning more than a shorter one."""
    assert ServerSettings(call_deadlines=given).call_deadline_s(client) == deadline_s
