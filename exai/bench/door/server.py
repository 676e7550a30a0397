"""A server of `exai bench --door` in its own process: EXAI's transports with an echo tool, or a bare server.

Invariant: EXAI is assembled, logs and records as in the daemon, except that one caller may use all of it. The process
prints its port, and its usage for each line of input, until its standard input ends.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import uvloop

from exai import __version__
from exai.bench.door.client import allow_open_files
from exai.bench.floors.http import open_answer, open_echo
from exai.logs import configure_logging
from exai.mcp.features.results import ToolOutput
from exai.mcp.features.tools import Arguments, CallContext, ToolRegistry, ToolSpec
from exai.mcp.server import McpServer
from exai.mcp.transport.asgi import build_asgi
from exai.mcp.transport.listener import open_server
from exai.monitoring.metrics import MetricsRecorder
from exai.settings.load import LogSettings, ServerSettings

DOOR: Final = "door"
BARE: Final = "bare"
BARE_HTTP: Final = "bare http"
CPU: Final = "cpu"
MEMORY: Final = "memory"
TOOL: Final = "nothing"

UNHINDERED: Final = ServerSettings(
    port=0,
    max_connections=100_000,
    max_handshakes_per_address=100_000,
    owner_max_connections=100_000,
    owner_max_in_flight=100_000,
    owner_requests_per_s=1e9,
    owner_bytes_per_s=10**12,
)
"""All connections belong to one owner and come from one address."""


class Said(Arguments):
    """Arguments of the echo tool."""

    text: str


@dataclass
class Repeated(ToolOutput):
    """The text, without a structured answer."""

    text: str

    def as_json(self) -> dict[str, Any]:
        """Return nothing: the answer is the text."""
        return {}

    def as_text(self) -> str:
        """Return the text."""
        return self.text


async def _nothing(arguments: Said, context: CallContext) -> Repeated:  # noqa: ARG001
    return Repeated(text=arguments.text)


@asynccontextmanager
async def open_door() -> AsyncIterator[int]:
    """Serve EXAI's transports on a free port."""
    spec = ToolSpec(TOOL, "Nothing", "Returns its argument.", Said, Repeated, _nothing, read_only=True)
    tools = ToolRegistry((spec,))
    server = McpServer(
        "exai",
        __version__,
        tools=tools,
        instructions="",
        settings=UNHINDERED,
        tool_timeout_s=600.0,
        recorder=MetricsRecorder(),
    )
    async with open_server(build_asgi(server), UNHINDERED) as running:
        yield running.port


def used(what: str) -> dict[str, float | None]:
    """Return the processor time so far, or the current memory, if the system reports it."""
    if what == CPU:
        return {"cpu_s": time.process_time()}
    # Uncollected garbage does not count as memory of connections.
    gc.collect()
    return {"memory_bytes": _memory_bytes()}


def _memory_bytes() -> int | None:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


_SERVERS: Final[Mapping[str, Callable[[], AbstractAsyncContextManager[int]]]] = {
    DOOR: open_door,
    BARE: open_echo,
    BARE_HTTP: open_answer,
}


async def main(kind: str) -> None:
    """Serve until standard input ends."""
    asked = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(asked), sys.stdin)
    async with _SERVERS[kind]() as port:
        _say({"port": port})
        while line := await asked.readline():
            _say(used(line.decode().strip()))


def _say(facts: dict[str, float | None]) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    allow_open_files()
    configure_logging(LogSettings())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(sys.argv[1]))
