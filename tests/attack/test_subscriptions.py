"""The size of a subscription's address, and the number of an owner's subscriptions, are limited."""

from __future__ import annotations

import contextlib
from typing import Any

import orjson

from tests.support.attack import MALLORY_TOKEN, MB, Target
from tests.support.mcp_server import handshake, modern, request
from tests.support.raw_peer import RawPeer, raw_peer


async def asks(peer: RawPeer, message: dict[str, Any]) -> dict[str, Any]:
    await peer.frame(orjson.dumps(message))
    while True:
        found: dict[str, Any] = orjson.loads(await peer.received_message())
        if found.get("id") == message["id"] or "acknowledged" in found.get("method", ""):
            return found


async def test_addresses_of_megabytes_are_refused(target: Target) -> None:
    """Of 8 MB each, 1,000 were allowed on one connection."""
    async with target.watched() as seen, raw_peer(target.port) as peer:
        await peer.upgrade(MALLORY_TOKEN)
        await asks(peer, handshake())
        for number in range(1, 31):
            answer = await asks(
                peer, request(number, "resources/subscribe", {"uri": f"exai://{number}" + "x" * 7 * MB})
            )
            assert answer["error"]["code"] == -32602
        wanted = {"notifications": {"resourceSubscriptions": ["exai://" + "y" * 7 * MB]}}
        answer = await asks(peer, modern(100, "subscriptions/listen", wanted))
        assert answer["params"]["notifications"]["resourceSubscriptions"] == []
    seen.check()


async def test_an_owner_has_a_share_of_addresses_over_all_connections(target: Target) -> None:
    """400 connections held 16,000 each; every change of that owner stopped the loop."""
    granted, refused = 0, 0
    async with target.watched() as seen, contextlib.AsyncExitStack() as stack:
        for number in range(8):
            peer = await stack.enter_async_context(raw_peer(target.port))
            await peer.upgrade(MALLORY_TOKEN)
            for key in range(4):
                uris = [f"exai://conversations/{number}-{key}-{each}" + "x" * 100 for each in range(1_000)]
                wanted = {"notifications": {"resourceSubscriptions": uris}}
                answer = await asks(peer, modern(key, "subscriptions/listen", wanted))
                if "error" in answer:
                    refused += 1
                    assert answer["error"]["data"]["code"] == "overloaded"
                else:
                    granted += len(answer["params"]["notifications"]["resourceSubscriptions"])
    seen.check()
    assert granted == 16_000
    assert refused == 16
