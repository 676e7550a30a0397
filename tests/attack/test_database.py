"""An owner whose statements are slow takes no connection of the database that another owner's calls need."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from websockets.asyncio.client import ClientConnection, connect

from tests.support.attack import ALICE_TOKEN, MALLORY_TOKEN, Target
from tests.support.mcp_server import handshake, request
from tests.support.migrations import session

NUMBERS = itertools.count(1)
FLOOD = 64
FEW_AND_MANY = pytest.mark.parametrize("appends", [4, pytest.param(20, marks=pytest.mark.heavy)])
"""Of the other owner, most of which failed; the many are a part of `make attack`."""


@asynccontextmanager
async def owner(target: Target, token: str) -> AsyncIterator[ClientConnection]:
    url = f"ws://127.0.0.1:{target.port}/"
    headers = {"Authorization": f"Bearer {token}"}
    async with connect(url, additional_headers=headers, ping_interval=None, max_size=None, open_timeout=30) as peer:
        await asks(peer, handshake())
        yield peer


async def asks(peer: ClientConnection, message: dict[str, Any]) -> dict[str, Any]:
    await peer.send(orjson.dumps(message), text=True)
    async for data in peer:
        found: dict[str, Any] = orjson.loads(data)
        if found.get("id") == message["id"]:
            return found
    raise AssertionError("the connection ended")


def calling(tool: str, **arguments: Any) -> dict[str, Any]:
    return request(next(NUMBERS), "tools/call", {"name": tool, "arguments": arguments})


def appending(content: str, **more: Any) -> dict[str, Any]:
    return calling("conversation_append", messages=[{"role": "user", "content": content}], **more)


async def flood(peer: ClientConnection, tool: str, **arguments: Any) -> None:
    for _ in range(FLOOD):
        await peer.send(orjson.dumps(calling(tool, **arguments)), text=True)


async def is_served(peer: ClientConnection, appends: int) -> bool:
    """Whether all of some appends and searches are carried out."""
    for number in range(appends):
        answer = await asks(peer, appending(f"mine {number}"))
        if answer["result"].get("isError"):
            return False
    return True


@FEW_AND_MANY
async def test_searches_that_run_to_their_limit_leave_connections_to_other_owners(
    target: Target, postgres_url: str, appends: int
) -> None:
    """They had all ten; more than half of another owner's appends failed. Here a lock makes every search wait."""
    async with (
        target.watched() as seen,
        owner(target, MALLORY_TOKEN) as mallory,
        owner(target, ALICE_TOKEN) as alice,
        session(postgres_url) as other,
    ):
        async with other.transaction():
            await other.execute("lock table exai.message_words in access exclusive mode")
            await flood(mallory, "conversation_search", query="common")
            assert await is_served(alice, appends)
    seen.check()


@FEW_AND_MANY
async def test_writers_that_wait_for_each_other_leave_connections_to_other_owners(
    target: Target, postgres_url: str, appends: int
) -> None:
    """Many appends to one conversation, each too large to share a statement, while something holds it."""
    async with (
        target.watched() as seen,
        owner(target, MALLORY_TOKEN) as mallory,
        owner(target, ALICE_TOKEN) as alice,
        session(postgres_url) as other,
    ):
        answer = await asks(mallory, appending("one"))
        name = answer["result"]["structuredContent"]["continuation_id"]
        async with other.transaction():
            await other.execute("select from public.conversations where continuation_id = $1 for update", name)
            messages = [{"role": "user", "content": "x" * 70_000}]
            await flood(mallory, "conversation_append", messages=messages, continuation_id=name)
            assert await is_served(alice, appends)
    seen.check()
