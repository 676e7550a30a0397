"""A chat that searches the web: its sources and their price in the result, in the turn, and when it is repeated."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import asyncpg
import pytest

from exai.conversations import ChatRequest
from exai.errors import Conflict
from exai.models import LOCAL_OWNER, WebSource
from exai.tools.chat import ChatOutput
from tests.integration.conversations.conftest import open_rig
from tests.support.provider_server import chunk, event, kimi_answer, stream

FORMULA = "/v1/formulas/moonshot/web-search:latest"


async def test_sources_and_price_are_in_the_result_and_in_the_turn(
    postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    """The price of the searches is an item of its own beside the tokens, and part of the turn's cost."""
    tool = {"type": "function", "function": {"name": "web_search"}}
    found = '[{"title": "A page", "url": "https://a.example/"}]'
    called = {"index": 0, "id": "c", "function": {"name": "web_search", "arguments": "{}"}}
    usage = {"prompt_tokens": 1_000, "completion_tokens": 100}
    async with open_rig(postgres_url, redis_url, tmp_path) as rig:
        rig.provider.routes[f"{FORMULA}/tools"] = {"tools": [tool]}
        rig.provider.routes[f"{FORMULA}/fibers"] = {"status": "succeeded", "context": {"output": found}}
        rig.provider.script(
            stream(chunk({"tool_calls": [called]}), chunk({}, finish="tool_calls", usage=usage), event("[DONE]")),
            kimi_answer("It is so.", usage=usage),
        )
        asked = ChatRequest(LOCAL_OWNER, "Is it?", model="kimi-k3", idempotency_key="key", web_search=True)
        result = await rig.app.chat.run(asked)
        again = await rig.app.chat.run(asked)
        with pytest.raises(Conflict):
            await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Is it?", model="kimi-k3", idempotency_key="key"))
        reader = await asyncpg.connect(postgres_url)
        row = await reader.fetchrow("select cost, metadata from public.turns where model is not null")
        await reader.close()
    assert (result.content, result.sources) == ("It is so.", (WebSource("A page", "https://a.example/"),))
    assert (again.duplicate, again.sources, again.notes) == (True, result.sources, result.notes)
    assert "the web was searched for about $0.005; searches: 1, sources: 1" in result.notes
    assert row["cost"] == (2_000 * Decimal(3) + 200 * Decimal(15)) / 1_000_000 + Decimal("0.005")
    assert json.loads(row["metadata"])["web_search"] == {"searches": 1, "cost_usd": 0.005}
    output = ChatOutput.of(result)
    assert output.sources[0].url == "https://a.example/"
    assert output.as_text().endswith("Sources:\n- A page https://a.example/")
