"""Start and stop: the port, its refusals, and a stop that loses no answer."""

from __future__ import annotations

import asyncio
import os
import socket

import httpx
import orjson
import pytest
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from exai.errors import StartupError
from exai.mcp.transport.asgi import build_asgi
from exai.mcp.transport.listener import bind_sockets, open_server
from tests.support.mcp_server import (
    WAIT_S,
    Running,
    Tools,
    fast_settings,
    modern,
    new_server,
    request,
    running_server,
    tool_call,
)


async def told(client: ClientConnection, message: object) -> None:
    await client.send(orjson.dumps(message), text=True)


async def next_message(client: ClientConnection) -> dict[str, object]:
    async with asyncio.timeout(WAIT_S):
        found = orjson.loads(await client.recv())
    assert isinstance(found, dict)
    return found


async def close_code(client: ClientConnection) -> int:
    async with asyncio.timeout(WAIT_S):
        with pytest.raises(ConnectionClosed) as caught:
            await client.recv()
    assert caught.value.rcvd is not None
    return caught.value.rcvd.code


def stopping(server: Running, **options: object) -> tuple[asyncio.Event, asyncio.Task[None]]:
    stop = asyncio.Event()
    task = asyncio.create_task(server.running.serve_until(stop, **options))
    stop.set()
    return stop, task


async def ended(task: asyncio.Task[None]) -> None:
    async with asyncio.timeout(WAIT_S):
        await task


async def test_running_calls_finish_and_then_the_socket_closes_with_1001() -> None:
    """Stop: nothing new, the rest to its end, then going away."""
    async with running_server() as server, connect(server.url) as busy, connect(server.url) as idle:
        await told(busy, modern(1, "tools/call", tool_call("slow")))
        await server.tools.gate.arrived()
        _, task = stopping(server)
        assert await close_code(idle) == 1001
        await told(busy, modern(2, "tools/call", tool_call("echo", text="a")))
        refused = await next_message(busy)
        assert refused["id"] == 2
        assert refused["error"]["data"]["code"] == "shutting_down"
        await told(busy, request(3, "ping"))
        assert (await next_message(busy))["id"] == 3
        server.tools.gate.open.set()
        assert (await next_message(busy))["result"]["structuredContent"] == {"done": True}
        assert await close_code(busy) == 1001
        await ended(task)
        assert server.running.connections == 0


async def test_new_connections_are_refused_while_the_rest_finishes() -> None:
    """The port is closed first, so that another daemon can take it."""
    async with running_server() as server, connect(server.url) as busy:
        await told(busy, modern(1, "tools/call", tool_call("slow")))
        await server.tools.gate.arrived()
        _, task = stopping(server, code=1012)
        await asyncio.sleep(0)
        assert server.server.is_draining
        with pytest.raises(OSError):
            await connect(server.url)
        server.tools.gate.open.set()
        assert (await next_message(busy))["id"] == 1
        assert await close_code(busy) == 1012
        await ended(task)


async def test_calls_that_outlast_the_grace_are_answered_and_stopped() -> None:
    """With an error that names the shutdown, not a broken connection."""
    async with running_server(fast_settings(shutdown_grace_s=0.05)) as server, connect(server.url) as client:
        await told(client, modern(1, "tools/call", tool_call("slow")))
        await server.tools.gate.arrived()
        _, task = stopping(server)
        found = await next_message(client)
        assert found["error"]["data"] == {
            "code": "shutting_down",
            "retryable": True,
            "message": found["error"]["message"],
        }
        assert await close_code(client) == 1001
        await server.tools.gate.cancelled()
        await ended(task)


async def test_hurry_ends_the_grace_at_once() -> None:
    """A second signal."""
    async with running_server(fast_settings(shutdown_grace_s=1_000)) as server, connect(server.url) as client:
        await told(client, modern(1, "tools/call", tool_call("slow")))
        await server.tools.gate.arrived()
        hurry = asyncio.Event()
        _, task = stopping(server, hurry=hurry)
        await asyncio.sleep(0)
        hurry.set()
        assert (await next_message(client))["error"]["data"]["code"] == "shutting_down"
        await ended(task)


async def test_a_peer_that_reads_nothing_does_not_hold_up_the_stop() -> None:
    """Every wait of the shutdown is bounded."""
    settings = fast_settings(send_timeout_s=0.1, shutdown_grace_s=0.1)
    async with running_server(settings) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        async with connect(server.url, max_queue=1) as client:
            for key in range(20):
                await told(client, modern(key, "tools/call", tool_call("big", size=1_000_000)))
            _, task = stopping(server)
            await ended(task)
            client.transport.abort()
        writer.close()


async def test_http_requests_finish_and_their_connections_close() -> None:
    """The order is the same for the other transport."""
    async with running_server() as server, httpx.AsyncClient(base_url=server.http, timeout=WAIT_S) as client:
        await client.post("/mcp", json=request(0, "ping"))
        call = asyncio.create_task(client.post("/mcp", json=request(1, "tools/call", tool_call("slow"))))
        await server.tools.gate.arrived()
        _, task = stopping(server)
        await asyncio.sleep(0)
        server.tools.gate.open.set()
        found = await call
        assert found.status_code == 200
        assert "done" in found.text
        await ended(task)


async def test_http_calls_that_outlast_the_grace_are_503() -> None:
    """A proxy can send the request elsewhere."""
    settings = fast_settings(shutdown_grace_s=0.05)
    async with running_server(settings) as server, httpx.AsyncClient(base_url=server.http, timeout=WAIT_S) as client:
        call = asyncio.create_task(client.post("/mcp", json=request(1, "tools/call", tool_call("slow"))))
        await server.tools.gate.arrived()
        _, task = stopping(server)
        found = await call
        assert (found.status_code, found.json()["error"]["data"]["code"]) == (503, "shutting_down")
        await ended(task)


async def test_endless_pages_of_the_caller_do_not_hold_up_the_stop() -> None:
    """A dashboard's stream is cut after the sessions have ended."""

    async def stream(request: Request) -> StreamingResponse:
        async def numbers() -> object:
            yield b"begun"
            await asyncio.Event().wait()

        return StreamingResponse(numbers())

    settings = fast_settings()
    app = build_asgi(new_server(Tools(), settings), [Route("/events", stream)])
    async with open_server(app, settings) as running, httpx.AsyncClient(timeout=WAIT_S) as client:
        async with client.stream("GET", f"http://127.0.0.1:{running.port}/events") as response:
            pieces = response.aiter_bytes()
            assert await anext(pieces) == b"begun"
            hurry = asyncio.Event()
            hurry.set()
            async with asyncio.timeout(WAIT_S):
                await running.close(hurry=hurry)
            assert running.connections == 0
            with pytest.raises(httpx.RemoteProtocolError):
                await anext(pieces)


async def test_leaving_the_context_closes_everything() -> None:
    """An exception in the caller must not leave a port behind."""
    with pytest.raises(RuntimeError, match="caller"):
        async with running_server() as server, connect(server.url) as client:
            await told(client, request(0, "ping"))
            await next_message(client)
            raise RuntimeError("the caller failed")
    with pytest.raises(OSError):
        await connect(server.url)


class TestThePort:
    def test_a_taken_port_is_named_with_its_holder_and_the_cure(self) -> None:
        """No silent move to another port."""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            with pytest.raises(StartupError) as caught:
                bind_sockets(fast_settings(port=port))
        words = str(caught.value)
        assert f"port {port}" in words
        assert f"pid {os.getpid()}" in words
        assert "EXAI_SERVER__PORT" in words

    def test_addresses_of_other_machines_are_refused(self) -> None:
        """With the setting that is wrong."""
        for host in ("192.0.2.1", "no-such-name.invalid"):
            with pytest.raises(StartupError, match="EXAI_SERVER__HOST"):
                bind_sockets(fast_settings(host=host))

    def test_every_address_of_a_name_gets_the_same_port(self) -> None:
        """`localhost` is two addresses on many machines."""
        bound = bind_sockets(fast_settings(host="localhost"))
        try:
            assert len({each.getsockname()[1] for each in bound}) == 1
        finally:
            for each in bound:
                each.close()

    async def test_bound_sockets_can_be_given(self) -> None:
        """Workers share the sockets their parent bound."""
        settings = fast_settings()
        sockets = bind_sockets(settings)
        app = build_asgi(new_server(Tools(), settings))
        async with open_server(app, settings, sockets=sockets) as running:
            assert running.port == sockets[0].getsockname()[1]
            async with connect(f"ws://127.0.0.1:{running.port}/") as client:
                await told(client, request(0, "ping"))
                assert (await next_message(client))["result"] == {}
