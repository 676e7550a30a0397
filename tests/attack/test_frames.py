"""WebSockets with tiny frames, and messages that never end."""

from __future__ import annotations

import asyncio
import contextlib
import os

import orjson
import pytest

from tests.support.attack import MALLORY_TOKEN, MB, Target
from tests.support.mcp_server import handshake, modern, tool_call
from tests.support.raw_peer import RawPeer, raw_peer

MASK = bytes(4)
PONG = bytes([0x8A, 0x80]) + MASK
PING = bytes([0x89, 0x80]) + MASK
EMPTY_FRAGMENT = bytes([0x00, 0x80]) + MASK
ONE_BYTE_FRAGMENT = bytes([0x00, 0x81]) + MASK + b" "
NOTICE = b'{"jsonrpc":"2.0","method":"notifications/nothing"}'
NOTIFICATION = bytes([0x81, 0x80 | len(NOTICE)]) + MASK + NOTICE
BEGUN = bytes([0x01, 0x80]) + MASK
SENT_BYTES = 11 * MB
PART_BYTES = 8 * MB - 1_000


async def sends(peer: RawPeer, data: bytes) -> int:
    """Send until everything is sent or the daemon takes no more; return how much it took."""
    sent = 0
    with contextlib.suppress(OSError, TimeoutError):
        while sent < len(data):
            async with asyncio.timeout(3):
                peer.writer.write(data[sent : sent + 65_536])
                await peer.writer.drain()
            sent += 65_536
    return sent


@pytest.mark.parametrize(
    ("first", "frame"),
    [
        (b"", PONG),
        (b"", PING),
        (BEGUN, EMPTY_FRAGMENT),
        (BEGUN, ONE_BYTE_FRAGMENT),
        (b"", NOTIFICATION),
    ],
    ids=["pongs", "pings", "empty", "one-byte", "notifications"],
)
async def test_tiny_frames_end_their_connection(target: Target, first: bytes, frame: bytes) -> None:
    """Each costs as much as a request; the daemon reads no more than a part, and the peer may not come back at once."""
    async with target.watched() as seen, raw_peer(target.port) as peer:
        await peer.upgrade(MALLORY_TOKEN)
        reading = asyncio.ensure_future(peer.rest())
        taken = await sends(peer, first + frame * (SENT_BYTES // len(frame)))
        async with asyncio.timeout(10):
            await asyncio.wait({reading})
        async with raw_peer(target.port) as again:
            with pytest.raises(AssertionError):
                await again.upgrade(MALLORY_TOKEN)
    seen.check()
    assert taken < SENT_BYTES


@pytest.mark.parametrize("count", [40, pytest.param(120, marks=pytest.mark.heavy)])
@pytest.mark.parametrize("door", ["websocket", "http"])
async def test_messages_that_do_not_end_are_counted_as_they_arrive(target: Target, door: str, count: int) -> None:
    """The owner's limit of bytes holds for what has arrived, and closing gives all of it back."""
    part = os.urandom(1024).hex().encode() * (PART_BYTES // 2048)
    async with target.watched() as seen, contextlib.AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(raw_peer(target.port)) for _ in range(count)]
        for peer in peers:
            if door == "websocket":
                with contextlib.suppress(AssertionError):
                    await peer.upgrade(MALLORY_TOKEN)
                    head = bytes([0x81, 0xFF]) + (len(part) + 1_000).to_bytes(8, "big") + MASK
                    await sends(peer, head + part)
            else:
                head = f"POST /mcp HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {MALLORY_TOKEN}\r\n"
                head += f"Content-Type: application/json\r\nContent-Length: {len(part) + 1_000}\r\n\r\n"
                await sends(peer, head.encode() + part)
    seen.check()


async def test_refused_calls_keep_nothing(target: Target) -> None:
    """An exception holds its frames, and they the arguments; 7 MB each."""
    async with target.watched() as seen, raw_peer(target.port) as peer:
        await peer.upgrade(MALLORY_TOKEN)
        await peer.frame(orjson.dumps(handshake()))
        await peer.received_message()
        padding = "x" * (7 * MB)
        kinds = [
            ("tools/call", tool_call("no_such_tool", text=padding)),
            ("prompts/get", {"name": "nothing", "arguments": {"text": padding}}),
            ("resources/read", {"uri": "exai://nothing", "padding": padding}),
            ("completion/complete", {"ref": padding, "argument": {}}),
        ]
        for number in range(40):
            method, params = kinds[number % len(kinds)]
            await peer.frame(orjson.dumps(modern(number, method, params)))
            assert "error" in orjson.loads(await peer.received_message())
    seen.check()
