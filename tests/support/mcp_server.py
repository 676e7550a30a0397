"""A small MCP server for tests of the protocol and its doors: tools that wait at a gate, report, fail or crash."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from exai.errors import DatabaseBusy, InvalidArgument
from exai.mcp.core.protocol import ListKind
from exai.mcp.core.versions import META_CAPABILITIES, META_VERSION, MODERN
from exai.mcp.features.tools import Arguments, CallContext, ToolRegistry, ToolSpec
from exai.mcp.server import McpServer
from exai.mcp.transport.asgi import build_asgi
from exai.mcp.transport.listener import RunningServer, open_server
from exai.resilience import bounded
from exai.settings.load import ServerSettings
from tests.support.outputs import Fixed

ENVELOPE: dict[str, Any] = {META_VERSION: MODERN, META_CAPABILITIES: {}}

WAIT_S = 5.0


class Nothing(Arguments):
    """A tool without arguments."""


class EchoArguments(Arguments):
    text: str = Field(description="what to say back")
    times: int = Field(default=1, ge=1, le=10)
    mood: Literal["calm", "loud"] = "calm"


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")
    role: Literal["user", "assistant"]
    content: str


class NestedArguments(Arguments):
    parts: list[Part]
    note: str | None = None


class SizeArguments(Arguments):
    size: int


class Gate:
    """Tools wait here until a test opens it; `entered` counts them, `cancelled` those that were cancelled."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.arrivals = asyncio.Semaphore(0)
        self.cancellations = asyncio.Semaphore(0)

    async def arrived(self, calls: int = 1) -> None:
        async with asyncio.timeout(WAIT_S):
            for _ in range(calls):
                await self.arrivals.acquire()

    async def cancelled(self, calls: int = 1) -> None:
        async with asyncio.timeout(WAIT_S):
            for _ in range(calls):
                await self.cancellations.acquire()


class Tools:
    """The fixture's tools and their records."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.contexts: list[CallContext] = []
        self.registry = ToolRegistry(
            (
                ToolSpec("echo", "Echo", "Returns its argument.", EchoArguments, Fixed, self._echo, read_only=True),
                ToolSpec("slow", "Slow", "Waits at the gate.", Nothing, Fixed, self._slow),
                ToolSpec(
                    "hasty", "Hasty", "Waits at the gate, not for long.", Nothing, Fixed, self._hasty, timeout_s=0.01
                ),
                ToolSpec("steps", "Steps", "Reports three steps.", Nothing, Fixed, self._steps),
                ToolSpec("busy", "Busy", "Fails as a dependency does.", Nothing, Fixed, self._busy),
                ToolSpec("refuse", "Refuse", "Refuses its arguments.", Nothing, Fixed, self._refuse),
                ToolSpec("crash", "Crash", "Has a defect.", Nothing, Fixed, self._crash),
                ToolSpec("unsound", "Unsound", "Returns what JSON cannot hold.", Nothing, Fixed, self._unsound),
                ToolSpec("vanish", "Vanish", "Is cancelled from inside.", Nothing, Fixed, self._vanish),
                ToolSpec("big", "Big", "Returns a text of the size asked for.", SizeArguments, Fixed, self._big),
                ToolSpec("nested", "Nested", "Takes nested arguments.", NestedArguments, Fixed, self._nested),
            )
        )

    async def _echo(self, arguments: EchoArguments, context: CallContext) -> Fixed:
        self.contexts.append(context)
        text = arguments.text * arguments.times
        return Fixed.of({"text": text}, text)

    async def _slow(self, arguments: Nothing, context: CallContext) -> Fixed:
        self.contexts.append(context)
        self.gate.arrivals.release()
        try:
            await self.gate.open.wait()
        except asyncio.CancelledError:
            self.gate.cancellations.release()
            raise
        return Fixed.of({"done": True}, "done")

    async def _hasty(self, arguments: Nothing, context: CallContext) -> Fixed:
        await bounded(self.gate.open.wait(), None, "the gate")
        return Fixed.of({"done": True}, "done")

    async def _steps(self, arguments: Nothing, context: CallContext) -> Fixed:
        for step in ("one", "two", "three"):
            await context.progress(step)
        return Fixed.of({"steps": 3}, "three steps")

    async def _busy(self, arguments: Nothing, context: CallContext) -> Fixed:
        raise DatabaseBusy("database", "no connection was free", "Try again", waited_s=1)

    async def _refuse(self, arguments: Nothing, context: CallContext) -> Fixed:
        raise InvalidArgument("conversation", "there is none of that name", "Use conversation_list")

    async def _crash(self, arguments: Nothing, context: CallContext) -> Fixed:
        raise RuntimeError("a secret that must not leave")

    async def _unsound(self, arguments: Nothing, context: CallContext) -> Fixed:
        return Fixed.of({"object": object()}, "unsound")

    async def _vanish(self, arguments: Nothing, context: CallContext) -> Fixed:
        raise asyncio.CancelledError

    async def _big(self, arguments: SizeArguments, context: CallContext) -> Fixed:
        return Fixed.of(None, "x" * arguments.size)

    async def _nested(self, arguments: NestedArguments, context: CallContext) -> Fixed:
        return Fixed.of({"parts": len(arguments.parts)}, "nested")


class Recording:
    """A recorder that remembers; see `exai.models.Recorder`."""

    def __init__(self) -> None:
        self.counts: list[tuple[str, dict[str, str]]] = []

    def count(self, name: str, value: float = 1, /, **labels: str) -> None:
        self.counts.append((name, labels))

    def observe(self, name: str, /, *values: float, **labels: str) -> None:
        pass

    def gauge(self, name: str, value: float, /, **labels: str) -> None:
        pass


def fast_settings(**changes: Any) -> ServerSettings:
    """Settings on any free port."""
    return ServerSettings(**{"port": 0, "shutdown_grace_s": 5.0, **changes})


def new_server(tools: Tools, settings: ServerSettings, **options: Any) -> McpServer:
    given: dict[str, Any] = {"instructions": "Test tools.", "tool_timeout_s": 30.0, **options}
    return McpServer("exai-test", "1.2.3", tools=tools.registry, settings=settings, **given)


def notify_list_changed(server: McpServer, kind: ListKind) -> None:
    """Notify every subscribed peer that a list changed; EXAI's own lists of tools and prompts never do."""
    for session in server._sessions:
        session.notify(session.connection.list_changed(kind))


class Running:
    """A server on a real port."""

    def __init__(self, server: McpServer, tools: Tools, running: RunningServer) -> None:
        self.server = server
        self.tools = tools
        self.running = running
        self.port = running.port

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/"

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def running_server(settings: ServerSettings | None = None, **options: Any) -> AsyncIterator[Running]:
    settings = settings or fast_settings()
    tools = Tools()
    server = new_server(tools, settings, **options)
    async with open_server(build_asgi(server), settings) as running:
        yield Running(server, tools, running)


def request(key: int | str, method: str, params: dict[str, Any] | None = None, **meta: Any) -> dict[str, Any]:
    """A request of the initialize era; `meta` goes into _meta."""
    body = dict(params or {})
    if meta:
        body["_meta"] = meta
    return {"jsonrpc": "2.0", "id": key, "method": method, "params": body}


def modern(key: int | str, method: str, params: dict[str, Any] | None = None, **meta: Any) -> dict[str, Any]:
    """A request of the stateless era."""
    body = {**(params or {}), "_meta": {**ENVELOPE, **meta}}
    return {"jsonrpc": "2.0", "id": key, "method": method, "params": body}


def tool_call(name: str, /, **arguments: Any) -> dict[str, Any]:
    """The params of a tools/call."""
    return {"name": name, "arguments": arguments}


def handshake(version: str = "2025-11-25", key: int | str = 0) -> dict[str, Any]:
    return request(
        key,
        "initialize",
        {"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "test", "version": "0"}},
    )
