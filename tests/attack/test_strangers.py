"""Peers without a token: idle connections, heads of many fields, chunks of one byte."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from tests.support.attack import ALICE_TOKEN, MB, Target
from tests.support.raw_peer import raw_peer

ASK = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
HEAD = b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
FLOODS = {
    "fields": HEAD + b"a: b\r\n" * 16_000 + b"\r\n",
    "chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 40_000,
    "trailers": HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"a: b\r\n" * 40_000,
    "extensions": HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1;" + b"a=b;" * 60_000,
}


@pytest.fixture
def target_settings() -> dict[str, str]:
    """So few places that strangers can take all of them."""
    return {"EXAI_SERVER__MAX_CONNECTIONS": "100"}


async def test_idle_strangers_keep_no_owner_out(target: Target) -> None:
    """300 of them for 100 places, each with one answered request; an owner gets in every time."""
    async with target.watched() as seen, contextlib.AsyncExitStack() as stack:
        for _ in range(300):
            peer = await stack.enter_async_context(raw_peer(target.port))
            await peer.send(ASK)
            assert b" 200 " in await peer.head()
        for _ in range(20):
            async with raw_peer(target.port) as owner:
                await owner.upgrade(ALICE_TOKEN)
    seen.check()


@pytest.mark.parametrize("kind", FLOODS)
async def test_heads_and_chunks_of_strangers_cost_little(target: Target, kind: str) -> None:
    """Each connection is ended before it has cost much, and comes again."""
    data = FLOODS[kind]
    async with target.watched() as seen:
        for _ in range(5 * MB // len(data)):
            async with raw_peer(target.port) as peer:
                with contextlib.suppress(OSError, TimeoutError):
                    await peer.send(data)
                async with asyncio.timeout(5):
                    with contextlib.suppress(OSError):
                        await peer.reader.read(1)
    seen.check()
