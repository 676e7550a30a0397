"""Limits of one owner and of one address, over both transports, without effect on others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import httpx
import orjson
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from exai.mcp.identity import Admitted
from exai.models import Owner
from tests.support.mcp_server import WAIT_S, Running, fast_settings, modern, running_server, tool_call
from tests.support.raw_peer import raw_peer


async def by_name(headers: Any, query: Any) -> Admitted:
    """The token is the owner."""
    return Admitted(Owner(query.get("token", "nobody")))


@asynccontextmanager
async def limited(**limits: Any) -> AsyncIterator[Running]:
    async with running_server(fast_settings(**limits), authenticate=by_name) as running:
        yield running


@asynccontextmanager
async def socket_of(server: Running, owner: str) -> AsyncIterator[ClientConnection]:
    async with connect(f"{server.url}?token={owner}", compression=None) as opened:
        yield opened


async def send(socket: ClientConnection, key: int, tool: str, **arguments: Any) -> None:
    await socket.send(orjson.dumps(modern(key, "tools/call", tool_call(tool, **arguments))), text=True)


async def receive(socket: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(WAIT_S):
        found = orjson.loads(await socket.recv())
    assert isinstance(found, dict)
    return found


async def ask(socket: ClientConnection, key: int, tool: str, **arguments: Any) -> dict[str, Any]:
    await send(socket, key, tool, **arguments)
    return await receive(socket)


async def works(server: Running, owner: str) -> None:
    """This owner is served as if nothing were the matter."""
    async with socket_of(server, owner) as socket:
        assert "result" in await ask(socket, 1, "echo", text="a")


async def post(server: Running, owner: str, tool: str, **arguments: Any) -> httpx.Response:
    headers = {"mcp-protocol-version": "2026-07-28", "mcp-method": "tools/call", "mcp-name": tool}
    message = modern(1, "tools/call", tool_call(tool, **arguments))
    async with httpx.AsyncClient(timeout=WAIT_S, verify=False) as client:
        return await client.post(f"{server.http}/mcp?token={owner}", json=message, headers=headers)


async def test_running_requests_are_counted_over_all_connections_of_an_owner() -> None:
    """The limit is named; what ends makes room, also when it is cancelled by the loss of its connection."""
    async with limited(owner_max_in_flight=2) as server:
        async with socket_of(server, "alice") as first, socket_of(server, "alice") as second:
            await send(first, 1, "slow")
            await send(second, 1, "slow")
            await server.tools.gate.arrived(2)
            error = (await ask(first, 2, "echo", text="a"))["error"]
            assert (error["code"], error["data"]["code"], error["data"]["value"]) == (-31001, "overloaded", 2)
            assert "EXAI_SERVER__OWNER_MAX_IN_FLIGHT " in error["message"]
            refused = await post(server, "alice", "echo", text="a")
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            assert refused.json()["error"]["data"]["limit"].startswith("EXAI_SERVER__OWNER_MAX_IN_FLIGHT ")
            await works(server, "bob")
        await server.tools.gate.cancelled(2)
        await works(server, "alice")


async def test_running_requests_are_counted_in_bytes_too() -> None:
    """Many large messages at once are memory."""
    async with limited(owner_max_in_flight_bytes=10_000) as server, socket_of(server, "alice") as socket:
        for key in (1, 2):
            message = modern(key, "tools/call", tool_call("slow"), padding="x" * 6_000)
            await socket.send(orjson.dumps(message), text=True)
        error = (await receive(socket))["error"]
        assert "EXAI_SERVER__OWNER_MAX_IN_FLIGHT_BYTES" in error["message"]
        await works(server, "bob")
        server.tools.gate.open.set()
        assert "result" in await receive(socket)


async def test_a_rate_is_refused_with_the_time_to_wait_through_both_doors() -> None:
    """The next connection of the same owner does not begin anew."""
    async with limited(owner_requests_per_s=0.1) as server:
        async with socket_of(server, "alice") as socket:
            assert "result" in await ask(socket, 1, "echo", text="a")
            error = (await ask(socket, 2, "echo", text="a"))["error"]
            assert "EXAI_SERVER__OWNER_REQUESTS_PER_S" in error["message"]
            assert 0 < error["data"]["retry_after_s"] <= 10
        refused = await post(server, "alice", "echo", text="a")
        assert refused.status_code == 429
        assert 0 < int(refused.headers["retry-after"]) <= 10
        assert (await post(server, "bob", "echo", text="a")).status_code == 200


async def test_client_that_ignores_rate_errors_is_closed_with_1013() -> None:
    """A thousand refusals, or fewer large ones; calls that run are not the reason."""
    async with limited(owner_requests_per_s=0.01, message_max_bytes=8_388_608) as server:
        for padding, most in (("", 1_001), ("x" * 8_000_000, 10)):
            async with socket_of(server, f"owner-{len(padding)}") as socket:
                assert "result" in await ask(socket, 0, "echo", text="a")
                message = orjson.dumps(modern(1, "tools/call", tool_call("echo", text="a"), padding=padding))
                answers = asyncio.create_task(_until_closed(socket))
                for _ in range(most):
                    try:
                        await socket.send(message, text=True)
                    except ConnectionClosed:
                        break
                async with asyncio.timeout(WAIT_S):
                    refused, code = await answers
                assert code == 1013
                assert 0 < refused <= most
        await works(server, "bob")


async def test_refusals_between_which_some_pass_try_the_patience_too() -> None:
    """At a high rate some requests always pass, for any excess."""
    async with limited(owner_requests_per_s=100) as server, socket_of(server, "alice") as socket:
        answers = asyncio.create_task(_closed(socket))
        for key in range(20_000):
            try:
                await socket.send(orjson.dumps(modern(key, "tools/list")), text=True)
            except ConnectionClosed:
                break
        async with asyncio.timeout(WAIT_S):
            assert await answers == 1013
        await works(server, "bob")


async def test_notices_count_and_cancel_all_the_same() -> None:
    """Notifications have no answer and are not refused; a client that sends too many is closed."""
    async with limited(owner_requests_per_s=0.2) as server, socket_of(server, "alice") as socket:
        await send(socket, 1, "slow")
        await server.tools.gate.arrived()
        assert "error" in await ask(socket, 2, "echo", text="a") or "error" in await ask(socket, 3, "echo", text="a")
        await socket.send('{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}', text=True)
        await server.tools.gate.cancelled()
        async with httpx.AsyncClient(timeout=WAIT_S, verify=False) as client:
            posted = await client.post(
                f"{server.http}/mcp?token=alice", json={"jsonrpc": "2.0", "method": "notifications/initialized"}
            )
        assert (posted.status_code, posted.headers["retry-after"]) == (429, "1")
        closed = asyncio.create_task(_closed(socket))
        with suppress(ConnectionClosed):
            for _ in range(1_100):
                await socket.send('{"jsonrpc":"2.0","method":"notifications/initialized"}', text=True)
        async with asyncio.timeout(WAIT_S):
            assert await closed == 1013
        await works(server, "bob")


async def _closed(socket: ClientConnection) -> int | None:
    try:
        while True:
            await socket.recv()
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd else None


async def _until_closed(socket: ClientConnection) -> tuple[int, int | None]:
    refused = 0
    try:
        while True:
            assert orjson.loads(await socket.recv())["error"]["code"] == -31001
            refused += 1
    except ConnectionClosed as closed:
        return refused, closed.rcvd.code if closed.rcvd else None


async def test_connections_of_an_owner_are_limited_before_the_upgrade() -> None:
    """429, and when to try again; others connect."""
    async with limited(owner_max_connections=1) as server, socket_of(server, "alice"):
        with pytest.raises(InvalidStatus) as caught:
            async with socket_of(server, "alice"):
                pass
        assert caught.value.response.status_code == 429
        assert "retry-after" in caught.value.response.headers
        assert b"EXAI_SERVER__OWNER_MAX_CONNECTIONS" in caught.value.response.body
        refused = await post(server, "alice", "echo", text="a")
        assert refused.status_code == 429
        assert "EXAI_SERVER__OWNER_MAX_CONNECTIONS" in refused.text
        await works(server, "bob")


async def test_an_address_may_have_so_many_unfinished_handshakes() -> None:
    """Slow loris from one address: the next gets 503; finished handshakes do not count."""
    async with limited(max_handshakes_per_address=2, handshake_timeout_s=WAIT_S) as server, AsyncExitStack() as stack:
        await stack.enter_async_context(socket_of(server, "alice"))
        peers = [await stack.enter_async_context(raw_peer(server.port)) for _ in range(2)]
        for peer in peers:
            await peer.send(b"GET /mcp HTTP/1.1\r\n")
        late = await stack.enter_async_context(raw_peer(server.port))
        await late.send(b"GET /mcp HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head = await late.head()
        assert b" 503 " in head
        assert b"retry-after" in head
        await peers[0].send(b"Host: localhost\r\n\r\n")
        assert b" 405 " in await peers[0].head()
        await works(server, "alice")
