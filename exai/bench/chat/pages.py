"""Open pages for `exai bench --chat`, in a process of their own: each holds the streams that EXAI's page holds open.

Standard input has one line with what to open. The process prints a line when every stream has sent something, and reads
them until standard input ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any, Final

from exai.bench.chat.provider import HOST
from exai.mcp.core.versions import META_CAPABILITIES, META_VERSION, MODERN

OPEN: Final = b"open\n"
LISTEN: Final = "subscriptions/listen"


async def main() -> None:
    """Open the pages of the first line."""
    asked = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(asked), sys.stdin)
    task: dict[str, Any] = json.loads(await asked.readline())
    writers = []
    async with asyncio.TaskGroup() as group:
        readings = []
        for _ in range(task["pages"]):
            for request in (_numbers(task), _changes(task)):
                reader, writer = await asyncio.open_connection(HOST, task["port"])
                writer.write(request)
                await reader.readuntil(b"data:")
                readings.append(group.create_task(_read(reader)))
                writers.append(writer)
        sys.stdout.buffer.write(OPEN)
        sys.stdout.buffer.flush()
        await asked.read()
        for each in readings:
            each.cancel()
    for writer in writers:
        writer.close()


async def _read(reader: asyncio.StreamReader) -> None:
    while await reader.read(65_536):
        pass
    raise SystemExit("a stream of a page has ended")


def _numbers(task: dict[str, Any]) -> bytes:
    head = f"GET /live HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {task['token']}\r\n\r\n"
    return head.encode()


def _changes(task: dict[str, Any]) -> bytes:
    wanted = {"resourcesListChanged": True, "resourceSubscriptions": [f"exai://conversations/{task['name']}"]}
    params = {"notifications": wanted, "_meta": {META_VERSION: MODERN, META_CAPABILITIES: {}}}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": LISTEN, "params": params}).encode()
    head = (
        f"POST /mcp HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {task['token']}\r\n"
        f"Content-Type: application/json\r\nAccept: application/json, text/event-stream\r\n"
        f"MCP-Protocol-Version: {MODERN}\r\nMcp-Method: {LISTEN}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


if __name__ == "__main__":
    asyncio.run(main())
