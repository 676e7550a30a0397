"""A chat whose model cannot answer, with a chain of other models: what is returned, stored and repeated."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import asyncpg

from exai.conversations import ChatRequest
from exai.mcp.core.protocol import CallContext
from exai.models import LOCAL_OWNER
from exai.tools.chat import ChatOutput
from exai.tools.registry import build_tools
from tests.integration.conversations.conftest import open_rig
from tests.support.provider_server import kimi_error


async def test_answer_of_another_model_is_named_in_structure_text_and_turn(
    postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    """Also when the call is repeated, and its price is that of the model that answered."""
    async with open_rig(postgres_url, redis_url, tmp_path, fallback=["kimi-k3"]) as rig:
        rig.provider.script(kimi_error(404, "resource_not_found_error"))
        asked = ChatRequest(LOCAL_OWNER, "Hi", model="kimi-k3.1-pro", idempotency_key="key")
        result = await rig.app.chat.run(asked)
        again = await rig.app.chat.run(asked)
        reader = await asyncpg.connect(postgres_url)
        row = await reader.fetchrow(
            "select model, cost, input_tokens, output_tokens from public.turns where model is not null"
        )
        await reader.close()
    assert (result.model, result.instead_of, again.duplicate) == ("kimi-k3", "kimi-k3.1-pro", True)
    assert (again.model, again.instead_of, again.notes) == (result.model, result.instead_of, result.notes)
    output = ChatOutput.of(result)
    assert (output.model, output.instead_of) == ("kimi-k3", "kimi-k3.1-pro")
    assert "(kimi-k3 answered instead of kimi-k3.1-pro: kimi does not serve this model" in output.as_text()
    assert row["model"] == "kimi-k3"
    assert row["cost"] == (row["input_tokens"] * Decimal(3) + row["output_tokens"] * Decimal(15)) / 1_000_000
    assert len(rig.provider.chats) == 2


async def test_progress_names_the_model_that_answers(postgres_url: str, redis_url: str, tmp_path: Path) -> None:
    """Not the one that was asked first."""
    said: list[str] = []
    doing: list[str] = []

    async def progress(sentence: str) -> None:
        said.append(sentence)

    async with open_rig(postgres_url, redis_url, tmp_path, fallback=["kimi-k3"]) as rig:
        rig.provider.script(kimi_error(404, "resource_not_found_error"))
        spec = next(each for each in build_tools(rig.app) if each.name == "debug")
        context = CallContext(LOCAL_OWNER, "1", progress, doing=doing.append)
        await spec.handler(spec.arguments.model_validate({"prompt": "Why?", "model": "kimi-k3.1-pro"}), context)
    assert said[0].startswith("asking kimi-k3, because kimi-k3.1-pro did not answer")
    assert said[1].startswith("debug: kimi-k3 ")
    assert doing[-2:] == ["debug: waiting for kimi-k3.1-pro", "debug: waiting for kimi-k3"]
