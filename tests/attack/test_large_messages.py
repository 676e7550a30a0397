"""The cost of a read depends on its answer, not on the size of the stored messages."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import Any

import orjson
import pytest

from tests.support.attack import MALLORY_TOKEN, MB, Target
from tests.support.mcp_server import handshake, request
from tests.support.raw_peer import RawPeer, raw_peer

READERS = 6


class Caller:
    """Tools, called over one connection, one after the other."""

    def __init__(self, peer: RawPeer) -> None:
        self._peer = peer
        self._numbers = itertools.count(1)

    async def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        await self._peer.frame(orjson.dumps(message))
        while True:
            found: dict[str, Any] = orjson.loads(await self._peer.received_message())
            if found.get("id") == message["id"]:
                return found

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        asked = request(next(self._numbers), "tools/call", {"name": tool, "arguments": arguments})
        result = (await self.answer(asked))["result"]
        assert not result["isError"], result["content"]
        structured: dict[str, Any] = result["structuredContent"]
        return structured


async def opened(target: Target, stack: contextlib.AsyncExitStack) -> Caller:
    peer = await stack.enter_async_context(raw_peer(target.port))
    await peer.upgrade(MALLORY_TOKEN)
    caller = Caller(peer)
    await caller.answer(handshake())
    return caller


async def stored(target: Target, messages: int) -> str:
    """A conversation of messages as large as they may be."""
    async with contextlib.AsyncExitStack() as stack:
        writer = await opened(target, stack)
        name: str | None = None
        for number in range(messages):
            message = {"role": "user", "content": f"{number} " + "x" * 4 * MB}
            appended = await writer.call("conversation_append", continuation_id=name, messages=[message])
            name = appended["continuation_id"]
        assert name is not None
        return name


@pytest.mark.parametrize(("messages", "rounds"), [(12, 1), pytest.param(50, 3, marks=pytest.mark.heavy)])
async def test_pages_of_large_messages_are_read_as_far_as_they_are_answered(
    target: Target, messages: int, rounds: int
) -> None:
    """50 messages of 4 MB took 910 MB of memory for an answer of 100 bytes, and six at once 1.7 GB."""
    name = await stored(target, messages)
    async with contextlib.AsyncExitStack() as stack:
        callers = [await opened(target, stack) for _ in range(READERS)]

        async def reads(caller: Caller, number: int) -> None:
            for _ in range(rounds):
                newest = await caller.call("conversation_get", continuation_id=name, limit=1)
                assert [each["seq"] for each in newest["messages"]] == [messages]
                await caller.call("conversation_get", continuation_id=name, limit=200)
                await caller.call("conversation_get", continuation_id=name, limit=200, max_chars=400_000)
                await caller.call("conversation_get", continuation_id=name, before_seq=number + 2, limit=200)
                offset = 3 * MB + number
                part = await caller.call("conversation_get", continuation_id=name, seq=number + 1, char_offset=offset)
                (message,) = part["messages"]
                assert message["content"] == "x" * len(message["content"])
                assert message["next_offset"] == offset + len(message["content"])
                text = await caller.call(
                    "conversation_export", continuation_id=name, after_seq=number, char_offset=offset, format="jsonl"
                )
                assert text["next_char_offset"] == offset + len(text["text"])

        async with target.watched() as seen:
            await asyncio.gather(*(reads(caller, number) for number, caller in enumerate(callers)))
    seen.check()
    # Each reads 50 MB or more in a round; all that is held at once is a few pages.
    assert seen.peak_bytes <= seen.start_bytes + 100 * MB, seen.summary()
