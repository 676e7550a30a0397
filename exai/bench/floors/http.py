"""Minimal servers for comparison: `orjson` on `websockets`, or on uvicorn for HTTP.

Invariant: they do nothing that any server of these calls on the same library could leave out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
from starlette.types import Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState
from websockets.asyncio.server import ServerConnection, serve

HOST = "127.0.0.1"


@asynccontextmanager
async def open_echo() -> AsyncIterator[int]:
    """Answer every message with the `text` of its arguments, on a free port."""
    async with serve(_echo, HOST, 0, compression=None) as server:
        yield next(iter(server.sockets)).getsockname()[1]


@asynccontextmanager
async def open_answer() -> AsyncIterator[int]:
    """Answer every POST with the `text` of its arguments, on a free port, by unmodified uvicorn."""
    config = Config(
        _answer,
        interface="asgi3",
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
    )
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: HttpToolsProtocol(config, state, {}), HOST, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for connection in list(state.connections):
            connection.transport.abort()


async def _echo(connection: ServerConnection) -> None:
    async for data in connection:
        await connection.send(_reply(data), text=True)


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001
    body = b""
    while True:
        event = await receive()
        body += event.get("body", b"")
        if not event.get("more_body", False):
            break
    reply = _reply(body)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(reply)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": reply})


def _reply(data: bytes | str) -> bytes:
    message = orjson.loads(data)
    result = {"content": [{"type": "text", "text": message["params"]["arguments"]["text"]}], "isError": False}
    return orjson.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result})
