"""Misbehaving peers: each costs bounded time and memory, and does not affect others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import orjson
import pytest
from websockets.asyncio.client import connect

from exai.mcp.transport.asgi import build_asgi
from exai.mcp.transport.listener import open_server
from exai.monitoring.metrics import MetricsRecorder
from tests.support.mcp_server import (
    WAIT_S,
    Recording,
    Running,
    Tools,
    fast_settings,
    modern,
    new_server,
    request,
    running_server,
    tool_call,
)
from tests.support.raw_peer import RawPeer, raw_peer
from tests.support.waiting import wait_until

UPGRADE = (
    b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)

_BIG_CALL = orjson.dumps(modern(1, "tools/call", tool_call("big", size=15_000_000)))
BIG_POST = (
    b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"MCP-Protocol-Version: 2026-07-28\r\nMcp-Method: tools/call\r\nMcp-Name: big\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_BIG_CALL), _BIG_CALL)
)


@pytest.fixture
async def server() -> AsyncIterator[Running]:
    settings = fast_settings(handshake_timeout_s=0.2, send_timeout_s=0.2, ping_interval_s=60.0)
    async with running_server(settings, recorder=Recording()) as running:
        yield running


async def works(server: Running) -> None:
    """A bystander is served as if nothing were the matter."""
    async with asyncio.timeout(WAIT_S), connect(server.url, compression=None) as socket:
        await socket.send(orjson.dumps(modern(1, "tools/call", tool_call("echo", text="a"))), text=True)
        assert orjson.loads(await socket.recv())["result"]["structuredContent"] == {"text": "a"}


class TestHeads:
    @pytest.mark.parametrize("start", [b"", b"G", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: "])
    async def test_a_head_that_does_not_arrive_is_not_waited_for(self, server: Running, start: bytes) -> None:
        """Slow loris: closed at the handshake timeout with any part received."""
        async with raw_peer(server.port) as peer:
            await peer.send(start)
            assert await peer.rest() == b""

    async def test_a_head_that_drips_is_not_waited_for(self, server: Running) -> None:
        """The timer runs from the first byte, not from the last."""
        async with raw_peer(server.port) as peer:
            with pytest.raises(ConnectionError):
                for _ in range(1_000):
                    await peer.send(b"X")
                    async with asyncio.timeout(WAIT_S):
                        if await _ended(peer, 0.02):
                            raise ConnectionResetError

    async def test_the_second_head_on_a_connection_is_timed_too(self, server: Running) -> None:
        """Keep-alive must not be a way around the timer."""
        async with raw_peer(server.port) as peer:
            await peer.send(b"GET /none HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b" 404 " in await peer.head()
            await peer.send(b"GET /none HT")
            assert b"HTTP/1.1" not in await peer.rest()

    async def test_endless_heads_are_cut(self, server: Running) -> None:
        """431, after 64 KiB."""
        async with raw_peer(server.port) as peer:
            await peer.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X-Y: z\r\n" * 20_000)
            assert b" 431 " in await peer.head()

    async def test_an_upgrade_with_absurdly_many_headers_ends(self, server: Running) -> None:
        """It is not answered and must not stay."""
        async with raw_peer(server.port) as peer:
            await peer.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X-Y: z\r\n" * 300 + UPGRADE)
            assert b" 101 " not in await peer.rest()

    @pytest.mark.parametrize(
        "head",
        [
            b"NONSENSE\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
            b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            b"GET / HTTP/1.1\r\n" + UPGRADE,
            b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n" + UPGRADE,
        ],
    )
    async def test_broken_heads_are_refused(self, server: Running, head: bytes) -> None:
        """No host, two hosts, TLS on the plain port, an incomplete upgrade: all 4xx."""
        async with raw_peer(server.port) as peer:
            await peer.send(head)
            status = (await peer.head()).split()[1]
            assert status.startswith(b"4")
        await works(server)


async def _ended(peer: RawPeer, wait_s: float) -> bool:
    try:
        async with asyncio.timeout(wait_s):
            return await peer.reader.read(1) == b""
    except TimeoutError:
        return False


class TestFrames:
    async def test_declared_sizes_are_refused_before_the_bytes_come(self, server: Running) -> None:
        """100 MB announced: 1009, and nothing was kept for it."""
        async with raw_peer(server.port) as peer:
            await peer.upgrade()
            await peer.frame(b"x" * 1000, declared=100_000_000)
            assert await peer.close_code() == 1009
        await works(server)

    async def test_the_reason_reaches_a_peer_that_is_still_sending(self, server: Running) -> None:
        """Closing at once would reset the socket, and the close frame with it."""
        async with raw_peer(server.port) as peer:
            await peer.upgrade()
            await peer.frame(b"x" * 3_000_000, declared=20_000_000)
            assert await peer.close_code() == 1009

    @pytest.mark.parametrize(
        ("opcode", "data", "code"), [(3, b"", 1002), (0, b"x", 1002), (9, b"x" * 126, 1002), (1, b"\xff", 1007)]
    )
    async def test_broken_frames_close_with_their_code(
        self, server: Running, opcode: int, data: bytes, code: int
    ) -> None:
        """RFC 6455, 7.4.1."""
        async with raw_peer(server.port) as peer:
            await peer.upgrade()
            await peer.frame(data, opcode=opcode)
            assert await peer.close_code() == code
        await works(server)

    async def test_a_whole_text_inside_a_fragmented_one_closes_with_its_code(self, server: Running) -> None:
        """RFC 6455, 5.4: the shortest way in must know of a message that is not whole yet."""
        async with raw_peer(server.port) as peer:
            await peer.upgrade()
            await peer.frame(b"{", fin=False)
            await peer.frame(b"", opcode=9)
            assert (await peer.received_frame())[0] == 10
            await peer.frame(b"{}")
            assert await peer.close_code() == 1002

    async def test_eight_mebibytes_of_brackets_do_not_affect_others(self, server: Running) -> None:
        """Refused before they become objects."""
        async with raw_peer(server.port) as peer:
            await peer.upgrade()
            data = b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":[' + b"[]," * 2_700_000 + b"[]]}}"
            await peer.frame(data)
            _, answer = await peer.received_frame()
            assert orjson.loads(answer)["error"]["code"] == -32600
            await works(server)

    async def test_endless_fragments_are_kept_as_their_bytes_alone(self, server: Running) -> None:
        """Nothing limits how many there are, and each of them as an object would be fifty times its size."""
        data = orjson.dumps(modern(1, "tools/call", tool_call("echo", text="a")))
        async with raw_peer(server.port) as peer:
            await peer.upgrade()
            await peer.frame(data[:1], fin=False)
            for _ in range(2_000):
                await peer.frame(b"", opcode=0, fin=False)
            await peer.frame(b"", opcode=9)
            assert (await peer.received_frame())[0] == 10
            (connection,) = server.running._state.connections
            assert len(connection.frames) <= 1
            await peer.frame(data[1:-1], opcode=0, fin=False)
            await peer.frame(data[-1:], opcode=0)
            _, answer = await peer.received_frame()
            assert orjson.loads(answer)["result"]["structuredContent"] == {"text": "a"}

    async def test_an_idle_peer_is_left_alone(self, server: Running) -> None:
        """Saying nothing is no fault, and others are served meanwhile."""
        async with raw_peer(server.port) as peer:
            await peer.upgrade()
            await works(server)
            await peer.frame(orjson.dumps(request(0, "ping")))
            assert orjson.loads((await peer.received_frame())[1])["result"] == {}


class TestSlowReaders:
    async def test_a_peer_that_never_reads_is_dropped(self, server: Running) -> None:
        """After one bounded send; its calls are stopped and others do not notice."""
        async with raw_peer(server.port, receive_buffer=4096) as peer:
            await peer.upgrade()
            await peer.frame(orjson.dumps(modern("slow", "tools/call", tool_call("slow"))))
            await server.tools.gate.arrived()
            for key in range(30):
                await peer.frame(orjson.dumps(modern(key, "tools/call", tool_call("big", size=1_000_000))))
            await server.tools.gate.cancelled()
            await works(server)
        recorder = server.server.recorder
        assert isinstance(recorder, Recording)
        assert ("mcp_slow_peers_total", {"transport": "websocket"}) in recorder.counts

    async def test_what_waits_to_be_sent_is_reported(self) -> None:
        """By the bytes in the queues of all peers; nothing of a peer that is gone."""
        recorder, settings = MetricsRecorder(), fast_settings()
        asgi = build_asgi(new_server(Tools(), settings, recorder=recorder))
        recorder.watch(asgi.report)

        def reported(name: str) -> float:
            recorder.render()
            return recorder.value(name)

        async with open_server(asgi, settings) as running:
            assert (reported("ws_connections"), reported("ws_send_queue_bytes")) == (0, 0)
            async with raw_peer(running.port, receive_buffer=4096) as peer:
                await peer.upgrade()
                for key in range(8):
                    await peer.frame(orjson.dumps(modern(key, "tools/call", tool_call("big", size=1_000_000))))
                await wait_until(lambda: reported("ws_send_queue_bytes") > 1_000_000)
                assert reported("ws_connections") == 1
            await wait_until(lambda: (reported("ws_connections"), reported("ws_send_queue_bytes")) == (0, 0))

    async def test_progress_is_dropped_before_answers(self) -> None:
        """A slow reader that recovers has every answer and gaps in its progress at worst."""
        settings = fast_settings(send_timeout_s=5.0)
        async with running_server(settings) as server, raw_peer(server.port, receive_buffer=65_536) as peer:
            await peer.upgrade()
            for key in range(30):
                call = modern(key, "tools/call", tool_call("big", size=900_000), progressToken=key)
                await peer.frame(orjson.dumps(call))
            answered = set()
            while len(answered) < 30:
                message = orjson.loads((await peer.received_frame())[1])
                answered |= {message["id"]} if "id" in message else set()
            assert answered == set(range(30))

    async def test_a_peer_that_breaks_the_rules_while_everything_waits_for_it_is_let_go(self) -> None:
        """The reading loop waits for room, the writer for the socket, and then the connection is failed."""
        settings = fast_settings(reply_max_bytes=20_000_000)
        async with running_server(settings) as server, raw_peer(server.port, receive_buffer=65_536) as peer:
            await peer.upgrade()
            (session,), (connection,) = server.server._sessions, server.running._state.connections
            for key in range(3):
                await peer.frame(orjson.dumps(modern(key, "tools/call", tool_call("big", size=6_000_000))))
            await wait_until(lambda: session.outbox._is_reader_sending and not session.outbox.has_room)
            await peer.frame(orjson.dumps(request(4, "ping")))
            await wait_until(lambda: connection.take.__self__._is_waiting)
            await peer.frame(b"", opcode=3)
            await wait_until(lambda: connection.close_sent)
            await peer.rest()
            await wait_until(lambda: not server.server._sessions)

    async def test_pings_of_a_peer_that_does_not_read_pile_up_no_pongs(self) -> None:
        """RFC 6455, 5.5.3: the most recent one may stand for all that were not answered."""
        settings = fast_settings(reply_max_bytes=20_000_000)
        async with running_server(settings) as server, raw_peer(server.port, receive_buffer=65_536) as peer:
            await peer.upgrade()
            await peer.frame(orjson.dumps(modern(1, "tools/call", tool_call("big", size=12_000_000))))
            (connection,) = server.running._state.connections
            await wait_until(lambda: connection.transport.get_write_buffer_size() > 65_536)
            for number in range(2_000):
                await peer.frame(b"%0125d" % number, opcode=9)
            unsent_bytes = connection.transport.get_write_buffer_size()
            await peer.frame(orjson.dumps(modern(2, "tools/call", tool_call("slow"))))
            await server.tools.gate.arrived()
            assert connection.transport.get_write_buffer_size() <= unsent_bytes
            while await peer.received_frame() != (10, b"%0125d" % 1_999):
                pass

    async def test_a_peer_that_misses_its_pongs_is_dropped(self) -> None:
        """It may be gone for good behind a silent network."""
        settings = fast_settings(ping_interval_s=0.05, ping_timeout_s=0.05)
        async with running_server(settings) as server, raw_peer(server.port) as peer:
            await peer.upgrade()
            await peer.frame(orjson.dumps(modern(1, "tools/call", tool_call("slow"))))
            assert await peer.close_code() == 1011
            await server.tools.gate.cancelled()

    async def test_a_peer_that_reads_neither_answer_nor_ping_is_dropped(self) -> None:
        """Nothing further is sent, so no send can time out; only the missing pong shows it."""
        settings = fast_settings(
            send_timeout_s=0.3, ping_interval_s=0.2, ping_timeout_s=0.2, reply_max_bytes=20_000_000
        )
        async with running_server(settings) as server, raw_peer(server.port, receive_buffer=4096) as peer:
            await peer.upgrade()
            await peer.frame(orjson.dumps(modern(1, "tools/call", tool_call("big", size=15_000_000))))
            await peer.frame(orjson.dumps(modern(2, "tools/call", tool_call("slow"))))
            await server.tools.gate.arrived()
            await server.tools.gate.cancelled()

    async def test_a_peer_that_vanishes_has_its_calls_stopped(self, server: Running) -> None:
        """The loss of the connection cancels its running calls."""
        async with raw_peer(server.port) as peer:
            await peer.upgrade()
            for key in range(3):
                await peer.frame(orjson.dumps(modern(key, "tools/call", tool_call("slow"))))
            await server.tools.gate.arrived(3)
        await server.tools.gate.cancelled(3)
        await works(server)

    async def test_a_peer_that_closes_and_does_not_read_is_dropped(self) -> None:
        """The close waits for buffered data, and no later send can time out."""
        settings = fast_settings(send_timeout_s=0.1, ping_interval_s=60.0, reply_max_bytes=20_000_000)
        async with running_server(settings) as server, raw_peer(server.port, receive_buffer=4096) as peer:
            await peer.upgrade()
            await peer.frame(orjson.dumps(modern(1, "tools/call", tool_call("big", size=15_000_000))))
            await peer.frame(orjson.dumps(modern(2, "tools/call", tool_call("slow"))))
            await server.tools.gate.arrived()
            await peer.frame(b"\x03\xe8", opcode=8)
            await server.tools.gate.cancelled()
            await wait_until(lambda: not server.running.connections)

    @pytest.mark.parametrize(
        "sent",
        [2 * BIG_POST, BIG_POST.replace(b"\r\n", b"\r\nConnection: close\r\n", 1), BIG_POST + b"NONSENSE\r\n\r\n"],
    )
    async def test_an_http_client_that_does_not_read_is_dropped(self, sent: bytes) -> None:
        """The answer is written, but its bytes are not accepted, before another answer and at the end."""
        settings = fast_settings(send_timeout_s=0.1, reply_max_bytes=20_000_000)
        async with running_server(settings) as server, raw_peer(server.port, receive_buffer=4096) as peer:
            await peer.send(sent)
            await peer.head()
            await wait_until(lambda: not server.running.connections)
