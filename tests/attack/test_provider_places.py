"""One owner's slow chats do not take a provider from the others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from exai.providers.completion.client import MAX_CONNECTIONS
from tests.support.attack import MALLORY_TOKEN, TOKENS, Target
from tests.support.daemon import start_daemon
from tests.support.provider_server import ProviderServer, chunk, kimi_answer, stream

FLOOD = 125
BOB_TOKEN = "bob-token-of-16-or-more"


@pytest.fixture
async def provider() -> AsyncIterator[ProviderServer]:
    """Answers bob's model at once, and mallory's when the gate opens."""
    async with ProviderServer() as server:
        server.default = lambda body: (
            kimi_answer("fine")
            if body["model"] == "kimi-k3"
            else stream("gate", chunk({"content": "x"}, finish="stop"))
        )
        yield server


@pytest.fixture
def target(provider: ProviderServer, postgres_url: str, redis_url: str, tmp_path: Path) -> Iterator[Target]:
    settings = {
        "EXAI_DATA_DIR": str(tmp_path),
        "EXAI_DATABASE__URL": postgres_url,
        "EXAI_CACHE__URL": redis_url,
        "EXAI_SERVER__TOKENS": json.dumps({**json.loads(TOKENS), "bob": BOB_TOKEN}),
        "KIMI_API_KEY": "sk-test-of-a-provider",
        "EXAI_PROVIDERS__KIMI__BASE_URL": provider.base_url,
    }
    with start_daemon(settings) as daemon:
        yield Target(daemon)


async def chat(client: httpx.AsyncClient, token: str, model: str) -> dict[str, Any]:
    """Ask over HTTP, as one of the owners."""
    body = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {"name": "chat", "arguments": {"prompt": "Hi", "model": model}},
    }
    headers = {
        "Authorization": f"Bearer {token}",
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": "2025-06-18",
    }
    response = await client.post("/mcp", json=body, headers=headers)
    result: dict[str, Any] = response.json()["result"]
    return result


async def test_slow_chats_of_one_owner_leave_connections_to_another(target: Target, provider: ProviderServer) -> None:
    """125 held all of the provider's connections, and others were refused for as long as mallory liked."""
    address = f"http://127.0.0.1:{target.port}"
    async with (
        target.watched() as seen,
        httpx.AsyncClient(base_url=address, timeout=60, limits=httpx.Limits(max_connections=FLOOD + 10)) as client,
    ):
        flood = [asyncio.create_task(chat(client, MALLORY_TOKEN, "kimi-k2.6")) for _ in range(FLOOD)]
        await provider.arrived(MAX_CONNECTIONS // 2)
        for _ in range(5):
            answer = await chat(client, BOB_TOKEN, "kimi-k3")
            assert answer["structuredContent"]["content"] == "fine"
        provider.gate.set()
        await asyncio.gather(*flood)
    seen.check()
