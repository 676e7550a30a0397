"""The stdio bridge as an editor sees it: a process with two pipes, and a daemon that comes and goes."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import orjson
import pytest
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client
from websockets.asyncio.server import Server, ServerConnection, serve

from exai.mcp.core import versions
from exai.mcp.identity import Admitted, AuthRefusal
from exai.mcp.stdio.bridge import DISCONNECTED
from exai.mcp.transport.asgi import build_asgi
from exai.mcp.transport.listener import bind_sockets, open_server
from exai.models import Owner
from tests.support.mcp_server import (
    WAIT_S,
    Running,
    Tools,
    fast_settings,
    handshake,
    modern,
    new_server,
    request,
    running_server,
    tool_call,
)

PROGRAM = (
    "import sys; from exai.mcp.stdio.bridge import run_bridge; "
    "sys.exit(run_bridge(sys.argv[1], headers={HEADERS}, patience_s={PATIENCE}))"
)
PATIENCE_S = 15.0
"""Longer than a bridge waits for a daemon that is away."""


class Bridge:
    """A bridge process, from the editor's side."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process = process
        self.stdin = process.stdin
        self.stdout = process.stdout

    async def send(self, message: object) -> None:
        await self.line(orjson.dumps(message))

    async def line(self, data: bytes) -> None:
        self.stdin.write(data + b"\n")
        await self.stdin.drain()

    async def receive(self) -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE_S):
            line = await self.stdout.readline()
        found = orjson.loads(line)
        assert isinstance(found, dict)
        return found

    async def ask(self, message: object) -> dict[str, Any]:
        await self.send(message)
        return await self.receive()

    async def finish(self) -> tuple[bytes, int]:
        """End its input; returns what still came and its exit status."""
        self.stdin.close()
        async with asyncio.timeout(PATIENCE_S):
            rest = await self.stdout.read()
            return rest, await self.process.wait()


def program(headers: dict[str, str], patience_s: float = 8.0, first: str = "") -> str:
    return first + PROGRAM.replace("{HEADERS}", repr(headers)).replace("{PATIENCE}", repr(patience_s))


@asynccontextmanager
async def bridge(
    url: str, headers: dict[str, str] | None = None, *, patience_s: float = 8.0, first: str = ""
) -> AsyncIterator[Bridge]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program(headers or {}, patience_s, first),
        url,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        limit=2**24,
    )
    try:
        yield Bridge(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        _, stderr = await process.communicate()
        assert b"Traceback" not in stderr, stderr.decode()


@pytest.fixture
async def server() -> AsyncIterator[Running]:
    async with running_server() as running:
        yield running


async def test_the_official_client_works_through_it(server: Running) -> None:
    """`mcp` 1.30 stdio client: handshake, list, call, progress, errors."""
    reports: list[float] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        reports.append(progress)

    parameters = StdioServerParameters(command=sys.executable, args=["-c", program({}), server.url])
    async with (
        stdio_client(parameters) as (read, write),
        ClientSession(read, write, timedelta(seconds=WAIT_S)) as session,
    ):
        await session.initialize()
        assert len((await session.list_tools()).tools) == len(server.tools.registry)
        result = await session.call_tool("steps", {}, progress_callback=on_progress)
        assert result.structuredContent == {"steps": 3}
        assert reports == [1, 2, 3]
        text = "é\n😀" * 50_000
        result = await session.call_tool("echo", {"text": text})
        assert result.structuredContent == {"text": text}


async def test_it_ends_with_its_input_and_flushes_the_answers(server: Running) -> None:
    """Exit status 0; nothing on standard output but messages."""
    async with bridge(server.url) as peer:
        for key in range(20):
            await peer.send(modern(key, "tools/call", tool_call("echo", text=str(key))))
        rest, status = await peer.finish()
        assert status == 0
        assert {orjson.loads(line)["id"] for line in rest.splitlines()} == set(range(20))


async def test_cancellations_pass(server: Running) -> None:
    """And the cancelled request is not waited for at the end."""
    async with bridge(server.url) as peer:
        await peer.send(modern(1, "tools/call", tool_call("slow")))
        await server.tools.gate.arrived()
        await peer.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}})
        await server.tools.gate.cancelled()
        assert await peer.finish() == (b"", 0)


async def test_lines_that_are_no_messages_are_answered_and_it_lives(server: Running) -> None:
    """One bad line must not cost the connection: text that is not UTF-8 would close the socket."""
    async with bridge(server.url) as peer:
        await peer.line(b"")
        for line, code in ((b"nonsense", -32700), (b'{"a":"\xff"}', -32700), (b"[]", -32600), (b"{}", -32600)):
            await peer.line(line)
            assert (await peer.receive())["error"]["code"] == code
        assert (await peer.ask(request(0, "ping")))["result"] == {}


async def test_half_a_character_is_refused_with_its_id(server: Running) -> None:
    """A half emoji, as JSON.stringify writes it, reaches the daemon, which answers with an error."""
    async with bridge(server.url) as peer:
        await peer.line(b'{"jsonrpc":"2.0","id":4,"method":"ping","params":{"a":"\\ud83d"}}')
        found = await peer.receive()
        assert (found["id"], found["error"]["code"]) == (4, -32602)


async def test_headers_go_with_the_upgrade() -> None:
    """With the bearer token; a refusal is an answer with the daemon's message."""

    async def authenticate(headers: Any, query: Any) -> Admitted | AuthRefusal:
        return (
            Admitted(Owner("alice")) if headers.get("authorization") == "Bearer x" else AuthRefusal("a token is needed")
        )

    async with running_server(authenticate=authenticate) as server:
        async with bridge(server.url, {"Authorization": "Bearer x"}) as peer:
            assert (await peer.ask(request(0, "ping")))["result"] == {}
        async with bridge(server.url) as peer:
            words = (await peer.ask(request(0, "ping")))["error"]["message"]
            assert "401" in words
            assert "a token is needed" in words


@pytest.mark.parametrize("url", ["ws://127.0.0.1:{port}/", "http://127.0.0.1:{port}/mcp"])
async def test_a_daemon_that_is_not_there_is_named_in_an_answer(url: str) -> None:
    """After some patience; never by dying silently."""
    (taken,) = bind_sockets(fast_settings())
    port = taken.getsockname()[1]
    taken.close()
    async with bridge(url.format(port=port), patience_s=0.3) as peer:
        found = await peer.ask(handshake())
        assert found["id"] == 0
        assert f"127.0.0.1:{port}" in found["error"]["message"]
        assert "exai serve" in found["error"]["message"]
        again = await peer.ask(request(1, "ping"))
        assert again["error"]["code"] == found["error"]["code"]


async def test_an_address_that_is_none_is_said_at_once() -> None:
    """Waiting would not cure it."""
    async with bridge("nonsense") as peer:
        assert "not a WebSocket address" in (await peer.ask(request(1, "ping")))["error"]["message"]


async def test_a_daemon_that_comes_up_late_is_waited_for() -> None:
    """Editors start the bridge before the daemon is ready."""
    settings = fast_settings()
    sockets = bind_sockets(settings)
    port = sockets[0].getsockname()[1]
    sockets[0].close()
    async with bridge(f"ws://127.0.0.1:{port}/") as peer:
        await peer.send(handshake())
        late = fast_settings(port=port)
        async with open_server(build_asgi(new_server(Tools(), late)), late):
            assert (await peer.receive())["result"]["protocolVersion"] == "2025-11-25"


async def test_a_restart_fails_what_was_running_and_nothing_else() -> None:
    """Requests in flight get an error, later ones an answer, and the handshake is repeated unseen."""
    settings = fast_settings(shutdown_grace_s=0.0)
    sockets = bind_sockets(settings)
    port = sockets[0].getsockname()[1]
    tools = Tools()
    async with bridge(f"ws://127.0.0.1:{port}/") as peer:
        async with open_server(build_asgi(new_server(tools, settings)), settings, sockets=sockets) as running:
            assert "result" in await peer.ask(handshake("2025-03-26", key=0))
            await peer.send({"jsonrpc": "2.0", "method": "notifications/initialized"})
            await peer.send(request(1, "tools/call", tool_call("slow")))
            await tools.gate.arrived()
            await running.close(code=1012)
            assert (await peer.receive())["id"] == 1
        again = fast_settings(port=port)
        async with open_server(build_asgi(new_server(tools, again)), again):
            found = await peer.ask(request(2, "tools/call", tool_call("echo", text="a")))
            assert found["id"] == 2, found
            assert "result" in found, found
            assert found["result"]["content"][0]["text"] == "a"
            assert "structuredContent" not in found["result"], "the revision of the first handshake is in force"
            assert await peer.finish() == (b"", 0)


class Daemon:
    """A daemon that a test scripts frame by frame."""

    def __init__(self) -> None:
        self.connections: asyncio.Queue[ServerConnection] = asyncio.Queue()
        self.hold = asyncio.Event()
        self.server: Server | None = None

    async def handle(self, connection: ServerConnection) -> None:
        await self.connections.put(connection)
        await connection.wait_closed()

    async def connection(self) -> ServerConnection:
        async with asyncio.timeout(PATIENCE_S):
            return await self.connections.get()


@asynccontextmanager
async def scripted() -> AsyncIterator[tuple[Daemon, str]]:
    daemon = Daemon()
    async with serve(daemon.handle, "127.0.0.1", 0) as server:
        yield daemon, f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


async def received(connection: ServerConnection) -> dict[str, Any]:
    async with asyncio.timeout(WAIT_S):
        found = orjson.loads(await connection.recv())
    assert isinstance(found, dict)
    return found


async def test_a_lost_connection_is_an_answer_for_each_request() -> None:
    """The daemon was killed: no close frame, no answer."""
    async with scripted() as (daemon, url), bridge(url) as peer:
        for key in ("a", "b"):
            await peer.send(request(key, "tools/call"))
        connection = await daemon.connection()
        await received(connection)
        await received(connection)
        connection.transport.abort()
        lost = [await peer.receive() for _ in range(2)]
        assert {each["id"] for each in lost} == {"a", "b"}
        assert all(url in each["error"]["message"] for each in lost)


async def test_the_end_of_the_editor_closes_the_connection_normally() -> None:
    """The daemon's log distinguishes an end from a failure."""
    async with scripted() as (daemon, url), bridge(url) as peer:
        connection = await daemon.connection()
        _, status = await peer.finish()
        async with asyncio.timeout(WAIT_S):
            await connection.wait_closed()
        assert (status, connection.close_code) == (0, 1000)


async def test_subscriptions_are_opened_again_unseen() -> None:
    """Nothing else of the stateless era is repeated; the second acknowledgement is not the editor's business."""
    acknowledged = {
        "jsonrpc": "2.0",
        "method": "notifications/subscriptions/acknowledged",
        "params": {"_meta": {"io.modelcontextprotocol/subscriptionId": 7}},
    }
    changed = {**acknowledged, "method": "notifications/tools/list_changed"}
    async with scripted() as (daemon, url), bridge(url) as peer:
        listen = modern(7, "subscriptions/listen", {"notifications": {}})
        await peer.send(listen)
        first = await daemon.connection()
        assert await received(first) == listen
        await first.send(orjson.dumps(acknowledged).decode())
        assert await peer.receive() == acknowledged
        first.transport.abort()
        second = await daemon.connection()
        assert await received(second) == listen
        await second.send(orjson.dumps(acknowledged).decode())
        await second.send(orjson.dumps(changed).decode())
        assert await peer.receive() == changed


async def test_a_frame_with_line_breaks_becomes_one_line() -> None:
    """On standard output a line break ends the message."""
    async with scripted() as (daemon, url), bridge(url) as peer:
        await peer.send(request(1, "ping"))
        connection = await daemon.connection()
        await connection.send('{\r\n  "jsonrpc": "2.0",\n  "id": 1,\n  "result": {"text": "a\\nb"}\n}')
        assert await peer.stdout.readline() == b'{"jsonrpc":"2.0","id":1,"result":{"text":"a\\nb"}}\n'


async def test_an_editor_that_reads_nothing_stops_neither_direction_for_good() -> None:
    """The pipe is full: frames wait, requests still go out, and reading on delivers everything."""
    async with scripted() as (daemon, url), bridge(url) as peer:
        await peer.send(request(0, "ping"))
        connection = await daemon.connection()
        await received(connection)
        note = orjson.dumps({"jsonrpc": "2.0", "method": "x", "params": {"t": "y" * 100_000}}).decode()
        flood = asyncio.create_task(_flood(connection, note, 100))
        for key in range(1, 20):
            await peer.send(request(key, "ping"))
            assert (await received(connection))["id"] == key
        for _ in range(100):
            assert (await peer.receive())["method"] == "x"
        await flood


async def _flood(connection: ServerConnection, note: str, times: int) -> None:
    for _ in range(times):
        await connection.send(note)


def test_the_error_of_a_lost_connection_differs_from_the_daemons() -> None:
    """A program can distinguish a lost connection from an expired token."""
    assert DISCONNECTED not in {versions.OVERLOADED, versions.SHUTTING_DOWN, versions.TOKEN_EXPIRED}


def test_nothing_heavy_is_imported() -> None:
    """One runs in every editor window, and starts while the user waits."""
    listing = "import sys; import exai.mcp.stdio.bridge; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {
        "pydantic",
        "starlette",
        "uvicorn",
        "structlog",
        "mcp",
        "httpx",
        "exai.settings.load",
        "exai.errors",
    }
