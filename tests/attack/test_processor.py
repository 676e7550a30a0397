"""Input that is expensive to parse: an owner gets at most its share of the processor while another is active."""

from __future__ import annotations

import asyncio
import contextlib

import httpx
import orjson
import pytest

from exai.mcp.core.jsonrpc import MAX_VALUES
from tests.support.attack import MALLORY_TOKEN, Target
from tests.support.mcp_server import modern, tool_call
from tests.support.raw_peer import RawPeer, raw_peer

CLIENTS = 8
DEAR = {
    "keys": {f"k{number}": number for number in range(MAX_VALUES - 100)},
    "too-many-keys": {f"k{number}": number for number in range(190_000)},
    "brackets": "{" * 2_000_000,
    "quotes": '"' * 1_000_000,
}


@pytest.mark.parametrize("rounds", [4, pytest.param(10, marks=pytest.mark.heavy)])
@pytest.mark.parametrize("kind", DEAR)
async def test_messages_that_are_dear_to_parse_leave_others_their_share(target: Target, kind: str, rounds: int) -> None:
    """Refused or not, they are read more slowly once they have cost enough."""
    message = orjson.dumps(modern(1, "tools/call", tool_call("no_such_tool", padding=DEAR[kind])))

    async def attacks(peer: RawPeer) -> None:
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            for _ in range(rounds):
                await peer.frame(message)
                await peer.received_message()

    async with target.watched() as seen, contextlib.AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(raw_peer(target.port)) for _ in range(CLIENTS)]
        for peer in peers:
            await peer.upgrade(MALLORY_TOKEN)
        await asyncio.gather(*map(attacks, peers))
    seen.check()


async def test_a_refused_call_with_large_arguments_is_reported_as_refused(target: Target) -> None:
    """The error repeats only a part of the input and does not imply that the call was executed."""
    huge = "x" * 600_000
    calls = [
        (
            "conversation_append",
            {"continuation_id": "c", "messages": [{"role": "user", "content": "a"}], "files": [huge]},
        ),
        ("conversation_append", {"continuation_id": "c", "messages": [{"role": huge, "content": "a"}]}),
        ("conversation_append", {"continuation_id": huge, "messages": [{"role": "user", "content": "a"}]}),
        ("conversation_import", {"text": orjson.dumps({"role": huge}).decode(), "format": "jsonl"}),
        ("conversation_get", {"continuation_id": huge}),
        ("file_get", {"file_id": huge}),
        (huge, {}),
    ]
    headers = {"authorization": f"Bearer {MALLORY_TOKEN}"}
    async with httpx.AsyncClient(headers=headers) as client:
        for number, (tool, arguments) in enumerate(calls):
            message = modern(number, "tools/call", {"name": tool, "arguments": arguments})
            mirrored = {"mcp-protocol-version": "2026-07-28", "mcp-method": "tools/call", "mcp-name": tool[:1]}
            if len(tool) < 100:
                mirrored["mcp-name"] = tool
            answer = await client.post(f"http://127.0.0.1:{target.port}/mcp", json=message, headers=mirrored)
            assert "carried out" not in answer.text.replace("not carried out", "")
            assert len(answer.content) < 10_000, (tool[:50], len(answer.content))
            found = answer.json()
            assert "error" in found or found["result"]["isError"]
