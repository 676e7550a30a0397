"""Requests sent without waiting for answers use bounded memory, and no other owner's time."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from tests.support.attack import MALLORY_TOKEN, MB, Target
from tests.support.raw_peer import RawPeer, raw_peer

SENT_BYTES = 16 * MB
LIST = b'{"jsonrpc":"2.0","id":1,"method":"tools/list"}'
STRANGERS = b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n"
OWNERS = (
    b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + MALLORY_TOKEN.encode() + b"\r\n"
    b"Content-Type: application/json\r\nContent-Length: " + str(len(LIST)).encode() + b"\r\n\r\n" + LIST
)


async def floods(peer: RawPeer, request: bytes, *, reads: bool) -> int:
    """Send the same request until the connection ends, or a limit is reached; return how many bytes were taken."""
    chunk = request * (65_536 // len(request))
    reading = asyncio.ensure_future(peer.rest()) if reads else None
    sent = 0
    with contextlib.suppress(OSError, TimeoutError):
        while sent < SENT_BYTES:
            async with asyncio.timeout(2):
                peer.writer.write(chunk)
                await peer.writer.drain()
            sent += len(chunk)
    if reading is not None:
        reading.cancel()
    return sent


@pytest.mark.parametrize("request_", [STRANGERS, OWNERS], ids=["stranger", "owner"])
async def test_pipelined_requests_of_one_connection_take_no_memory(target: Target, request_: bytes) -> None:
    """uvicorn makes a task's worth of objects for each request that it has parsed; and the peer comes again."""
    async with target.watched() as seen:
        sent = 0
        for _ in range(100):
            async with raw_peer(target.port) as peer:
                sent += await floods(peer, request_, reads=True)
            if sent >= SENT_BYTES:
                break
    seen.check()


async def test_connections_that_read_no_answer_take_no_memory(target: Target) -> None:
    async with target.watched() as seen, contextlib.AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(raw_peer(target.port, receive_buffer=4096)) for _ in range(20)]
        await asyncio.gather(*[floods(peer, OWNERS, reads=False) for peer in peers])
    seen.check()
