"""The official SDK's WebSocket client, shaped for tests: connect, call, read the structured answer."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from mcp import ClientSession
from mcp.types import CallToolResult, Implementation

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from mcp.client.websocket import websocket_client


@asynccontextmanager
async def connect(url: str, client: str = "mcp") -> AsyncIterator[ClientSession]:
    """Open a socket and an initialised session on it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        opened = websocket_client(url)
    async with (
        opened as (read, write),
        ClientSession(read, write, client_info=Implementation(name=client, version="1")) as session,
    ):
        await session.initialize()
        yield session


async def call(session: ClientSession, tool: str, **arguments: Any) -> dict[str, Any]:
    """Call a tool that must succeed; returns its structured content."""
    result = await session.call_tool(tool, arguments)
    assert not result.isError, result.content
    assert result.structuredContent is not None
    return result.structuredContent


async def refused(session: ClientSession, tool: str, **arguments: Any) -> dict[str, Any]:
    """Call a tool that must answer with a tool error; returns the error's facts."""
    result: CallToolResult = await session.call_tool(tool, arguments)
    assert result.isError, result.structuredContent
    assert result.structuredContent is not None
    error = result.structuredContent["error"]
    assert isinstance(error, dict)
    return error
