"""Invalid input of one client is answered, or its socket closed, without effect on a running call of another client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_socket
from websockets.exceptions import ConnectionClosed

from tests.support.client import call, connect
from tests.support.daemon import Daemon
from tests.support.provider_server import ProviderServer, chunk, event, stream

PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "neighbour", "version": "1"},
    },
}
CHAT = {"name": "chat", "arguments": {"prompt": "Echo this"}}
ANSWER_LIMIT_S = 5.0


async def answer_of(socket: ClientConnection) -> dict[str, object]:
    """Return the next message."""
    async with asyncio.timeout(ANSWER_LIMIT_S):
        decoded = json.loads(await socket.recv())
    assert isinstance(decoded, dict)
    return decoded


async def disconnects(socket: ClientConnection) -> None:
    """Goes away in the middle of a call."""
    await socket.send(json.dumps(PING))
    socket.transport.abort()


async def sends_garbage(socket: ClientConnection) -> None:
    """Not JSON: a parse error without an id, and the connection lives."""
    await socket.send("{garbage")
    assert (await answer_of(socket))["error"]["code"] == -32700  # type: ignore[index]
    await socket.send(json.dumps(PING))
    assert (await answer_of(socket))["result"] == {}


async def sends_an_array(socket: ClientConnection) -> None:
    """Batches are no longer part of the protocol."""
    await socket.send(json.dumps([PING, PING]))
    answer = await answer_of(socket)
    assert answer["error"]["code"] == -32600  # type: ignore[index]
    assert answer.get("id") is None


async def sends_too_much(socket: ClientConnection) -> None:
    """One byte more than the limit of 8 MiB closes this socket as too big.

    In fragments, because asyncio cannot finish one large write to a peer that has stopped listening.
    """
    with pytest.raises(ConnectionClosed):
        await socket.send(["x" * 1_048_576] * 8 + ["x"])
        await answer_of(socket)
    assert socket.close_code == 1009


async def sends_a_duplicate_id(socket: ClientConnection) -> None:
    """The second request under an id that is in flight is refused; the first one is answered."""
    waiting = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": CHAT}
    await socket.send(json.dumps(INITIALIZE))
    assert "result" in await answer_of(socket)
    await socket.send(json.dumps(waiting))
    await socket.send(json.dumps(PING))
    answers = [await answer_of(socket), await answer_of(socket)]
    assert {answer["id"] for answer in answers} == {1}
    assert [answer["error"]["code"] for answer in answers if "error" in answer] == [-32600]  # type: ignore[index]


async def says_nothing(socket: ClientConnection) -> None:
    """An idle socket has no effect on other connections."""
    await socket.ping()


@pytest.mark.parametrize(
    "neighbour",
    [disconnects, sends_garbage, sends_an_array, sends_too_much, sends_a_duplicate_id, says_nothing],
)
async def test_call_in_flight_survives_a_neighbour_that(
    neighbour: Callable[[ClientConnection], Awaitable[None]], daemon: Daemon, provider: ProviderServer
) -> None:
    """Each connection has its own reader, writer and tasks."""
    provider.script(stream("gate", chunk({"content": "unharmed"}, finish="stop"), event("[DONE]")))
    async with connect(daemon.url) as session:
        running = asyncio.create_task(call(session, "chat", prompt="Hold on"))
        await provider.arrived(1)
        async with open_socket(daemon.url, subprotocols=["mcp"], max_size=None) as other:  # type: ignore[list-item]
            await neighbour(other)
        provider.gate.set()
        assert (await running)["content"] == "unharmed"
        assert (await call(session, "version"))["name"] == "exai"
