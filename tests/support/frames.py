"""A WebSocket client that speaks plain frames of the stateless era, for tests where the other end dies."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import orjson
from websockets.asyncio.client import ClientConnection

from tests.support.mcp_server import modern, tool_call

ANSWER_LIMIT_S = 30.0
_ids = itertools.count(1)


async def call(socket: ClientConnection, tool: str, **arguments: Any) -> dict[str, Any]:
    """Call a tool that must succeed, with nothing else running on the socket; returns its structured content."""
    key = next(_ids)
    await socket.send(orjson.dumps(modern(key, "tools/call", tool_call(tool, **arguments))), text=True)
    async with asyncio.timeout(ANSWER_LIMIT_S):
        found = orjson.loads(await socket.recv())
    assert found["id"] == key
    result = found["result"]
    assert not result["isError"], result
    structured = result["structuredContent"]
    assert isinstance(structured, dict)
    return structured
