"""Connections without an admitted request: they make room for others, end soon, and refusals are in the log."""

from __future__ import annotations

import asyncio
import contextlib

import httpx
import pytest
from structlog.testing import capture_logs

from exai.mcp.auth.tokens import authenticator
from exai.mcp.transport.pending import KEEP_ALIVE_S, LOG_INTERVAL_S, PendingConnections
from tests.support.mcp_server import WAIT_S, fast_settings, handshake, running_server
from tests.support.plain_socket import plain_socket
from tests.support.raw_peer import RawPeer, raw_peer

TOKEN = "a-token-of-alice-long-enough"
ASK = b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n"
GUARDED = {"tokens": {"alice": TOKEN}}


async def idles(peer: RawPeer) -> None:
    """Ask once, as a probe does, and stay."""
    await peer.send(ASK)
    assert b" 404 " in await peer.head()


async def test_an_owner_comes_in_while_strangers_hold_all_places() -> None:
    """The oldest idle one is dropped for the newcomer, again and again."""
    settings = fast_settings(max_connections=5, **GUARDED)
    async with (
        running_server(settings, authenticate=authenticator(settings)) as server,
        contextlib.AsyncExitStack() as stack,
    ):
        for _ in range(8):
            await idles(await stack.enter_async_context(raw_peer(server.port)))
        for _ in range(6):
            async with httpx.AsyncClient(headers={"Authorization": f"Bearer {TOKEN}"}) as client:
                answer = await client.post(f"{server.http}/mcp", json=handshake())
            assert answer.status_code == 200


async def test_a_connection_that_was_admitted_is_not_dropped_for_a_newcomer() -> None:
    """An admitted connection stays, also if it is idle, and the new one gets 503."""
    async with running_server(fast_settings(max_connections=2)) as server:
        async with plain_socket(server.url) as first, plain_socket(server.url):
            async with raw_peer(server.port) as third:
                await third.send(ASK)
                assert b" 503 " in await third.head()
            assert "result" in await first.ask(handshake())


async def test_refused_connections_are_logged_with_the_setting() -> None:
    with capture_logs() as lines:
        async with (
            running_server(fast_settings(max_connections=1)) as server,
            plain_socket(server.url),
            raw_peer(server.port) as second,
        ):
            await second.send(ASK)
            assert b" 503 " in await second.head()
    assert [line["setting"] for line in lines if line["event"] == "refused connections"] == [
        "EXAI_SERVER__MAX_CONNECTIONS"
    ]


async def test_strangers_of_one_address_are_limited_also_after_their_first_request() -> None:
    settings = fast_settings(max_handshakes_per_address=2, **GUARDED)
    async with (
        running_server(settings, authenticate=authenticator(settings)) as server,
        raw_peer(server.port) as first,
        raw_peer(server.port) as second,
        raw_peer(server.port) as third,
    ):
        await idles(first)
        await idles(second)
        await third.send(ASK)
        assert b" 503 " in await third.head()


async def test_a_stranger_is_kept_alive_for_seconds_and_an_owner_for_longer() -> None:
    """Below the 60 s of what may stand in front of the daemon would break owners' connections, but no others."""
    settings = fast_settings(**GUARDED)
    async with (
        running_server(settings, authenticate=authenticator(settings)) as server,
        raw_peer(server.port) as peer,
        httpx.AsyncClient(headers={"Authorization": f"Bearer {TOKEN}"}) as client,
    ):
        await idles(peer)
        assert (await client.post(f"{server.http}/mcp", json=handshake())).status_code == 200
        kept = sorted(each.timeout_keep_alive for each in server.running._state.connections)
        assert kept == [KEEP_ALIVE_S, 75]


async def test_nothing_is_kept_of_strangers_that_are_gone() -> None:
    settings = fast_settings(**GUARDED)
    async with running_server(settings, authenticate=authenticator(settings)) as server:
        async with raw_peer(server.port) as peer:
            await idles(peer)
            [protocol] = server.running._state.connections
            pending = protocol.pending  # type: ignore[union-attr]
            assert len(pending) == 1
        async with asyncio.timeout(WAIT_S):
            while len(pending):
                await asyncio.sleep(0)
        assert pending.of("127.0.0.1") == 0


def test_a_busy_stranger_is_passed_over_and_refusals_are_logged_now_and_then() -> None:
    now = [0.0]
    pending = PendingConnections(lambda: now[0])
    dropped: list[str] = []
    busy = pending.add("a", lambda: False)
    idle = pending.add("a", lambda: bool(dropped.append("idle") or True))
    newcomer = pending.add("b", lambda: bool(dropped.append("newcomer") or True))
    assert pending.drop_oldest(newcomer)
    assert dropped == ["idle"]
    assert not pending.drop_oldest(newcomer)
    assert pending.of("a") == 1
    idle.admit()
    busy.admit()
    assert pending.of("a") == 0
    with capture_logs() as lines:
        for _ in range(1000):
            pending.refused("SETTING", 1)
        now[0] += LOG_INTERVAL_S
        pending.refused("SETTING", 1)
    assert [line["refused"] for line in lines] == [1, 1000]


@pytest.mark.parametrize("reads", [1, 300])
async def test_one_waiting_request_is_answered_and_more_end_the_connection(reads: int) -> None:
    """No client of MCP pipelines; a proxy may send one request ahead."""
    async with running_server() as server, raw_peer(server.port) as peer:
        await peer.send(ASK * (1 + reads))
        received = b""
        if reads == 1:
            for _ in range(2):
                assert b" 404 " in await peer.head()
                await peer.reader.readexactly(len("Not Found"))
            await peer.send(ASK)
            assert b" 404 " in await peer.head()
        else:
            received = await peer.rest()
            assert received.count(b"HTTP/1.1") <= 2


@pytest.mark.parametrize("parts", ["headers", "chunks", "trailers"])
async def test_heads_and_chunks_beyond_what_clients_send_end_the_connection(parts: str) -> None:
    """The parser calls us for each of them, however small."""
    head = b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    if parts == "headers":
        sent, status = head + b"a: b\r\n" * 200 + b"\r\n", b" 431 "
    else:
        chunked = head + b"Transfer-Encoding: chunked\r\n\r\n"
        rest = b"1\r\n1\r\n" * 100_000 if parts == "chunks" else b"1\r\n1\r\n0\r\nx: " + b"y" * 200_000
        sent, status = chunked + rest, b" 400 "
    async with running_server() as server, raw_peer(server.port) as peer:
        with contextlib.suppress(OSError, TimeoutError):
            await peer.send(sent)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            assert status in await peer.head()
        assert await peer.rest() == b""
        async with raw_peer(server.port) as other:
            await idles(other)


async def test_the_body_of_an_answered_request_is_read_to_a_limit() -> None:
    """The answer preceded its end; a peer that continues to send is disconnected."""
    settings = fast_settings(message_max_bytes=65_536, **GUARDED)
    async with (
        running_server(settings, authenticate=authenticator(settings)) as server,
        raw_peer(server.port) as peer,
    ):
        head = b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        await peer.send(head + b"Content-Length: 1000000000\r\n\r\n")
        assert b" 401 " in await peer.head()
        with pytest.raises(OSError):
            for _ in range(1_000):
                await peer.send(b"x" * 65_536)
