"""A WebSocket client that returns messages unchanged, and notifications beside the answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
from websockets.asyncio.client import ClientConnection, connect

from tests.support.mcp_server import WAIT_S


class PlainSocket:
    """One socket; `notices` are the notifications that came while something else was waited for."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self.notices: list[dict[str, Any]] = []

    async def send(self, message: object) -> None:
        """Send one message."""
        await self._socket.send(orjson.dumps(message), text=True)

    async def receive(self) -> dict[str, Any]:
        """Return the next message of any kind."""
        async with asyncio.timeout(WAIT_S):
            found = orjson.loads(await self._socket.recv())
        assert isinstance(found, dict)
        return found

    async def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send a request and return its answer."""
        await self.send(message)
        while "id" not in (found := await self.receive()):
            self.notices.append(found)
        assert found["id"] == message["id"]
        return found

    async def notice(self) -> dict[str, Any]:
        """Return the next notification."""
        return self.notices.pop(0) if self.notices else await self.receive()


@asynccontextmanager
async def plain_socket(url: str) -> AsyncIterator[PlainSocket]:
    async with connect(url, subprotocols=["mcp"], compression=None) as opened:  # type: ignore[list-item]
        yield PlainSocket(opened)
