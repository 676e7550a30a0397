"""A proxy from HTTP to the WebSocket, so that the conformance suite, which supports only HTTP, tests the WebSocket.

Each POST opens one socket: the message is sent as a frame, and every received frame becomes an event. The headers are
checked as by the HTTP transport, because the suite tests that; everything else is done by the WebSocket transport.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from websockets.asyncio.client import ClientConnection, connect

from exai.mcp.admission import Edge, header_map
from exai.mcp.core.jsonrpc import Request as RpcRequest
from exai.mcp.core.jsonrpc import RpcError, encode_error, parse
from exai.mcp.identity import admit_local_owner
from exai.mcp.transport.http.headers import legacy_version
from tests.support.mcp_server import fast_settings

STATUS = {-32601: 404, -32602: 400, -32600: 400, -32700: 400, -32020: 400, -32021: 400, -32022: 400}


def shim(url: str) -> Starlette:
    """Return an application that forwards every POST to the WebSocket at `url`."""
    edge = Edge(fast_settings(), admit_local_owner)

    async def post(request: Request) -> Response:
        headers = header_map(request.scope["headers"])
        rejection = edge.rejection(headers)
        if rejection is not None:
            return Response(rejection.text, rejection.status)
        body = await request.body()
        message = parse(body)
        try:
            version = legacy_version(headers, message)
        except RpcError as error:
            key = message.id if isinstance(message, RpcRequest) else None
            return _json(encode_error(key, error), error.code)
        socket = await connect(url, subprotocols=["mcp"], compression=None)
        if version is not None:
            await _shake_hands(socket, version)
        await socket.send(body, text=True)
        if not isinstance(message, RpcRequest):
            await socket.close()
            return Response(status_code=202)
        first = await socket.recv(decode=False)
        decoded = orjson.loads(first)
        if "id" in decoded:
            await socket.close()
            return _json(first, decoded.get("error", {}).get("code"))
        return StreamingResponse(_events(socket, first), media_type="text/event-stream")

    return Starlette(routes=[Route("/mcp", post, methods=["POST"])])


async def _shake_hands(socket: ClientConnection, version: str) -> None:
    params = {"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "shim", "version": "0"}}
    await socket.send(
        orjson.dumps({"jsonrpc": "2.0", "id": "shim", "method": "initialize", "params": params}), text=True
    )
    await socket.recv()
    await socket.send(b'{"jsonrpc":"2.0","method":"notifications/initialized"}', text=True)


async def _events(socket: ClientConnection, first: bytes) -> AsyncIterator[bytes]:
    frame = first
    try:
        while True:
            yield b"event: message\ndata: " + frame + b"\n\n"
            if "id" in orjson.loads(frame):
                return
            frame = await socket.recv(decode=False)
    finally:
        await socket.close()


def _json(body: bytes, code: int | None) -> Response:
    return Response(body, STATUS.get(code or 0, 200), media_type="application/json")
