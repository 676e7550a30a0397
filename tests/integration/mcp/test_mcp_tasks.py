"""Calls answered with a handle: the tasks extension over both transports, with its state in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import orjson
import pytest
from pydantic import SecretStr
from websockets.asyncio.client import ClientConnection, connect

from exai.mcp.auth.tokens import authenticator
from exai.mcp.core.versions import META_CAPABILITIES
from exai.mcp.features.tools import CallContext, ToolSpec
from exai.models import LOCAL_OWNER
from tests.support.mcp_server import (
    WAIT_S,
    Nothing,
    Recording,
    Running,
    SizeArguments,
    fast_settings,
    handshake,
    modern,
    request,
    running_server,
    tool_call,
)
from tests.support.memory_tasks import MemoryTasks
from tests.support.outputs import Fixed
from tests.support.stateless import KNOWS_TASKS, Stateless, stateless

DECLARED = {META_CAPABILITIES: KNOWS_TASKS}
ALICE, BOB = "token-of-alice-0123456789", "token-of-bob-0123456789ab"


class Rig:
    """A server with tools that can be tasks: `long` and `large` wait at the gate, `quick` does not."""

    def __init__(self, server: Running, tasks: MemoryTasks) -> None:
        self.server, self.tasks, self.gate = server, tasks, server.tools.gate
        for name, arguments, handler in (
            ("long", Nothing, self._long),
            ("quick", Nothing, self._quick),
            ("large", SizeArguments, self._large),
        ):
            server.tools.registry.add(
                ToolSpec(name, name, "A tool.", arguments, Fixed, handler, answer_from=Fixed.answer_from)
            )

    async def _long(self, arguments: Nothing, context: CallContext) -> Fixed:
        return await self.tasks.do(context, self._waiting(context))

    async def _waiting(self, context: CallContext) -> Fixed:
        await context.progress("begun")
        self.gate.arrivals.release()
        try:
            await self.gate.open.wait()
        except asyncio.CancelledError:
            self.gate.cancellations.release()
            raise
        await context.progress("done")
        return Fixed.of({"done": True}, "done")

    async def _quick(self, arguments: Nothing, context: CallContext) -> Fixed:
        async def work() -> Fixed:
            return Fixed.of({"quick": True}, "quick")

        return await self.tasks.do(context, work())

    async def _large(self, arguments: SizeArguments, context: CallContext) -> Fixed:
        async def work() -> Fixed:
            await self.gate.open.wait()
            return Fixed.of(None, "x" * arguments.size)

        return await self.tasks.do(context, work())

    async def ended(self, client: Stateless, task_id: str) -> dict[str, Any]:
        """The task once it has ended."""
        async with asyncio.timeout(WAIT_S):
            while (task := await client.task(task_id))["status"] == "working":
                await asyncio.sleep(0.005)
        return task


@asynccontextmanager
async def opened(**settings: Any) -> AsyncIterator[Rig]:
    tasks = MemoryTasks()
    given = fast_settings(**{"task_after_s": 0, **settings})
    async with running_server(given, task_store=tasks, authenticate=authenticator(given)) as server:
        yield Rig(server, tasks)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with opened() as made:
        yield made


async def say(socket: ClientConnection, message: object) -> None:
    await socket.send(orjson.dumps(message), text=True)


async def heard(socket: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(WAIT_S):
        found = orjson.loads(await socket.recv())
    assert isinstance(found, dict)
    return found


async def test_a_long_call_outlives_its_connection_and_is_asked_for_on_another(rig: Rig) -> None:
    """The handle comes first, the result later, as the call itself would have been answered."""
    async with connect(rig.server.url, proxy=None) as socket:
        await say(socket, modern(1, "tools/call", tool_call("long"), **DECLARED))
        handle = (await heard(socket))["result"]
    assert handle["resultType"] == "task"
    assert (handle["status"], handle["ttlMs"], handle["pollIntervalMs"]) == ("working", None, 2_000)
    async with stateless(rig.server.http) as client:
        working = await client.task(handle["taskId"])
        assert working.pop("resultType") == "complete"
        assert {name: handle[name] for name in working} == working
        rig.gate.open.set()
        done = await rig.ended(client, handle["taskId"])
    assert done["status"] == "completed"
    assert done["createdAt"] == handle["createdAt"] <= done["lastUpdatedAt"]
    assert done["result"] == {
        "content": [{"type": "text", "text": "done"}],
        "structuredContent": {"done": True},
        "isError": False,
    }


async def test_a_call_that_ends_soon_is_answered_with_its_result() -> None:
    """The server decides; a fast result needs no handle."""
    async with opened(task_after_s=WAIT_S) as rig, stateless(rig.server.http) as client:
        found = await client.call("quick")
    assert (found["resultType"], found["structuredContent"]) == ("complete", {"quick": True})


async def test_who_does_not_declare_the_extension_gets_the_result_however_late(rig: Rig) -> None:
    """Also a client of the initialize era that names it among its capabilities."""
    async with stateless(rig.server.http, capabilities={}) as client, connect(rig.server.url, proxy=None) as socket:
        shake = handshake()
        shake["params"]["capabilities"] = KNOWS_TASKS
        await say(socket, shake)
        assert "extensions" not in (await heard(socket))["result"]["capabilities"]
        await say(socket, request(1, "tools/call", tool_call("long")))
        await rig.gate.arrived()
        call = asyncio.create_task(client.call("long"))
        await rig.gate.arrived()
        rig.gate.open.set()
        assert (await call)["structuredContent"] == {"done": True}
        assert (await heard(socket))["result"]["structuredContent"] == {"done": True}
        await say(socket, request(2, "tasks/get", {"taskId": next(iter(rig.tasks.tasks))[1]}))
        assert (await heard(socket))["error"]["code"] == -32601


async def test_progress_ends_with_the_handle(rig: Rig) -> None:
    """After an answer nothing more is sent for a request; a task is asked about."""
    async with connect(rig.server.url, proxy=None) as socket, stateless(rig.server.http) as client:
        await say(socket, modern(1, "tools/call", tool_call("long"), **DECLARED, progressToken="p"))
        assert (await heard(socket))["method"] == "notifications/progress"
        handle = (await heard(socket))["result"]
        rig.gate.open.set()
        await rig.ended(client, handle["taskId"])
        await say(socket, request(2, "ping"))
        assert (await heard(socket))["id"] == 2


async def test_a_call_cancelled_before_its_handle_is_stopped() -> None:
    """It is still a request like any other."""
    async with opened(task_after_s=WAIT_S) as rig, connect(rig.server.url, proxy=None) as socket:
        await say(socket, modern(1, "tools/call", tool_call("long"), **DECLARED))
        await rig.gate.arrived()
        await say(socket, {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}})
        await rig.gate.cancelled()


async def test_a_cancelled_task_is_stopped_before_it_is_acknowledged(rig: Rig) -> None:
    """Twice is as good as once."""
    async with stateless(rig.server.http) as client:
        handle = await client.call("long")
        for _ in range(2):
            assert (await client.cancel(handle["taskId"])).keys() == {"resultType", "_meta"}
        await rig.gate.cancelled()
        assert (await client.task(handle["taskId"]))["status"] == "cancelled"


async def test_a_handle_is_worth_nothing_to_another_owner() -> None:
    """It is not found, and the task continues."""
    async with (
        opened(tokens={"alice": SecretStr(ALICE), "bob": SecretStr(BOB)}) as rig,
        stateless(rig.server.http, token=ALICE) as alice,
        stateless(rig.server.http, token=BOB) as bob,
    ):
        handle = (await alice.call("long"))["taskId"]
        for method, more in (("tasks/get", {}), ("tasks/cancel", {}), ("tasks/update", {"inputResponses": {}})):
            theirs = (await bob.ask(method, taskId=handle, **more))["error"]
            never = (await bob.ask(method, taskId="f" * 36, **more))["error"]
            assert theirs["code"] == never["code"] == -32602
            assert theirs["message"].replace(handle, "?") == never["message"].replace("f" * 36, "?")
        assert (await alice.task(handle))["status"] == "working"


async def test_responses_are_acknowledged_because_no_task_asks_for_any(rig: Rig) -> None:
    """Keys that are not outstanding are to be ignored."""
    async with stateless(rig.server.http) as client:
        handle = await client.call("long")
        answer = {"x": {"action": "accept"}}
        found = await client.ask("tasks/update", taskId=handle["taskId"], inputResponses=answer)
        assert found["result"].keys() == {"resultType", "_meta"}
        assert (await client.ask("tasks/update", taskId=handle["taskId"]))["error"]["code"] == -32602


async def test_an_owner_with_enough_tasks_waits_for_the_answer() -> None:
    """Nothing is refused; there is only no handle."""
    async with opened(owner_max_tasks=1) as rig, stateless(rig.server.http) as client:
        assert (await client.call("long"))["resultType"] == "task"
        second = asyncio.create_task(client.call("long"))
        await rig.gate.arrived(2)
        rig.gate.open.set()
        assert (await second)["resultType"] == "complete"


async def test_a_result_larger_than_a_reply_says_so_as_the_call_would_have() -> None:
    """Otherwise its client could not be notified of the end of the task."""
    async with opened(reply_max_bytes=10_000) as rig, stateless(rig.server.http) as client:
        handle, fits = await client.call("large", size=20_000), await client.call("large", size=7_800)
        rig.gate.open.set()
        done = await rig.ended(client, handle["taskId"])
        assert (done["status"], done["result"]["isError"]) == ("completed", True)
        assert done["result"]["structuredContent"]["error"]["code"] == "reply_too_large"
        assert len((await rig.ended(client, fits["taskId"]))["result"]["content"][0]["text"]) == 7_800


async def test_a_stopping_server_lets_tasks_end_within_its_grace() -> None:
    """No client is connected, but the results can be read later."""
    async with opened() as rig:
        async with stateless(rig.server.http) as client:
            await client.call("long")
        stop = asyncio.Event()
        stop.set()
        closing = asyncio.create_task(rig.server.running.serve_until(stop))
        await asyncio.sleep(0)
        rig.gate.open.set()
        async with asyncio.timeout(WAIT_S):
            await closing
    assert [task.status for task in rig.tasks.tasks.values()] == ["completed"]


async def test_a_task_that_outlasts_the_grace_fails_with_the_reason() -> None:
    """The word that its state is derived from comes with the cancellation."""
    async with opened(shutdown_grace_s=0.01) as rig:
        async with stateless(rig.server.http) as client:
            await client.call("long")
        async with asyncio.timeout(WAIT_S):
            await rig.server.running.close()
    assert [(task.status, task.message) for task in rig.tasks.tasks.values()] == [("cancelled", "shutting_down")]


async def test_a_task_that_crashes_is_counted_and_leaves_nothing_behind() -> None:
    """No caller waits for it, so the error is counted."""
    recorder = Recording()
    given = fast_settings(task_after_s=0)
    tasks = MemoryTasks()
    async with running_server(given, task_store=tasks, recorder=recorder) as server:
        made = Rig(server, tasks)

        async def crash(arguments: Nothing, context: CallContext) -> Fixed:
            async def work() -> Fixed:
                await made.gate.open.wait()
                raise RuntimeError("a secret that must not leave")

            return await tasks.do(context, work())

        server.tools.registry.add(
            ToolSpec("crashes", "Crashes", "Has a defect.", Nothing, Fixed, crash, answer_from=Fixed.answer_from)
        )
        async with stateless(server.http) as client:
            handle = await client.call("crashes")
            made.gate.open.set()
            failed = await made.ended(client, handle["taskId"])
    assert (failed["status"], failed["error"]) == ("failed", {"code": -32603, "message": "internal error"})
    assert ("mcp_tasks_total", {"outcome": "internal"}) in recorder.counts


async def test_the_routing_header_must_be_the_tasks(rig: Rig) -> None:
    """Streamable HTTP: Mcp-Name mirrors the task's id, and a proxy may have routed by it."""
    message = modern(1, "tasks/get", {"taskId": "a"}, **DECLARED)
    headers = {"mcp-protocol-version": "2026-07-28", "mcp-method": "tasks/get"}
    async with httpx.AsyncClient(base_url=rig.server.http) as http:
        for name in ({}, {"mcp-name": "b"}):
            found = await http.post("/mcp", json=message, headers={**headers, **name})
            assert (found.status_code, found.json()["error"]["code"]) == (400, -32020)
        found = await http.post("/mcp", json=message, headers={**headers, "mcp-name": "a"})
        assert found.json()["error"]["code"] == -32602


async def test_two_calls_that_are_one_piece_of_work_get_one_handle(rig: Rig) -> None:
    """A client that sends a call again while the first waits must not end up with two tasks."""
    stored = asyncio.Event()

    async def slowly_begun(arguments: Nothing, context: CallContext) -> Fixed:
        await stored.wait()
        return await rig._long(arguments, context)

    spec = ToolSpec(
        "asked", "Asked", "Joins.", Nothing, Fixed, slowly_begun, joins_identical=True, answer_from=Fixed.answer_from
    )
    rig.server.tools.registry.add(spec)
    async with connect(rig.server.url, proxy=None) as socket:
        for key in (1, 2):
            await say(socket, modern(key, "tools/call", tool_call("asked"), **DECLARED))
        await say(socket, modern(3, "tools/call", tool_call("echo", text="messages are taken in order")))
        assert (await heard(socket))["id"] == 3
        stored.set()
        handles = [await heard(socket), await heard(socket)]
    assert handles[0]["result"]["taskId"] == handles[1]["result"]["taskId"]
    assert [owner for owner, _ in rig.tasks.tasks] == [LOCAL_OWNER]


async def test_a_call_that_knows_no_tasks_joins_none_that_may_become_one(rig: Rig) -> None:
    """It could not use a handle, although an identical call of its connection came first."""
    spec = ToolSpec(
        "asked", "Asked", "Joins.", Nothing, Fixed, rig._long, joins_identical=True, answer_from=Fixed.answer_from
    )
    rig.server.tools.registry.add(spec)
    async with connect(rig.server.url, proxy=None) as socket:
        await say(socket, handshake())
        assert (await heard(socket))["id"] == 0
        await say(socket, modern(1, "tools/call", tool_call("asked"), **DECLARED))
        await say(socket, modern(2, "tools/call", tool_call("asked")))
        await say(socket, request(3, "tools/call", tool_call("asked")))
        assert (await heard(socket))["result"]["resultType"] == "task"
        rig.gate.open.set()
        answers = [await heard(socket), await heard(socket)]
    assert {answer["id"] for answer in answers} == {2, 3}
    assert [answer["result"]["structuredContent"] for answer in answers] == [{"done": True}] * 2
