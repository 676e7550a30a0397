"""Streamable HTTP over a real socket: both eras, headers against body, streams, refusals."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import orjson
import pytest
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from exai.mcp.core.versions import META_VERSION
from exai.mcp.identity import Admitted, AuthRefusal
from exai.mcp.transport.asgi import build_asgi
from exai.mcp.transport.listener import open_server
from exai.models import Owner
from tests.support.mcp_server import (
    WAIT_S,
    Running,
    Tools,
    fast_settings,
    handshake,
    modern,
    new_server,
    notify_list_changed,
    request,
    running_server,
    tool_call,
)
from tests.support.raw_peer import raw_peer

STREAM = "text/event-stream"


@pytest.fixture
async def server() -> AsyncIterator[Running]:
    async with running_server() as running:
        yield running


@pytest.fixture
async def client(server: Running) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.http, timeout=WAIT_S, verify=False) as opened:
        yield opened


def mirrored(message: dict[str, Any], **changes: str | None) -> dict[str, str]:
    """The headers of a stateless request; `None` leaves one out."""
    params = message.get("params", {})
    headers = {
        "mcp-protocol-version": params.get("_meta", {}).get(META_VERSION, "2026-07-28"),
        "mcp-method": message["method"],
        "mcp-name": params.get("name", params.get("uri")),
        **{name.replace("_", "-"): value for name, value in changes.items()},
    }
    return {name: value for name, value in headers.items() if value is not None}


async def post(client: httpx.AsyncClient, message: dict[str, Any], **changes: str | None) -> httpx.Response:
    return await client.post("/mcp", json=message, headers=mirrored(message, **changes))


def posted(body: bytes, method: bytes, name: bytes) -> bytes:
    """A whole request of the stateless era, byte by byte."""
    return (
        b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nMcp-Name:%s\r\n"
        b"MCP-Protocol-Version: 2026-07-28\r\nMcp-Method: %s\r\nContent-Length: %d\r\n\r\n%s"
        % (name, method, len(body), body)
    )


def events(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.headers["content-type"] == STREAM
    assert response.headers["x-accel-buffering"] == "no"
    return [orjson.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: ")]


class TestStatelessEra:
    async def test_discovery_and_calls_answer_as_json(self, client: httpx.AsyncClient) -> None:
        """A fast answer needs no stream."""
        found = await post(client, modern(1, "server/discover"))
        assert (found.status_code, found.headers["content-type"]) == (200, "application/json")
        assert found.json()["result"]["supportedVersions"] == ["2026-07-28"]
        found = await post(client, modern(0, "tools/call", tool_call("echo", text="a")))
        assert found.json()["id"] == 0
        assert found.json()["result"]["structuredContent"] == {"text": "a"}
        assert "mcp-session-id" not in found.headers

    @pytest.mark.parametrize(
        "changes",
        [
            {"mcp_protocol_version": None},
            {"mcp_protocol_version": "2025-11-25"},
            {"mcp_method": None},
            {"mcp_method": "tools/list"},
            {"mcp_method": "TOOLS/CALL"},
            {"mcp_name": None},
            {"mcp_name": "big"},
            {"mcp_name": "=?base64?!!?="},
            {"mcp_name": "=?base64?" + base64.b64encode(b"big").decode() + "?="},
        ],
    )
    async def test_headers_that_contradict_the_body_are_refused(
        self, client: httpx.AsyncClient, server: Running, changes: dict[str, str | None]
    ) -> None:
        """HeaderMismatch, 400, and nothing was carried out."""
        found = await post(client, modern(5, "tools/call", tool_call("echo", text="a")), **changes)
        assert found.status_code == 400
        assert (found.json()["error"]["code"], found.json()["id"]) == (-32020, 5)
        assert server.tools.contexts == []

    @pytest.mark.parametrize("name", [b"echo", b"  echo\t", b"=?base64?" + base64.b64encode(b"echo") + b"?="])
    async def test_names_may_be_padded_or_encoded(self, server: Running, name: bytes) -> None:
        """Optional white space is no part of a header's value."""
        async with raw_peer(server.port) as peer:
            body = orjson.dumps(modern(1, "tools/call", tool_call("echo", text="a")))
            await peer.send(posted(body, b"tools/call", name))
            assert b" 200 " in await peer.head()

    async def test_unknown_versions_are_refused_with_ours(self, client: httpx.AsyncClient) -> None:
        """400 and -32022 if header and body agree on an unsupported version."""
        message = modern(1, "server/discover", **{META_VERSION: "2027-01-01"})
        found = await post(client, message)
        assert (found.status_code, found.json()["error"]["code"]) == (400, -32022)

    async def test_a_modern_header_needs_the_envelope(self, client: httpx.AsyncClient) -> None:
        """-32602 and 400; a probing client reads the code."""
        found = await post(client, request(101, "server/discover"))
        assert (found.status_code, found.json()["error"]["code"], found.json()["id"]) == (400, -32602, 101)

    @pytest.mark.parametrize("method", ["no/such", "ping", "logging/setLevel"])
    async def test_unknown_and_removed_methods_are_404(self, client: httpx.AsyncClient, method: str) -> None:
        """With the JSON-RPC error, which distinguishes them from a wrong path."""
        found = await post(client, modern(7, method))
        assert (found.status_code, found.json()["error"]["code"], found.json()["id"]) == (404, -32601, 7)

    async def test_notifications_are_accepted_without_a_body(self, client: httpx.AsyncClient) -> None:
        """202."""
        message = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
        found = await client.post("/mcp", json=message)
        assert (found.status_code, found.content) == (202, b"")

    async def test_progress_comes_as_a_stream(self, client: httpx.AsyncClient) -> None:
        """Reports, then the answer, then the end."""
        found = events(await post(client, modern(1, "tools/call", tool_call("steps"), progressToken=0)))
        assert [each["params"]["progress"] for each in found[:-1]] == [1, 2, 3]
        assert found[-1]["result"]["structuredContent"] == {"steps": 3}

    async def test_a_client_that_takes_no_stream_gets_the_answer_alone(self, client: httpx.AsyncClient) -> None:
        """Accept lists the supported media types."""
        message = modern(1, "tools/call", tool_call("steps"), progressToken=0)
        found = await post(client, message, accept="application/json")
        assert found.json()["result"]["structuredContent"] == {"steps": 3}

    async def test_failures_of_tools_are_200_and_results(self, client: httpx.AsyncClient) -> None:
        """The HTTP status is about the message, not about the tool's result."""
        found = await post(client, modern(1, "tools/call", tool_call("busy")))
        assert (found.status_code, found.json()["result"]["isError"]) == (200, True)
        found = await post(client, modern(1, "tools/call", tool_call("nope")))
        assert (found.status_code, found.json()["error"]["code"]) == (200, -32602)

    async def test_a_quiet_stream_is_kept_alive(self) -> None:
        """Comments, because several clients cut a silent body."""
        message = modern(1, "tools/call", tool_call("slow"))
        async with (
            running_server(fast_settings(progress_interval_s=0.05)) as server,
            httpx.AsyncClient(base_url=server.http, timeout=WAIT_S, verify=False) as client,
            client.stream("POST", "/mcp", json=message, headers=mirrored(message)) as response,
        ):
            comments = 0
            async for line in response.aiter_lines():
                comments += line == ":"
                if comments == 2:
                    server.tools.gate.open.set()
                if line.startswith("data: "):
                    assert orjson.loads(line[6:])["result"]["structuredContent"] == {"done": True}
            assert comments >= 2

    async def test_a_client_that_goes_away_cancels_its_call(self, server: Running) -> None:
        """Disconnect is cancellation."""
        async with raw_peer(server.port) as peer:
            body = orjson.dumps(modern(1, "tools/call", tool_call("slow")))
            await peer.send(posted(body, b"tools/call", b"slow"))
            await server.tools.gate.arrived()
        await server.tools.gate.cancelled()

    async def test_subscriptions_stream_until_the_client_leaves(
        self, server: Running, client: httpx.AsyncClient
    ) -> None:
        """Acknowledgement, changes, and no state left behind."""
        server.server.surface.capabilities["tools"] = {"listChanged": True}
        message = modern(3, "subscriptions/listen", {"notifications": {"toolsListChanged": True}})
        async with client.stream("POST", "/mcp", json=message, headers=mirrored(message)) as response:
            lines = response.aiter_lines()
            methods = []
            async for line in lines:
                if line.startswith("data: "):
                    methods.append(orjson.loads(line[6:])["method"])
                    notify_list_changed(server.server, "tools")
                if len(methods) == 2:
                    break
        assert methods == ["notifications/subscriptions/acknowledged", "notifications/tools/list_changed"]


class TestInitializeEra:
    async def test_a_handshake_leaves_no_session(self, client: httpx.AsyncClient) -> None:
        """No Mcp-Session-Id, so any daemon may serve the next request."""
        found = await client.post("/mcp", json=handshake("2025-06-18"))
        assert found.json()["result"]["protocolVersion"] == "2025-06-18"
        assert "mcp-session-id" not in found.headers
        accepted = await client.post("/mcp", json={"jsonrpc": "2.0", "method": "notifications/initialized"})
        assert accepted.status_code == 202

    @pytest.mark.parametrize(
        ("version", "structured"), [("2025-11-25", True), ("2025-06-18", True), ("2025-03-26", False), (None, False)]
    )
    async def test_the_version_header_decides_the_shape(
        self, client: httpx.AsyncClient, version: str | None, structured: bool
    ) -> None:
        """Without the header the oldest that knew none; the whole answer is in the text then."""
        headers = {"mcp-protocol-version": version} if version else {}
        message = request(1, "tools/call", tool_call("echo", text="a"))
        result = (await client.post("/mcp", json=message, headers=headers)).json()["result"]
        assert ("structuredContent" in result) is structured
        assert "resultType" not in result

    async def test_a_handshake_under_a_modern_header_does_not_exist(self, client: httpx.AsyncClient) -> None:
        """404: that revision has no initialize."""
        found = await client.post("/mcp", json=handshake(), headers={"mcp-protocol-version": "2026-07-28"})
        assert (found.status_code, found.json()["error"]["code"]) == (404, -32601)

    async def test_other_version_headers_are_400(self, client: httpx.AsyncClient) -> None:
        """2025-06-18: an unsupported version is 400."""
        found = await client.post("/mcp", json=request(1, "ping"), headers={"mcp-protocol-version": "1999-01-01"})
        assert (found.status_code, found.json()["id"]) == (400, 1)

    async def test_the_official_client_works(self, server: Running) -> None:
        """`mcp` 1.30 over Streamable HTTP."""
        reports: list[float] = []

        async def on_progress(progress: float, total: float | None, message: str | None) -> None:
            reports.append(progress)

        async with (
            streamable_http_client(server.http + "/mcp") as (read, write, _),
            ClientSession(read, write, timedelta(seconds=WAIT_S)) as session,
        ):
            await session.initialize()
            assert len((await session.list_tools()).tools) == len(server.tools.registry)
            result = await session.call_tool("steps", {}, progress_callback=on_progress)
            assert result.structuredContent == {"steps": 3}
            assert reports == [1, 2, 3]


class TestRefusals:
    @pytest.mark.parametrize("method", ["GET", "DELETE", "PUT", "OPTIONS", "HEAD"])
    async def test_only_post_is_served(self, client: httpx.AsyncClient, method: str) -> None:
        """405 with Allow; Codex begins with a GET."""
        found = await client.request(method, "/mcp")
        assert (found.status_code, found.headers["allow"]) == (405, "POST")

    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ({"host": "evil.example"}, 421),
            ({"origin": "https://evil.example"}, 403),
            ({"origin": "null"}, 403),
            ({"content-type": "text/plain"}, 415),
        ],
    )
    async def test_foreign_pages_are_refused(
        self, client: httpx.AsyncClient, headers: dict[str, str], status: int
    ) -> None:
        """A page can send text/plain across sites without asking first."""
        body = orjson.dumps(request(1, "ping"))
        found = await client.post("/mcp", content=body, headers={"content-type": "application/json", **headers})
        assert found.status_code == status

    @pytest.mark.parametrize(
        ("body", "code"), [(b"", -32700), (b"{", -32700), (b"[]", -32600), (b"1", -32600), (b"\xff", -32700)]
    )
    async def test_unreadable_bodies_are_400(self, client: httpx.AsyncClient, body: bytes, code: int) -> None:
        """With an error that has no id."""
        found = await client.post("/mcp", content=body, headers={"content-type": "application/json"})
        assert (found.status_code, found.json()["error"]["code"]) == (400, code)
        assert "id" not in found.json()

    @pytest.mark.parametrize("chunked", [False, True])
    async def test_too_large_bodies_are_413(self, chunked: bool) -> None:
        """Announced or not."""

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(20):
                yield b"x" * 1_000

        async with (
            running_server(fast_settings(message_max_bytes=10_000)) as server,
            httpx.AsyncClient(base_url=server.http, timeout=WAIT_S, verify=False) as client,
        ):
            content: Any = pieces() if chunked else b"x" * 20_000
            found = await client.post("/mcp", content=content, headers={"content-type": "application/json"})
            assert found.status_code == 413
            assert (await client.post("/mcp", json=request(1, "ping"))).status_code == 200

    async def test_a_body_that_drips_is_not_waited_for(self) -> None:
        """408."""
        async with running_server(fast_settings(handshake_timeout_s=0.02)) as server, raw_peer(server.port) as peer:
            await peer.send(
                b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: 100\r\n\r\n{"
            )
            assert b" 408 " in await peer.head()

    async def test_the_rest_of_a_refused_body_is_not_waited_for(self) -> None:
        """The answer came at once; the connection stays for the rest, but not for ever."""
        async with running_server(fast_settings(handshake_timeout_s=0.1)) as server, raw_peer(server.port) as peer:
            await peer.send(
                b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: 100000000\r\n\r\n{"
            )
            assert b" 413 " in await peer.head()
            await peer.rest()

    async def test_the_authenticator_guards_posts(self) -> None:
        """401 with a challenge; the owner reaches the tools."""

        async def authenticate(headers: Any, query: Any) -> Admitted | AuthRefusal:
            return (
                Admitted(Owner("bob"))
                if headers.get("authorization") == "Bearer secret"
                else AuthRefusal("no", "Bearer x")
            )

        async with (
            running_server(authenticate=authenticate) as server,
            httpx.AsyncClient(base_url=server.http, timeout=WAIT_S, verify=False) as client,
        ):
            message = request(1, "tools/call", tool_call("echo", text="a"))
            found = await client.post("/mcp", json=message)
            assert (found.status_code, found.headers["www-authenticate"]) == (401, "Bearer x")
            found = await client.post("/mcp", json=message, headers={"authorization": "Bearer secret"})
            assert found.status_code == 200
            assert server.tools.contexts[0].owner == "bob"


class TestOtherRoutes:
    async def test_routes_of_the_caller_are_served_beside(self) -> None:
        """Behind the Host and Origin check, except where probes have to come through."""

        async def page(request: Request) -> PlainTextResponse:
            return PlainTextResponse(request.url.path)

        settings = fast_settings()
        routes = [Route("/", page), Route("/health", page), Route("/health/live", page), Route("/metrics", page)]
        app = build_asgi(new_server(Tools(), settings), routes)
        async with (
            open_server(app, settings) as running,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{running.port}", timeout=WAIT_S) as client,
        ):
            foreign = {"host": "10.0.0.7:8079"}
            assert (await client.get("/")).text == "/"
            assert (await client.get("/", headers=foreign)).status_code == 421
            assert (await client.get("/", headers={"origin": "https://evil.example"})).status_code == 403
            for path in ("/health", "/health/live", "/metrics"):
                assert (await client.get(path, headers=foreign)).text == path
            for path in ("/.well-known/oauth-protected-resource", "/elsewhere"):
                assert (await client.get(path)).status_code == 404


async def test_thirty_posts_at_once_all_get_answers(client: httpx.AsyncClient) -> None:
    """Each on a connection of its own."""

    async def one(number: int) -> None:
        found = await post(client, modern(number, "tools/call", tool_call("echo", text=str(number))))
        assert found.json()["result"]["structuredContent"] == {"text": str(number)}

    async with asyncio.TaskGroup() as group:
        for number in range(30):
            group.create_task(one(number))
