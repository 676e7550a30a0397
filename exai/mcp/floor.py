"""The least a WebSocket server can do with a call: `websockets` and `orjson`, no protocol, for comparison only.

The invariant is that it does nothing that any server of these calls could leave out.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
from websockets.asyncio.server import ServerConnection, serve

HOST = "127.0.0.1"


@asynccontextmanager
async def open_echo() -> AsyncIterator[int]:
    """Answer every message with the `text` of its arguments, on a port of its own."""
    async with serve(_echo, HOST, 0, compression=None) as server:
        yield next(iter(server.sockets)).getsockname()[1]


async def _echo(connection: ServerConnection) -> None:
    async for data in connection:
        message = orjson.loads(data)
        text = message["params"]["arguments"]["text"]
        result = {"content": [{"type": "text", "text": text}], "isError": False}
        reply = orjson.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result})
        await connection.send(reply, text=True)
