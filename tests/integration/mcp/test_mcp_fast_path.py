"""The fast path of `POST /mcp`: which requests take it, the same answers as on the regular path, nothing left after."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from pydantic import SecretStr
from starlette.types import Receive, Scope, Send

from exai.mcp.auth.tokens import authenticator
from exai.mcp.identity import INVALID, Admitted, Authenticator, AuthRefusal
from exai.mcp.transport.asgi import McpApp
from exai.mcp.transport.listener import RunningServer, open_server
from exai.models import Owner
from exai.settings.load import ServerSettings
from tests.support.mcp_server import WAIT_S, Tools, fast_settings, modern, new_server, request, tool_call
from tests.support.raw_peer import RawPeer, raw_peer

TOKENS = {
    "ann": SecretStr("token-of-ann-0123456789abcdef0123456789"),
    "bob": SecretStr("token-of-bob-0123456789abcdef0123456789"),
}


class Counted(McpApp):
    """The application, with a count of its requests by ASGI."""

    asgi_calls = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asgi_calls += 1
        await super().__call__(scope, receive, send)


class Served:
    def __init__(self, app: Counted, tools: Tools, running: RunningServer) -> None:
        self.app, self.tools, self.running = app, tools, running

    def protocol(self) -> Any:
        """The protocol of the only connection."""
        [protocol] = self.running._state.connections
        return protocol


@asynccontextmanager
async def served(authenticate: Authenticator | None = None, **changes: Any) -> AsyncIterator[Served]:
    settings: ServerSettings = fast_settings(**changes)
    tools = Tools()
    server = new_server(tools, settings, authenticate=authenticate or authenticator(settings))
    app = Counted(server, (), ())
    async with open_server(app, settings) as running:
        yield Served(app, tools, running)


def posted(message: dict[str, Any], *fields: bytes, chunked: bool = False) -> bytes:
    """A request byte by byte; in chunks it takes the regular path."""
    body = orjson.dumps(message)
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(body)
    head = [b"POST /mcp HTTP/1.1", b"Host: localhost", b"Content-Type: application/json", *fields, framing, b"", b""]
    return b"\r\n".join(head) + (b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body)


async def answer(peer: RawPeer) -> bytes:
    head = await peer.head()
    size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    async with asyncio.timeout(WAIT_S):
        return head + await peer.reader.readexactly(size)


async def first_line(peer: RawPeer) -> bytes:
    """The status line of an answer; empty if the connection is closed without one."""
    async with asyncio.timeout(WAIT_S):
        return await peer.reader.readline()


def bearer(owner: str) -> bytes:
    return f"Authorization: Bearer {TOKENS[owner].get_secret_value()}".encode()


MIRRORED = (b"Mcp-Protocol-Version: 2026-07-28", b"Mcp-Method: tools/call", b"Mcp-Name: echo")
POSTS: dict[str, tuple[dict[str, Any], tuple[bytes, ...]]] = {
    "a call": (request(1, "tools/call", tool_call("echo", text="a")), ()),
    "a call of the stateless era": (modern(1, "tools/call", tool_call("echo", text="a")), MIRRORED),
    "a list": (request(1, "tools/list"), (b"MCP-Protocol-Version: 2025-06-18",)),
    "a refused call": (request(1, "tools/call", tool_call("refuse")), ()),
    "a tool that fails": (request(1, "tools/call", tool_call("busy")), ()),
    "no such tool": (request(1, "tools/call", tool_call("nothing")), ()),
    "wrong arguments": (request(1, "tools/call", tool_call("echo", text=[1])), ()),
    "a client without streams": (request(1, "tools/call", tool_call("echo", text="a")), (b"Accept: application/json",)),
    "an end of the connection": (request(1, "tools/call", tool_call("echo", text="a")), (b"Connection: close",)),
}


@pytest.mark.parametrize("name", POSTS)
async def test_both_ways_give_the_same_bytes(name: str) -> None:
    """A client cannot see which path its request takes."""
    message, fields = POSTS[name]
    async with served() as server:
        async with raw_peer(server.running.port) as peer:
            await peer.send(posted(message, *fields))
            short = await answer(peer)
        assert server.app.asgi_calls == 0
        assert not server.app.server._sessions
        async with raw_peer(server.running.port) as peer:
            await peer.send(posted(message, *fields, chunked=True))
            assert await answer(peer) == short
        assert server.app.asgi_calls == 1


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        (request(1, "initialize", {"protocolVersion": "2025-11-25"}), ()),
        (request(1, "ping"), ()),
        (request(1, "resources/subscribe", {"uri": "exai://a"}), ()),
        (modern(1, "subscriptions/listen", {"notifications": {}}), ()),
        (request(1, "tools/call", tool_call("steps"), progressToken=1), ()),
        (request(1, "tools/call", tool_call("echo", text="a" * 5_000)), ()),
        (request(1, "tools/call", tool_call("echo", text="a")), (b"Origin: http://localhost",)),
        (request(1, "tools/call", tool_call("echo", text="a")), (b"MCP-Protocol-Version: 1999-01-01",)),
        (request(1, "tools/call", tool_call("echo", text="a")), (b"Expect: 100-continue",)),
        ({"jsonrpc": "2.0", "method": "notifications/initialized"}, ()),
        ({"jsonrpc": "1.0"}, ()),
    ],
)
async def test_what_is_not_usual_takes_the_regular_path(message: dict[str, Any], fields: tuple[bytes, ...]) -> None:
    """What changes a session, streams, is large, or is refused by HTTP."""
    async with served() as server, raw_peer(server.running.port) as peer:
        await peer.send(posted(message, *fields))
        assert await peer.head()
        assert server.app.asgi_calls == 1


async def test_a_post_in_pieces_is_answered_as_well() -> None:
    """A head alone waits for its body on the regular path."""
    whole = posted(POSTS["a call"][0])
    async with served() as server, raw_peer(server.running.port) as peer:
        await peer.send(whole)
        expected = await answer(peer)
        for cut in (10, len(whole) - 1):
            await peer.send(whole[:cut])
            await asyncio.sleep(0)
            await peer.send(whole[cut:])
            assert await answer(peer) == expected


async def test_each_post_of_a_connection_is_its_own_owners() -> None:
    """The parsed head is used for identical headers only."""
    message = POSTS["a call"][0]
    async with served(tokens=TOKENS) as server, raw_peer(server.running.port) as peer:
        for owner in ("ann", "ann", "bob", "ann"):
            await peer.send(posted(message, bearer(owner)))
            assert (await answer(peer)).startswith(b"HTTP/1.1 200 ")
        assert [each.owner for each in server.tools.contexts] == ["ann", "ann", "bob", "ann"]
        assert server.app.asgi_calls == 0
        await peer.send(posted(message))
        assert (await answer(peer)).startswith(b"HTTP/1.1 401 ")
        assert len(server.tools.contexts) == 4


async def test_a_second_post_waits_for_the_first() -> None:
    """Answers have the order of the requests, on either path."""
    async with served() as server, raw_peer(server.running.port) as peer:
        await peer.send(posted(request(1, "tools/call", tool_call("slow"))) + posted(POSTS["a call"][0]))
        await server.tools.gate.arrived()
        server.tools.gate.open.set()
        assert b'"done"' in await answer(peer)
        assert b'"a"' in await answer(peer)


async def test_a_client_that_goes_away_cancels_its_call() -> None:
    """And its places are given back."""
    async with served() as server:
        async with raw_peer(server.running.port) as peer:
            await peer.send(posted(request(1, "tools/call", tool_call("slow"))))
            await server.tools.gate.arrived()
        await server.tools.gate.cancelled()
        async with asyncio.timeout(WAIT_S):
            while server.app.fast_posts.unwinding:
                await asyncio.wait(set(server.app.fast_posts.unwinding))
        assert server.app.asgi_calls == 0
        assert not server.app.server._sessions
        assert server.app.server.quotas.of(next(iter(server.app.server.quotas._known))).is_idle


async def test_a_call_that_takes_long_goes_on_as_a_stream() -> None:
    """A silent connection is cut by clients; afterwards it takes the next post."""
    async with served(progress_interval_s=0.05) as server, raw_peer(server.running.port) as peer:
        await peer.send(posted(request(1, "tools/call", tool_call("slow"))))
        assert b"text/event-stream" in await peer.head()
        server.tools.gate.open.set()
        async with asyncio.timeout(WAIT_S):
            assert b'"done"' in await peer.reader.readuntil(b"0\r\n\r\n")
        await peer.send(posted(POSTS["a call"][0]))
        assert b'"a"' in await answer(peer)
        assert server.app.asgi_calls == 0


def call(text: str, *fields: bytes) -> bytes:
    return posted(request(1, "tools/call", tool_call("echo", text=text)), *fields)


async def test_repeated_heads_with_bodies_of_any_length_get_the_answers_of_first_ones() -> None:
    """A head that repeats the last one is not parsed again, for any Content-Length."""
    texts = ["a" * size for size in (1, 2, 30, 800, 3, 3_500, 1)]
    async with served() as server, raw_peer(server.running.port) as peer:
        for text in texts:
            await peer.send(call(text))
            repeated = await answer(peer)
            async with raw_peer(server.running.port) as fresh:
                await fresh.send(call(text))
                assert await answer(fresh) == repeated
        await peer.send(call("a" * 5_000))
        assert b"a" * 5_000 in await answer(peer)
        assert server.app.asgi_calls == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"POST /mcp", b"POST /nothing"),
        (b"POST /mcp", b"PUT /mcp"),
        (b"HTTP/1.1", b"HTTP/1.0"),
        (b"Host: localhost", b"Host: example.com"),
        (b"application/json", b"text/plain"),
        (b"Content-Length: ", b"Content-Length: +"),
        (b"Content-Length: ", b"Content-Length: 9"),
        (b"Content-Length: ", b"Content-Length: x"),
        (b"Content-Length: ", b"Content-Length: 0"),
        (b"Content-Length: ", b"Transfer-Encoding: chunked\r\nContent-Length: "),
        (b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"),
        (b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
        (b"\r\n\r\n", b"\r\n bad\r\n\r\n"),
        (b"\r\n\r\n", b"\n\n"),
    ],
)
async def test_a_head_that_differs_from_the_last_one_is_parsed(old: bytes, new: bytes) -> None:
    """It gets the status that it gets on a connection of its own."""
    changed = call("b").replace(old, new, 1)
    async with served(handshake_timeout_s=0.2) as server:
        async with raw_peer(server.running.port) as fresh:
            await fresh.send(changed)
            expected = await first_line(fresh)
        async with raw_peer(server.running.port) as peer:
            for _ in range(2):
                await peer.send(call("a"))
                await answer(peer)
            await peer.send(changed)
            assert await first_line(peer) == expected


async def test_a_repeated_head_in_pieces_or_with_a_second_request_is_parsed() -> None:
    """Only input that is one whole request bypasses the parser, between two requests."""
    whole = call("a")
    async with served() as server, raw_peer(server.running.port) as peer:
        await peer.send(whole)
        expected = await answer(peer)
        for cut in (1, len(whole) - 1, whole.index(b"\r\n\r\n") + 2):
            await peer.send(whole[:cut])
            await asyncio.sleep(0)
            await peer.send(whole[cut:])
            assert await answer(peer) == expected
        await peer.send(whole * 2)
        assert [await answer(peer), await answer(peer)] == [expected, expected]
        await peer.send(whole + whole[:9])
        assert await answer(peer) == expected
        await peer.send(whole[9:])
        assert await answer(peer) == expected


async def test_a_whole_post_inside_an_incomplete_head_is_a_part_of_that_head() -> None:
    """Bytes that look like the last request do not begin one while a head is incomplete."""
    async with served() as server, raw_peer(server.running.port) as peer:
        await peer.send(call("a"))
        await answer(peer)
        await peer.send(b"GET /nothing HTTP/1.1\r\nHost: localhost\r\nX-Part: ")
        await asyncio.sleep(0)
        await peer.send(call("a"))
        # It has two Host fields then.
        assert (await peer.head()).startswith(b"HTTP/1.1 421 ")
        assert len(server.tools.contexts) == 1


async def test_a_second_head_in_pieces_keeps_its_fields_while_the_first_answer_becomes_a_stream() -> None:
    """The start of a stream does not change the parser's state for the next request."""
    async with served(progress_interval_s=0.05) as server, raw_peer(server.running.port) as peer:
        second = call("b")
        cut = second.index(b"Content-Length")
        await peer.send(posted(request(1, "tools/call", tool_call("slow"))) + second[:cut])
        assert b"text/event-stream" in await peer.head()
        await peer.send(second[cut:])
        server.tools.gate.open.set()
        async with asyncio.timeout(WAIT_S):
            assert b'"done"' in await peer.reader.readuntil(b"0\r\n\r\n")
        assert b'"b"' in await answer(peer)


class Expired:
    """Admits every caller with a token that is expired by the time its request is processed."""

    asked = 0

    def at_once(self, headers: Mapping[str, str], query: Mapping[str, str]) -> Admitted | None:
        return Admitted(Owner("alice"), time.time())

    async def __call__(self, headers: Mapping[str, str], query: Mapping[str, str]) -> Admitted | AuthRefusal:
        self.asked += 1
        return AuthRefusal("the token has expired", INVALID)


async def test_a_token_that_has_expired_since_its_headers_were_checked_is_verified_again() -> None:
    """The headers of a connection are checked once, but their token expires meanwhile."""
    authenticate = Expired()
    async with served(authenticate) as server, raw_peer(server.running.port) as peer:
        for _ in range(2):
            await peer.send(call("a"))
            assert (await answer(peer)).startswith(b"HTTP/1.1 401 ")
        assert (authenticate.asked, server.app.asgi_calls) == (2, 2)
        assert not server.tools.contexts


def in_two(data: bytes) -> tuple[bytes, bytes]:
    head, end, body = data.partition(b"\r\n\r\n")
    return head + end, body


async def two_sends(peer: RawPeer, server: Served, first: bytes, second: bytes) -> None:
    """Send the second part once the server has read the first one, without waiting for its acknowledgement."""
    peer.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    await peer.send(first)
    protocol = server.protocol()
    async with asyncio.timeout(WAIT_S):
        while not (protocol._held or protocol._is_message_open):
            await asyncio.sleep(0)
    await peer.send(second)


async def test_a_head_and_a_body_sent_separately_take_the_fast_path_from_the_second_time_on() -> None:
    """httpx and others write them separately; the first head is parsed before its body has arrived."""
    head, body = in_two(call("a"))
    async with served() as server, raw_peer(server.running.port) as peer, asyncio.timeout(WAIT_S):
        regular = None
        # On a busy machine a body may be late, and then takes the regular path.
        while regular != server.app.asgi_calls:
            regular = server.app.asgi_calls
            await two_sends(peer, server, head, body)
            assert b'"a"' in await answer(peer)
        assert regular


async def test_a_held_head_whose_body_is_late_or_in_pieces_takes_the_regular_path() -> None:
    """Its body then has the time of any other body."""
    head, body = in_two(call("a"))
    async with served() as server, raw_peer(server.running.port) as peer:
        await peer.send(head + body)
        expected = await answer(peer)
        await peer.send(head)
        async with asyncio.timeout(WAIT_S):
            while server.app.asgi_calls < 1:
                await asyncio.sleep(0)
        await peer.send(body)
        assert await answer(peer) == expected
        await two_sends(peer, server, head, body[:5])
        async with asyncio.timeout(WAIT_S):
            while not server.protocol()._is_message_open:
                await asyncio.sleep(0)
        await peer.send(body[5:])
        assert await answer(peer) == expected
        assert server.app.asgi_calls == 2
        await two_sends(peer, server, head, body + head + body)
        assert [await answer(peer), await answer(peer)] == [expected, expected]


async def test_a_connection_lost_with_a_held_head_leaves_nothing() -> None:
    """The timer of the hold belongs to the connection."""
    head, body = in_two(call("a"))
    async with served() as server:
        async with raw_peer(server.running.port) as peer:
            await peer.send(head + body)
            await answer(peer)
            protocol = server.protocol()
            await peer.send(head)
            async with asyncio.timeout(WAIT_S):
                while not (protocol._held or protocol._is_message_open):
                    await asyncio.sleep(0)
        async with asyncio.timeout(WAIT_S):
            while server.running.connections:
                await asyncio.sleep(0)
        assert (protocol._held, protocol._holding) == (b"", None)
