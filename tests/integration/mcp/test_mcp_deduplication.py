"""A repetition of a running call: one execution, an answer for each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from websockets.asyncio.client import ClientConnection, connect

from exai.mcp.features.tools import Arguments, CallContext, ToolSpec
from tests.support.mcp_server import WAIT_S, Recording, Running, modern, running_server, tool_call
from tests.support.outputs import Fixed


class AskArguments(Arguments):
    prompt: str
    idempotency_key: str | None = None


class Asked:
    """A server with a tool that joins, and a socket on it."""

    def __init__(self, server: Running, socket: ClientConnection) -> None:
        self.gate, self._server, self._socket = server.tools.gate, server, socket
        server.tools.registry.add(
            ToolSpec("ask", "Ask", "Waits at the gate.", AskArguments, Fixed, self._ask, joins_identical=True)
        )

    async def _ask(self, arguments: AskArguments, context: CallContext) -> Fixed:
        self.gate.arrivals.release()
        await context.progress("begun")
        try:
            await self.gate.open.wait()
        except asyncio.CancelledError:
            self.gate.cancellations.release()
            raise
        return Fixed.of({"prompt": arguments.prompt}, arguments.prompt)

    async def call(self, key: int, **arguments: Any) -> None:
        message = modern(key, "tools/call", tool_call("ask", **arguments))
        await self._socket.send(orjson.dumps(message), text=True)

    async def cancel(self, key: int) -> None:
        message = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": key}}
        await self._socket.send(orjson.dumps(message), text=True)

    async def taken(self) -> None:
        """Everything sent so far has been taken: messages of one socket are taken in order."""
        await self._socket.send(orjson.dumps(modern("t", "tools/call", tool_call("echo", text="a"))), text=True)
        assert (await self.answer())["id"] == "t"

    async def answer(self) -> dict[str, Any]:
        async with asyncio.timeout(WAIT_S):
            found = orjson.loads(await self._socket.recv())
        assert isinstance(found, dict)
        return found

    def arrivals(self) -> int:
        """The number of runs that began since the last call."""
        return self.gate.arrivals._value


@pytest.fixture
def recording() -> Recording:
    return Recording()


@pytest.fixture
async def asked(recording: Recording) -> AsyncIterator[Asked]:
    async with opened(recording) as found:
        yield found


@asynccontextmanager
async def opened(recording: Recording) -> AsyncIterator[Asked]:
    async with running_server(recorder=recording) as server, connect(server.url, proxy=None) as socket:
        yield Asked(server, socket)


async def test_an_identical_call_joins_the_running_one(asked: Asked, recording: Recording) -> None:
    """Known of one client: the same tools/call under a new id. The order of the arguments does not matter."""
    await asked.call(1, prompt="a", idempotency_key=None)
    await asked.gate.arrived()
    await asked.call(2, idempotency_key=None, prompt="a")
    await asked.taken()
    assert asked.arrivals() == 0
    asked.gate.open.set()
    answers = [await asked.answer(), await asked.answer()]
    assert {answer["id"] for answer in answers} == {1, 2}
    assert [answer["result"]["structuredContent"] for answer in answers] == [{"prompt": "a"}] * 2
    assert ("mcp_calls_deduplicated_total", {"tool": "ask"}) in recording.counts


async def test_cancelling_one_leaves_the_other_its_answer(asked: Asked) -> None:
    """The client gives up on its first try, not on its question."""
    await asked.call(1, prompt="a")
    await asked.gate.arrived()
    await asked.call(2, prompt="a")
    await asked.cancel(1)
    await asked.taken()
    asked.gate.open.set()
    assert (await asked.answer())["id"] == 2


async def test_cancelling_all_stops_the_work_and_the_next_begins_anew(asked: Asked) -> None:
    """Work without a waiting call is not continued."""
    await asked.call(1, prompt="a")
    await asked.gate.arrived()
    await asked.call(2, prompt="a")
    await asked.cancel(1)
    await asked.cancel(2)
    await asked.gate.cancelled()
    await asked.call(3, prompt="a")
    await asked.gate.arrived()
    asked.gate.open.set()
    assert (await asked.answer())["id"] == 3


async def test_what_differs_or_has_a_key_of_its_own_is_not_joined(asked: Asked) -> None:
    """Arguments, an idempotency key, or a call that has ended make it another one."""
    for key, arguments in enumerate(
        (
            {"prompt": "a"},
            {"prompt": "b"},
            {"prompt": "a", "idempotency_key": "k"},
            {"prompt": "a", "idempotency_key": "l"},
        )
    ):
        await asked.call(key, **arguments)
    await asked.gate.arrived(4)
    asked.gate.open.set()
    assert {(await asked.answer())["id"] for _ in range(4)} == {0, 1, 2, 3}
    await asked.call(5, prompt="a")
    await asked.gate.arrived()
    assert (await asked.answer())["id"] == 5


async def test_another_connection_is_not_joined(asked: Asked) -> None:
    """Two people may ask the same."""
    await asked.call(1, prompt="a")
    await asked.gate.arrived()
    async with connect(asked._server.url, proxy=None) as other:
        await other.send(orjson.dumps(modern(1, "tools/call", tool_call("ask", prompt="a"))), text=True)
        await asked.gate.arrived()
    asked.gate.open.set()
    assert (await asked.answer())["id"] == 1
