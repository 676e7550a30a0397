"""The transports of one server as one ASGI application, beside the caller's own routes.

Invariant: every path but the open ones is behind the Host and Origin check, so that a page which rebinds its name to
this machine reads nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute
from starlette.types import Receive, Scope, Send

from exai.mcp.admission import Rejection, header_map
from exai.mcp.server import McpServer
from exai.mcp.transport.cors import answer_preflight, is_preflight, with_cors
from exai.mcp.transport.http.fast_path import FastPosts
from exai.mcp.transport.http.streamable import StreamableHttp
from exai.mcp.transport.websocket import WebSocketTransport, reject

WEBSOCKET_PATHS = frozenset({"/", "/ws", "/mcp"})
HTTP_PATH = "/mcp"
_PLAIN_PATHS = WEBSOCKET_PATHS
"""Common paths that need no normalization."""

OPEN_PATHS = ("/health", "/metrics")
"""Probes and scrapers use host names of their platform, so these paths skip the Host check."""


class McpApp:
    """The application that `build_asgi` returns; `server` is public so that the caller can drain it."""

    def __init__(self, server: McpServer, routes: Sequence[BaseRoute], open_paths: Sequence[str]) -> None:
        self.server = server
        self._websocket = WebSocketTransport(server)
        self._http = StreamableHttp(server)
        self.fast_posts = FastPosts(server, self._http)
        self._others = Starlette(routes=list(routes))
        self._open_paths = tuple(open_paths)

    def report(self) -> None:
        """Set the gauges of the transports."""
        self._websocket.report()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection or request."""
        path = scope["path"]
        if path not in _PLAIN_PATHS:
            path = scope["path"] = "/" + "/".join(part for part in path.split("/") if part)
        if scope["type"] == "websocket":
            if path in WEBSOCKET_PATHS:
                await self._websocket(scope, receive, send)
            else:
                await receive()
                await reject(send, Rejection(404, f"the WebSocket is at {' or '.join(sorted(WEBSOCKET_PATHS))}"))
            return
        if any(name == b"origin" for name, _ in scope["headers"]):
            headers = header_map(scope["headers"])
            if self.server.edge.rejection(headers) is None:
                send = with_cors(send, headers["origin"])
                if is_preflight(scope["method"], headers):
                    await answer_preflight(headers, send)
                    return
        if path == HTTP_PATH:
            await self._http(scope, receive, send)
        else:
            await self._other(scope, receive, send)

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not scope["path"].startswith(self._open_paths):
            rejection = self.server.edge.rejection(header_map(scope["headers"]))
            if rejection is not None:
                await PlainTextResponse(rejection.text, rejection.status)(scope, receive, send)
                return
        await self._others(scope, receive, send)


def build_asgi(
    server: McpServer, extra_routes: Sequence[BaseRoute] = (), *, open_paths: Sequence[str] = OPEN_PATHS
) -> McpApp:
    """Return one application with the WebSocket, `POST /mcp` and the caller's routes.

    The authenticator protects the MCP transports only; routes that show data must call `server.edge.admit`.
    """
    return McpApp(server, extra_routes, open_paths)
