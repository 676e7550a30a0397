"""The WebSocket transport over a real socket, with a plain client and with the official SDK's."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import orjson
import pytest
from mcp import ClientSession, McpError
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from exai.mcp.core.jsonrpc import Json
from exai.mcp.core.protocol import Call, Method
from exai.mcp.identity import Admitted, AuthRefusal
from exai.models import LOCAL_OWNER, Owner
from tests.support.mcp_server import (
    WAIT_S,
    Recording,
    Running,
    fast_settings,
    handshake,
    modern,
    notify_list_changed,
    request,
    running_server,
    tool_call,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from mcp.client.websocket import websocket_client


@pytest.fixture
async def server() -> AsyncIterator[Running]:
    async with running_server() as running:
        yield running


class Peer:
    """A client that sends and receives frames."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    async def send(self, message: object) -> None:
        await self.socket.send(orjson.dumps(message), text=True)

    async def receive(self) -> dict[str, Any]:
        async with asyncio.timeout(WAIT_S):
            frame = await self.socket.recv()
        assert isinstance(frame, str), "frames out are text"
        found = orjson.loads(frame)
        assert isinstance(found, dict)
        return found

    async def ask(self, message: object) -> dict[str, Any]:
        await self.send(message)
        return await self.receive()

    async def closed(self) -> int | None:
        async with asyncio.timeout(WAIT_S):
            with pytest.raises(ConnectionClosed) as caught:
                while True:
                    await self.socket.recv()
        return caught.value.rcvd.code if caught.value.rcvd else None


@asynccontextmanager
async def peer(server: Running, path: str = "", **options: Any) -> AsyncIterator[Peer]:
    given: dict[str, Any] = {"subprotocols": ["mcp"], "compression": None, **options}
    async with connect(server.url + path, **given) as socket:
        yield Peer(socket)


@asynccontextmanager
async def sdk(server: Running) -> AsyncIterator[ClientSession]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        opened = websocket_client(server.url)
    async with opened as (read, write), ClientSession(read, write, timedelta(seconds=WAIT_S)) as session:
        await session.initialize()
        yield session


class TestConnecting:
    @pytest.mark.parametrize("path", ["", "ws", "mcp"])
    async def test_every_path_leads_to_the_server(self, server: Running, path: str) -> None:
        """Clients append different paths."""
        async with peer(server, path) as client:
            assert (await client.ask(request(0, "ping")))["result"] == {}

    async def test_the_subprotocol_is_selected_when_offered_and_not_required(self, server: Running) -> None:
        """The TypeScript client insists on it, others offer none."""
        async with peer(server) as client:
            assert client.socket.subprotocol == "mcp"
        async with peer(server, subprotocols=["other", "mcp"]) as client:
            assert client.socket.subprotocol == "mcp"
        async with peer(server, subprotocols=None) as client:
            assert client.socket.subprotocol is None
            assert (await client.ask(request(0, "ping")))["result"] == {}

    async def test_no_compression_is_negotiated(self, server: Running) -> None:
        """It would cost memory per connection and offers a bomb."""
        async with peer(server, compression="deflate") as client:
            assert client.socket.protocol.extensions == []

    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ({"Origin": "https://evil.example"}, 403),
            ({"Origin": "null"}, 403),
            ({"Origin": "http://localhost.evil.example"}, 403),
            ({"Origin": "http://[::1"}, 403),
            ({"Host": "evil.example"}, 421),
            ({"Host": "localhost.evil.example:8079"}, 421),
            ({"Host": "127.0.0.1.evil.example"}, 421),
        ],
    )
    async def test_foreign_pages_and_names_are_refused_before_the_upgrade(
        self, server: Running, headers: dict[str, str], status: int
    ) -> None:
        """GHSA-vj7q-gjh5-988w: any web page could open a socket to a local server."""
        with pytest.raises(InvalidStatus) as caught:
            async with raw_connect(server, headers):
                pass
        assert caught.value.response.status_code == status

    @pytest.mark.parametrize(
        "headers",
        [
            {"Host": "localhost:1234"},
            {"Host": "LOCALHOST"},
            {"Host": "[::1]:80"},
            {"Origin": "http://localhost:6274"},
            {"Host": "exai.example", "Origin": "https://exai.example"},
            {"Origin": "https://app.example"},
        ],
    )
    async def test_own_names_and_listed_ones_may_connect(self, headers: dict[str, str]) -> None:
        """Loopback names with any port, and configured names."""
        settings = fast_settings(allowed_hosts=("exai.example",), allowed_origins=("https://app.example",))
        async with running_server(settings) as server, raw_connect(server, headers) as socket:
            assert (await Peer(socket).ask(request(0, "ping")))["result"] == {}

    async def test_unknown_paths_and_full_servers_refuse_the_upgrade(self) -> None:
        """404 and 503 before the upgrade, where the client receives the reason."""
        async with running_server(fast_settings(max_connections=1)) as server:
            with pytest.raises(InvalidStatus) as caught:
                async with peer(server, "elsewhere"):
                    pass
            assert caught.value.response.status_code == 404
            async with peer(server) as client:
                with pytest.raises(InvalidStatus) as caught:
                    async with peer(server):
                        pass
                assert caught.value.response.status_code == 503
                assert (await client.ask(request(0, "ping")))["result"] == {}

    async def test_the_authenticator_decides_before_the_upgrade_and_names_the_owner(self) -> None:
        """401 for a refusal; the owner reaches the tools; the token may stand in the query."""

        async def authenticate(headers: Any, query: Any) -> Admitted | AuthRefusal:
            token = headers.get("authorization", "").removeprefix("Bearer ") or query.get("token", "")
            return Admitted(Owner("alice")) if token == "secret" else AuthRefusal("a token is needed")

        async with running_server(authenticate=authenticate) as server:
            with pytest.raises(InvalidStatus) as caught:
                async with peer(server):
                    pass
            assert caught.value.response.status_code == 401
            assert caught.value.response.headers["www-authenticate"] == "Bearer"
            for options in ({"additional_headers": {"Authorization": "Bearer secret"}}, {"path": "?token=secret"}):
                async with peer(server, **options) as client:
                    await client.ask(modern(1, "tools/call", tool_call("echo", text="a")))
            assert [context.owner for context in server.tools.contexts] == ["alice", "alice"]


@asynccontextmanager
async def raw_connect(server: Running, headers: dict[str, str]) -> AsyncIterator[ClientConnection]:
    """Connect with a Host and Origin of our choice."""
    host = headers.get("Host", f"127.0.0.1:{server.port}")
    async with connect(
        f"ws://{host}/",
        host="127.0.0.1",
        port=server.port,
        origin=headers.get("Origin"),
        proxy=None,
    ) as socket:
        yield socket


class TestCalls:
    async def test_initialize_list_and_call(self, server: Running) -> None:
        """The initialize era as a client walks through it."""
        async with peer(server) as client:
            assert (await client.ask(handshake("2025-06-18")))["result"]["protocolVersion"] == "2025-06-18"
            await client.send({"jsonrpc": "2.0", "method": "notifications/initialized"})
            names = [tool["name"] for tool in (await client.ask(request(1, "tools/list")))["result"]["tools"]]
            assert names == [spec.name for spec in server.tools.registry]
            result = (await client.ask(request(2, "tools/call", tool_call("echo", text="a"))))["result"]
            assert result["structuredContent"] == {"text": "a"}
            assert server.tools.contexts[0].owner == LOCAL_OWNER
            assert server.tools.contexts[0].client.name == "test"

    async def test_stateless_calls_need_nothing_before(self, server: Running) -> None:
        """The stateless era on a fresh connection."""
        async with peer(server) as client:
            assert "result" in await client.ask(modern("d", "server/discover"))
            result = (await client.ask(modern(0, "tools/call", tool_call("echo", text="a"))))["result"]
            assert result["resultType"] == "complete"

    async def test_thirty_requests_in_one_write_all_get_answers(self, server: Running) -> None:
        """In any order; a client may batch its writes."""
        async with peer(server) as client:
            for key in range(30):
                await client.send(modern(key, "tools/call", tool_call("echo", text=str(key))))
            answers = [await client.receive() for _ in range(30)]
            assert {each["id"]: each["result"]["structuredContent"]["text"] for each in answers} == {
                key: str(key) for key in range(30)
            }

    async def test_binary_frames_are_read_as_text(self, server: Running) -> None:
        """Some clients send binary frames; answers are text."""
        async with peer(server) as client:
            await client.socket.send(orjson.dumps(request(0, "ping")))
            assert (await client.receive())["result"] == {}

    async def test_fragmented_messages_are_put_together(self, server: Running) -> None:
        """RFC 6455, 5.4."""
        data = orjson.dumps(modern(1, "tools/call", tool_call("echo", text="é" * 100))).decode()
        async with peer(server) as client:
            await client.socket.send([data[:50], data[50:99], data[99:]])
            assert (await client.receive())["result"]["structuredContent"]["text"] == "é" * 100

    async def test_progress_comes_before_the_answer_and_grows(self, server: Running) -> None:
        """Progress with a token of 0."""
        async with peer(server) as client:
            await client.send(modern(0, "tools/call", tool_call("steps"), progressToken=0))
            reports = [await client.receive() for _ in range(3)]
            assert [each["params"] for each in reports] == [
                {"progressToken": 0, "progress": n, "message": word}
                for n, word in enumerate(("one", "two", "three"), 1)
            ]
            assert (await client.receive())["id"] == 0

    async def test_a_silent_call_reports_by_itself(self) -> None:
        """Clients abort a call that shows no life for minutes."""
        async with running_server(fast_settings(progress_interval_s=0.05)) as server, peer(server) as client:
            await client.send(modern(0, "tools/call", tool_call("slow"), progressToken="t"))
            first, second = [(await client.receive())["params"] for _ in range(2)]
            assert second["progress"] > first["progress"]
            server.tools.gate.open.set()
            while "id" not in (last := await client.receive()):
                pass
            assert last["result"]["structuredContent"] == {"done": True}

    async def test_cancelled_call_stops_and_is_never_answered(self, server: Running) -> None:
        """The next answer on the socket is another request's."""
        async with peer(server) as client:
            await client.send(modern(0, "tools/call", tool_call("slow")))
            await server.tools.gate.arrived()
            await client.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 0}})
            await server.tools.gate.cancelled()
            assert (await client.ask(request("next", "ping")))["id"] == "next"

    async def test_a_flood_is_answered_not_queued(self) -> None:
        """At the cap: an error each, at once, while the admitted ones go on."""
        async with running_server(fast_settings(max_in_flight=2)) as server, peer(server) as client:
            for key in range(5):
                await client.send(modern(key, "tools/call", tool_call("slow")))
            refused = [await client.receive() for _ in range(3)]
            assert {each["error"]["data"]["code"] for each in refused} == {"overloaded"}
            server.tools.gate.open.set()
            assert {(await client.receive())["id"] for _ in range(2)} == {0, 1}

    async def test_failures_of_tools_are_results_and_defects_are_errors(self) -> None:
        """The error of a defect has only the request id for the log."""
        recording = Recording()
        async with running_server(recorder=recording) as server, peer(server) as client:
            busy = await client.ask(modern(1, "tools/call", tool_call("busy")))
            assert busy["result"]["isError"] is True
            assert busy["result"]["structuredContent"]["error"]["waited_s"] == 1
            for key, name in enumerate(("crash", "unsound", "vanish"), 2):
                found = await client.ask(modern(key, "tools/call", tool_call(name)))
                assert found["error"]["code"] == -32603
                assert found["error"]["data"]["request_id"] in found["error"]["message"]
                assert "secret" not in str(found)
            unknown = await client.ask(modern(9, "tools/call", tool_call("nope")))
            assert unknown["error"]["code"] == -32602
        outcomes = {labels["tool"]: labels["outcome"] for name, labels in recording.counts if "requests" in name}
        assert outcomes["busy"] == "database_busy"
        assert outcomes["crash"] == "internal"
        assert outcomes["unknown"] == "refused"

    async def test_a_defect_in_a_method_answered_at_once_is_an_error_too(self, server: Running) -> None:
        """The connection and the other methods go on."""

        def broken(call: Call) -> Json:
            raise RuntimeError("a secret that must not leave")

        server.server.surface.methods["tools/list"] = Method("tools/list", answer=broken)
        async with peer(server) as client:
            found = await client.ask(modern(1, "tools/list"))
            assert (found["id"], found["error"]["code"]) == (1, -32603)
            assert "secret" not in str(found)
            assert (await client.ask(request(0, "ping")))["result"] == {}

    async def test_a_call_that_ignores_its_deadline_is_ended(self) -> None:
        """An answer even from a handler that waits for ever."""
        async with running_server(tool_timeout_s=0.01) as server, peer(server) as client:
            found = await client.ask(modern(1, "tools/call", tool_call("slow")))
            assert found["result"]["structuredContent"]["error"]["code"] == "deadline_exceeded"

    async def test_a_tool_may_have_less_time_than_the_others(self, server: Running) -> None:
        """A tool that reads the store needs less than one that asks a model."""
        async with peer(server) as client:
            error = (await client.ask(modern(1, "tools/call", tool_call("hasty"))))["result"]["structuredContent"]
            assert (error["error"]["code"], error["error"]["waiting_for"]) == ("deadline_exceeded", "the gate")

    async def test_replies_beyond_the_limit_say_so_and_the_socket_stays(self, server: Running) -> None:
        """1 MiB is the limit of the official client."""
        async with sdk(server) as session:
            whole = await session.call_tool("big", {"size": 1_000_000})
            assert len(whole.content[0].text) == 1_000_000
            result = await session.call_tool("big", {"size": 1_048_576})
            assert result.isError
            assert "smaller page" in result.content[0].text
            await session.send_ping()


class TestMistakes:
    @pytest.mark.parametrize(
        ("frame", "code"),
        [
            ("nonsense", -32700),
            ("", -32700),
            ("[]", -32600),
            ("5", -32600),
            ('{"jsonrpc":"2.0","id":null,"method":"ping"}', -32600),
            ("[" * 100_000, -32700),
            ('{"a":NaN}', -32700),
        ],
    )
    async def test_unreadable_messages_are_answered_and_the_connection_lives(
        self, server: Running, frame: str, code: int
    ) -> None:
        """No id could be read, so none is given."""
        async with peer(server) as client:
            await client.socket.send(frame)
            found = await client.receive()
            assert found["error"]["code"] == code
            assert "id" not in found
            assert (await client.ask(request(0, "ping")))["result"] == {}

    async def test_an_id_in_use_is_refused(self, server: Running) -> None:
        """And the first of the two still gets its own answer."""
        async with peer(server) as client:
            await client.send(modern(1, "tools/call", tool_call("slow")))
            await server.tools.gate.arrived()
            assert (await client.ask(modern(1, "tools/call", tool_call("echo", text="a"))))["error"]["code"] == -32600
            server.tools.gate.open.set()
            assert (await client.receive())["result"]["structuredContent"] == {"done": True}

    async def test_too_large_messages_close_with_1009(self) -> None:
        """The close frame reaches a client that is still sending."""
        async with running_server(fast_settings(message_max_bytes=10_000)) as server:
            for message in ("x" * 10_001, ["x" * 6_000, "x" * 6_000]):
                async with peer(server) as client:
                    await client.socket.send(message)
                    assert await client.closed() == 1009

    async def test_eight_mebibytes_arrive_whole(self, server: Running) -> None:
        """Prompts with files in them."""
        async with peer(server) as client:
            text = "x" * (8_388_608 - 400)
            found = await client.ask(
                modern(1, "tools/call", tool_call("nested", parts=[{"role": "user", "content": text}]))
            )
            assert found["result"]["structuredContent"] == {"parts": 1}

    async def test_text_that_is_not_utf8_closes_with_1007(self, server: Running) -> None:
        """RFC 6455, 8.1."""
        async with peer(server) as client:
            await client.socket.send(b'{"jsonrpc":"2.0","id":1,"method":"\xff"}', text=True)
            assert await client.closed() == 1007

    async def test_endless_garbage_ends_the_connection(self, server: Running) -> None:
        """Close 1008 after a hundred in a row; one good message resets the count."""
        async with peer(server) as client:
            for _ in range(99):
                await client.socket.send("garbage")
            await client.send(request(0, "ping"))
            for _ in range(100):
                await client.socket.send("garbage")
            assert await client.closed() == 1008


class TestOfficialClient:
    async def test_the_official_client_lists_calls_and_reports(self, server: Running) -> None:
        """`mcp` 1.30 websocket_client."""
        reports: list[tuple[float, str | None]] = []

        async def on_progress(progress: float, total: float | None, message: str | None) -> None:
            reports.append((progress, message))

        async with sdk(server) as session:
            assert len((await session.list_tools()).tools) == len(server.tools.registry)
            result = await session.call_tool("steps", {}, progress_callback=on_progress)
            assert result.structuredContent == {"steps": 3}
            assert reports == [(1, "one"), (2, "two"), (3, "three")]
            refused = await session.call_tool("echo", {"txt": "a"})
            assert refused.isError
            with pytest.raises(McpError, match="Did you mean echo"):
                await session.call_tool("ecko", {})

    async def test_sixteen_clients_share_the_server(self, server: Running) -> None:
        """Each gets its own answers."""

        async def one(number: int) -> None:
            async with sdk(server) as session:
                for turn in range(5):
                    result = await session.call_tool("echo", {"text": f"{number}.{turn}"})
                    assert result.structuredContent == {"text": f"{number}.{turn}"}

        async with asyncio.TaskGroup() as group:
            for number in range(16):
                group.create_task(one(number))


async def test_subscriptions_live_on_the_socket() -> None:
    """Acknowledgement first, changes with the id, a result at the end."""
    settings = fast_settings()
    async with running_server(settings) as server:
        server.server.surface.capabilities["tools"] = {"listChanged": True}
        async with peer(server) as client:
            asked = modern("s", "subscriptions/listen", {"notifications": {"toolsListChanged": True}})
            assert (await client.ask(asked))["method"] == "notifications/subscriptions/acknowledged"
            notify_list_changed(server.server, "tools")
            assert (await client.receive())["method"] == "notifications/tools/list_changed"
            closing = asyncio.create_task(server.running.close(code=1012))
            assert (await client.receive())["id"] == "s"
            assert await client.closed() == 1012
            await closing
