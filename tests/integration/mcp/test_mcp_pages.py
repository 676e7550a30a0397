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
from exai.web.monitoring import metrics_reader
from exai.web.page import page_routes
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

MAX_PAGE_BYTES = 300_000
"""Of everything that a browser loads for the page, unpacked."""

MAX_PACKED_BYTES = 120_000

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
    async with httpx.AsyncClient(verify=False) as opened:
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
    """Errors, too: otherwise the browser hides their status and text from the page."""
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


@pytest.fixture
async def page(client: httpx.AsyncClient) -> AsyncIterator[str]:
    """The address of a server with the page."""
    settings = fast_settings()
    app = build_asgi(new_server(Tools(), settings), page_routes("1.2.3", is_guarded=False))
    async with open_server(app, settings) as running:
        yield f"http://127.0.0.1:{running.port}"


def facts_of(text: str) -> Any:
    """The data that the page contains for its scripts."""
    (found,) = re.findall(r'<script type="application/json" id="facts">(.*?)</script>', text)
    return json.loads(found)


@pytest.mark.parametrize("is_guarded", [False, True])
async def test_the_page_says_how_to_connect(client: httpx.AsyncClient, is_guarded: bool) -> None:
    """In one line for Claude Code first; then HTTP, the WebSocket and the bridge. Without scripts too."""
    settings = fast_settings()
    app = build_asgi(new_server(Tools(), settings), page_routes("1.2.3", is_guarded=is_guarded))
    async with open_server(app, settings) as running:
        answer = await client.get(f"http://127.0.0.1:{running.port}/")
        foreign = await client.get(f"http://127.0.0.1:{running.port}/", headers={"host": "evil.example"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    where = f"127.0.0.1:{running.port}"
    facts = facts_of(answer.text)
    codes = [each["code"] for each in facts["snippets"]]
    assert codes == [html.unescape(each) for each in re.findall(r"<pre>(.*?)</pre>", answer.text)]
    assert codes[0].startswith(f"claude mcp add --transport http exai http://{where}/mcp")
    servers = [json.loads(each)["mcpServers"]["exai"] for each in codes[1:]]
    assert [each.get("url") for each in servers] == [f"http://{where}/mcp", f"ws://{where}/", None]
    bridge = build_parser().parse_args(servers[2]["args"])
    assert (bridge.command, bridge.url) == ("connect", f"ws://{where}/")
    assert (facts["guarded"], all("TOKEN" in each for each in codes)) == (is_guarded, is_guarded)
    assert foreign.status_code == 421


async def test_the_policy_of_the_page_allows_only_its_own_scripts(client: httpx.AsyncClient, page: str) -> None:
    """No inline script, no evaluation, no other site, and no text becomes HTML without being sanitized."""
    answer = await client.get(page)
    policy = dict(each.split(" ", 1) for each in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["img-src"] == "'self' data: blob:"
    assert policy["require-trusted-types-for"] == "'script'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    scripts = re.findall(r"<script([^>]*)>", answer.text)
    assert all("src=" in each or "application/json" in each for each in scripts)


async def test_the_page_escapes_the_name_it_was_asked_under(client: httpx.AsyncClient) -> None:
    transport = httpx.ASGITransport(Starlette(routes=page_routes("1", is_guarded=False)))
    name = "<img src=x></script><pre>{facts}"
    async with httpx.AsyncClient(transport=transport, base_url="http://exai") as inside:
        answer = await inside.get("/", headers={"host": name})
    assert "<img" not in answer.text
    assert name in facts_of(answer.text)["snippets"][0]["code"]


async def test_files_of_the_page_are_kept_by_the_browser_and_small_on_the_way(
    client: httpx.AsyncClient, page: str
) -> None:
    """Addresses change with the content; the page itself is asked for again, and is then not sent again."""
    first = await client.get(page)
    addresses = re.findall(r'(?:href|src)="(/page/[^"]+)"', first.text)
    assert len(addresses) > 10
    packed = plain = 0
    for address in set(addresses):
        answer = await client.get(page + address, headers={"accept-encoding": "gzip"})
        assert answer.status_code == 200, address
        assert "immutable" in answer.headers["cache-control"]
        assert "require-trusted-types-for" in answer.headers["content-security-policy"]
        packed += int(answer.headers["content-length"])
        plain += len(answer.content)
        bare = await client.get(page + address, headers={"accept-encoding": "identity"})
        assert (bare.content, "content-encoding" in bare.headers) == (answer.content, False)
    assert plain + len(first.content) < MAX_PAGE_BYTES
    assert packed < MAX_PACKED_BYTES
    again = await client.get(page, headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("path", ["/page/0123456789abcdef/app.js", "/page/x/../../page.py", "/page/x/..%2fpage.py"])
async def test_there_are_no_other_files(client: httpx.AsyncClient, page: str, path: str) -> None:
    answer = await client.get(page + path)
    assert answer.status_code == 404


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
    """A proxy on this machine and a page that rebinds its name act for other hosts."""
    settings = fast_settings(tokens={"alice": TOKEN})
    edge = Edge(settings, authenticator(settings))
    assert await edge.may_see_details(scope_of(client_address, headers)) is may
    unguarded = Edge(fast_settings(), authenticator(fast_settings()))
    assert await unguarded.may_see_details(scope_of("10.0.0.6", {}))


@pytest.mark.parametrize(("client_address", "may"), [("127.0.0.1", True), ("10.0.0.6", False)])
async def test_a_token_of_one_of_several_owners_shows_no_details(client_address: str, may: bool) -> None:
    """The operator asks from the daemon's machine."""
    settings = fast_settings(tokens={"alice": TOKEN, "bob": f"{TOKEN}-of-bob"})
    edge = Edge(settings, authenticator(settings))
    scope = scope_of(client_address, {"authorization": f"Bearer {TOKEN}"})
    assert await edge.may_see_details(scope) is may
    assert await edge.is_admitted(scope)


@pytest.mark.parametrize(("host", "may"), [("localhost", True), ("127.0.0.1:8079", True), ("evil.example", False)])
async def test_a_foreign_name_of_this_machine_sees_no_details_and_no_metrics(host: str, may: bool) -> None:
    """Without tokens a page could read them by a name of its own that resolves to this machine."""
    edge = Edge(fast_settings(), authenticator(fast_settings()))
    scope = scope_of("127.0.0.1", {"host": host})
    assert await edge.may_see_details(scope) is may
    reader = metrics_reader(None, is_guarded=False, is_admitted=edge.is_admitted, may_see_details=edge.may_see_details)
    assert await reader(scope) is may
