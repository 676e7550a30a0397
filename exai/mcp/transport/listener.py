"""The one port: binds it, serves an application on it with uvicorn, and closes it in order.

Invariant: the port of a `RunningServer` accepts connections. `serve_until` returns only when no
connection is left: not ready, stop accepting, finish calls, answer the rest, close, flush.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from exai.errors import StartupError
from exai.mcp.server import GOING_AWAY
from exai.mcp.transport.asgi import McpApp
from exai.mcp.transport.descriptors import connections_possible
from exai.mcp.transport.http.protocol import http_protocol
from exai.mcp.transport.library_parts import Config, ServerState
from exai.mcp.transport.websocket_protocol import websocket_protocol
from exai.settings.load import ServerSettings

BACKLOG = 512
KEEP_ALIVE_S = 75
"""Lifetime of an idle HTTP connection; longer than the usual 60 s of proxies."""

LAST_REQUESTS_TIMEOUT_S = 1.0
"""Time for requests outside MCP (pages, metrics) to end after the sessions have ended."""

CUT_REQUESTS_TIMEOUT_S = 0.5
"""Time for such requests to notice that their connection was closed, before they are cancelled."""

PORT_VARIABLE = "EXAI_SERVER__PORT"
_MAX_PROCESSES_SEARCHED = 5_000

log = structlog.get_logger(__name__)


class RunningServer:
    """A server that accepts connections."""

    def __init__(self, app: McpApp, settings: ServerSettings, sockets: Sequence[socket.socket]) -> None:
        self._app = app
        self._settings = settings.model_copy(update={"max_connections": connections_possible(settings.max_connections)})
        self._sockets = list(sockets)
        self._config = _config(app, settings)
        self._state = ServerState()
        self._listeners: list[asyncio.Server] = []
        self._is_closed = False
        self.port: int = self._sockets[0].getsockname()[1]

    @property
    def connections(self) -> int:
        """Return the number of connected peers over all transports."""
        return len(self._state.connections)

    async def start(self) -> None:
        """Start to accept connections."""
        self._config.load()
        loop = asyncio.get_running_loop()
        protocol = http_protocol(self._settings, self._app.fast_posts)
        for each in self._sockets:
            listener = await loop.create_server(
                lambda: protocol(self._config, self._state, {}), sock=each, backlog=BACKLOG
            )
            self._listeners.append(listener)

    async def serve_until(
        self, stop: asyncio.Event, *, hurry: asyncio.Event | None = None, code: int = GOING_AWAY
    ) -> None:
        """Serve until `stop` is set, then close; `hurry` ends the grace. `code` is the close code of WebSockets."""
        await stop.wait()
        await self.close(code=code, hurry=hurry)

    async def close(
        self, *, code: int = GOING_AWAY, hurry: asyncio.Event | None = None, grace_s: float | None = None
    ) -> None:
        """Drain and close. Further calls do nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        for listener in self._listeners:
            listener.close()
        for each in self._sockets:
            each.close()
        state = self._state
        # Closes idle HTTP connections; those of WebSockets ignore it and are closed by `drain`.
        for connection in list(state.connections):
            connection.shutdown()
        await self._app.server.drain(self._settings.shutdown_grace_s if grace_s is None else grace_s, code, hurry)
        await self._wait_for_requests(0.0 if hurry is not None and hurry.is_set() else LAST_REQUESTS_TIMEOUT_S)
        for connection in list(state.connections):
            connection.transport.abort()
        # An aborted request ends by itself if it notices the disconnect; cancellation is the last resort.
        await self._wait_for_requests(CUT_REQUESTS_TIMEOUT_S)
        for task in state.tasks:
            task.cancel()

    async def _wait_for_requests(self, limit_s: float) -> None:
        if self._state.tasks:
            await asyncio.wait(self._state.tasks, timeout=limit_s)


@asynccontextmanager
async def open_server(
    app: McpApp, settings: ServerSettings, *, sockets: Sequence[socket.socket] | None = None
) -> AsyncIterator[RunningServer]:
    """Serve `app` inside the context; given `sockets` must be bound. Raises `StartupError` if the port is taken."""
    bound = bind_sockets(settings) if sockets is None else sockets
    running = RunningServer(app, settings, bound)
    await running.start()
    try:
        yield running
    finally:
        await running.close(grace_s=0.0)


def bind_sockets(settings: ServerSettings) -> list[socket.socket]:
    """Bind the port on every address of the host, so that workers can share it. Raises `StartupError`."""
    where = f"{settings.host}:{settings.port}"
    try:
        found = socket.getaddrinfo(
            settings.host or None, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise StartupError(
            where, f"not an address ({error})", "Set EXAI_SERVER__HOST to one of this machine"
        ) from error
    bound: list[socket.socket] = []
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            port = bound[0].getsockname()[1] if bound else settings.port
            bound.append(_bind(family, (address[0], port, *address[2:])))
    except OSError as error:
        for each in bound:
            each.close()
        raise _not_bound(error, where, settings.port) from error
    return bound


def _bind(family: int, address: tuple[object, ...]) -> socket.socket:
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.bind(address)
        opened.listen(BACKLOG)
        opened.setblocking(False)
    except OSError:
        opened.close()
        raise
    return opened


def _not_bound(error: OSError, where: str, port: int) -> StartupError:
    if error.errno == errno.EADDRINUSE:
        holder = port_holder(port)
        by = f" by {holder}" if holder else ""
        cure = f"Stop that process, or set {PORT_VARIABLE} to another port"
        return StartupError(f"port {port}", f"already in use{by}", cure)
    if error.errno == errno.EACCES:
        return StartupError(f"port {port}", "not permitted", f"Set {PORT_VARIABLE} to 1024 or more")
    return StartupError(where, f"cannot be bound ({error.strerror})", "Set EXAI_SERVER__HOST to one of this machine")


def port_holder(port: int) -> str | None:
    """Return "name (pid n)" of the process that listens on a port, if the kernel shows it: on Linux, same user only."""
    inodes = _listening_inodes(port)
    if not inodes:
        return None
    with contextlib.suppress(OSError):
        for process in sorted(Path("/proc").glob("[0-9]*"))[:_MAX_PROCESSES_SEARCHED]:
            if _holds(process, inodes):
                return f"{program_name(process)} (pid {process.name})"
    return None


def program_name(process: Path) -> str:
    """Return the name of a process's program; for a Python program its module, such as `exai serve`."""
    words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
    if "-m" in words[:-2]:
        return " ".join(word for word in words[words.index("-m") + 1 :][:2] if word)
    return (process / "comm").read_text().strip()


def _listening_inodes(port: int) -> set[str]:
    found: set[str] = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        with contextlib.suppress(OSError):
            for line in table.read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    found.add(f"socket:[{fields[9]}]")
    return found


def _holds(process: Path, inodes: set[str]) -> bool:
    with contextlib.suppress(OSError):
        for link in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                if os.readlink(link) in inodes:  # noqa: PTH115 - the target is a name, not a path
                    return True
    return False


def _config(app: McpApp, settings: ServerSettings) -> Config:
    return Config(
        app,
        interface="asgi3",
        ws=websocket_protocol(settings),
        ws_max_size=settings.message_max_bytes,
        ws_ping_interval=settings.ping_interval_s,
        ws_ping_timeout=settings.ping_timeout_s,
        ws_per_message_deflate=False,
        lifespan="off",
        log_config=None,
        log_level="error",  # Below that uvicorn logs URLs with their query, which may contain a token.
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
    )
