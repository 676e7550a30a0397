"""Browsers, older clients and inexact addresses: the page, preflights, HTTP/1.0, extra slashes."""

from __future__ import annotations

import html
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson
import pytest
from starlette.applications import Starlette

from exai.cli.arguments import build_parser
from exai.mcp.admission import Edge
from exai.mcp.auth.tokens import authenticator
from exai.mcp.transport.asgi import build_asgi
from exai.mcp.transport.listener import open_server
from exai.web.page import page_route
from tests.support.mcp_server import (
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
from tests.support.plain_socket import plain_socket
from tests.support.raw_peer import raw_peer

ORIGIN = "https://app.example.com"
TOKEN = "a-token-of-alice-long-enough"
PREFLIGHT = {
    "origin": ORIGIN,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,mcp-protocol-version,mcp-param-x",
}


@pytest.fixture
async def server() -> AsyncIterator[Running]:
    async with running_server(fast_settings(allowed_origins=(ORIGIN,))) as running:
        yield running


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient() as opened:
        yield opened


@pytest.mark.parametrize("path", ["/mcp/", "//mcp", "//mcp//", "/mcp"])
async def test_further_slashes_lead_to_the_same_endpoint(server: Running, path: str) -> None:
    """People type addresses, and programs join them."""
    body = orjson.dumps(handshake())
    async with raw_peer(server.port) as peer:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        await peer.send(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert b" 200 " in await peer.head()


@pytest.mark.parametrize("path", ["ws/", "/ws", "mcp/", "/"])
async def test_further_slashes_lead_to_the_same_websocket(server: Running, path: str) -> None:
    async with plain_socket(server.url + path) as socket:
        assert "result" in await socket.ask(handshake())


@pytest.mark.parametrize("path", ["/mcp", "/mcp/", "/health", "/nowhere"])
async def test_an_allowed_page_gets_its_preflight_answered(
    server: Running, client: httpx.AsyncClient, path: str
) -> None:
    """Without it a browser sends no POST with JSON or with a token."""
    answer = await client.options(server.http + path, headers=PREFLIGHT)
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "POST" in answer.headers["access-control-allow-methods"]
    allowed = answer.headers["access-control-allow-headers"].split(",")
    assert {"authorization", "content-type", "mcp-protocol-version", "mcp-param-x"} <= set(allowed)
    assert answer.headers["vary"] == "Origin"


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("POST", "/mcp", orjson.dumps(handshake()), 200),
        ("POST", "/mcp", b"{", 400),
        ("POST", "/mcp", orjson.dumps(modern(1, "nothing")), 400),
        ("GET", "/mcp", b"", 405),
        ("GET", "/nowhere", b"", 404),
    ],
)
async def test_every_answer_can_be_read_by_an_allowed_page(
    server: Running, client: httpx.AsyncClient, method: str, path: str, content: bytes, status: int
) -> None:
    """Errors too: else the page learns nothing but that something failed."""
    headers = {"origin": ORIGIN, "content-type": "application/json"}
    answer = await client.request(method, server.http + path, content=content, headers=headers)
    assert answer.status_code == status
    assert answer.headers["access-control-allow-origin"] == ORIGIN


async def test_a_refused_token_can_be_read_by_an_allowed_page(client: httpx.AsyncClient) -> None:
    settings = fast_settings(allowed_origins=(ORIGIN,), tokens={"alice": TOKEN})
    async with running_server(settings, authenticate=authenticator(settings)) as server:
        answer = await client.post(f"{server.http}/mcp", json=handshake(), headers={"origin": ORIGIN})
        assert answer.status_code == 401
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert "www-authenticate" in answer.headers["access-control-expose-headers"]
        assert (await client.options(f"{server.http}/mcp", headers=PREFLIGHT)).status_code == 204


async def test_other_pages_get_neither_preflight_nor_headers(server: Running, client: httpx.AsyncClient) -> None:
    """Nor does a client that is no page."""
    for headers in ({**PREFLIGHT, "origin": "https://evil.example"}, {**PREFLIGHT, "origin": "null"}):
        answer = await client.options(f"{server.http}/mcp", headers=headers)
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers
    plain = await client.post(f"{server.http}/mcp", json=handshake())
    assert "access-control-allow-origin" not in plain.headers


async def test_an_answer_that_streams_has_no_chunks_for_http_1_0(server: Running) -> None:
    """RFC 9112, 6.1: a client of HTTP/1.0 would take the sizes of chunks for content."""
    body = orjson.dumps(request(1, "tools/call", tool_call("steps"), progressToken="t"))
    head = b"POST /mcp HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += b"MCP-Protocol-Version: 2025-11-25\r\nAccept: application/json, text/event-stream\r\n"
    async with raw_peer(server.port) as peer:
        await peer.send(head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answered = (await peer.head()).lower()
        assert b"text/event-stream" in answered
        assert b"transfer-encoding" not in answered
        assert b"connection: close" in answered
        events = [line for line in (await peer.rest()).split(b"\n") if line]
        assert all(line.startswith((b"event:", b"data:", b":")) for line in events)
        found = [json.loads(line[5:]) for line in events if line.startswith(b"data:")]
        assert [each.get("id") for each in found] == [None, None, None, 1]


async def test_an_answer_in_one_piece_has_its_length_for_http_1_0(server: Running) -> None:
    body = orjson.dumps(handshake())
    async with raw_peer(server.port) as peer:
        head = b"POST /mcp HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
        await peer.send(head + str(len(body)).encode() + b"\r\n\r\n" + body)
        answered = (await peer.head()).lower()
        assert b"content-length: " in answered
        assert json.loads(await peer.rest())["id"] == 0


@pytest.mark.parametrize("is_guarded", [False, True])
async def test_the_page_says_how_to_connect(client: httpx.AsyncClient, is_guarded: bool) -> None:
    """HTTP first, in one line for Claude Code; then the WebSocket, then the bridge. Nothing is loaded or run for it."""
    settings = fast_settings()
    app = build_asgi(new_server(Tools(), settings), [page_route("1.2.3", is_guarded=is_guarded)])
    async with open_server(app, settings) as running:
        answer = await client.get(f"http://127.0.0.1:{running.port}/")
        foreign = await client.get(f"http://127.0.0.1:{running.port}/", headers={"host": "evil.example"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    where = f"127.0.0.1:{running.port}"
    command = f"claude mcp add --transport http exai http://{where}/mcp"
    places = [answer.text.index(text) for text in (command, f"ws://{where}/", '"connect"')]
    snippets = [json.loads(html.unescape(each)) for each in re.findall(r"<pre>(\{.*?)</pre>", answer.text)]
    bridge = build_parser().parse_args(snippets[1]["mcpServers"]["exai"]["args"])
    assert (bridge.command, bridge.url) == ("connect", f"ws://{where}/")
    assert places == sorted(places)
    assert ("Bearer TOKEN" in answer.text) == is_guarded
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "<script" not in answer.text
    assert foreign.status_code == 421


async def test_the_page_escapes_the_name_it_was_asked_under(client: httpx.AsyncClient) -> None:
    transport = httpx.ASGITransport(Starlette(routes=[page_route("1", is_guarded=False)]))
    async with httpx.AsyncClient(transport=transport, base_url="http://exai") as inside:
        answer = await inside.get("/", headers={"host": "<img src=x>"})
    assert "<img" not in answer.text


def scope_of(client: str, headers: dict[str, str], server: str = "10.0.0.5") -> dict[str, Any]:
    raw = [(name.encode(), value.encode()) for name, value in {"host": "localhost", **headers}.items()]
    return {"client": (client, 5), "server": (server, 8079), "headers": raw, "query_string": b""}


@pytest.mark.parametrize(
    ("client_address", "headers", "may"),
    [
        ("127.0.0.1", {}, True),
        ("::1", {}, True),
        ("::ffff:127.0.0.1", {}, True),
        ("10.0.0.5", {}, True),
        ("10.0.0.6", {}, False),
        ("127.0.0.1", {"x-forwarded-for": "1.2.3.4"}, False),
        ("127.0.0.1", {"x-forwarded-proto": "https"}, False),
        ("127.0.0.1", {"cf-connecting-ip": "1.2.3.4"}, False),
        ("127.0.0.1", {"tailscale-user-login": "a@b"}, False),
        ("127.0.0.1", {"host": "evil.example"}, False),
        ("10.0.0.6", {"authorization": f"Bearer {TOKEN}"}, True),
        ("10.0.0.6", {"authorization": "Bearer another-token-of-some-length"}, False),
    ],
)
async def test_details_are_for_tokens_and_this_machine(client_address: str, headers: dict[str, str], may: bool) -> None:
    """A proxy on this machine, and a page that rebinds its name, speak for others."""
    settings = fast_settings(tokens={"alice": TOKEN})
    edge = Edge(settings, authenticator(settings))
    assert await edge.may_see_details(scope_of(client_address, headers)) is may
    unguarded = Edge(fast_settings(), authenticator(fast_settings()))
    assert await unguarded.may_see_details(scope_of("10.0.0.6", {}))
