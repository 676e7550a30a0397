"""Lists of conversations by what their turns were, and by the time of their last change."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from exai.conversations import ChatRequest
from exai.db.filters import ListFilter
from exai.models import LOCAL_OWNER
from tests.integration.conversations.conftest import Rig, open_rig


@pytest.fixture
async def rig(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(postgres_url, redis_url, tmp_path) as opened:
        yield opened


async def test_a_list_is_narrowed_by_tool_model_and_time_in_one_statement(rig: Rig) -> None:
    """The page offers these filters; `until` is exclusive, and a conversation has the time of its last change."""
    await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "One?", title="First"))
    await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Two?", title="Second", tool="debug", model="kimi-k3"))
    second, first = (await rig.app.conversations.list(LOCAL_OWNER)).conversations

    async def titles(**only: Any) -> list[str | None]:
        rig.reset()
        page = await rig.app.conversations.list(LOCAL_OWNER, only=ListFilter(**only))
        assert rig.cost() == (1, 0)
        return [each.title for each in page.conversations]

    assert await titles(tool="debug") == ["Second"]
    assert await titles(tool="chat", model="kimi-k3.1-pro") == ["First"]
    assert await titles(tool="chat", model="kimi-k3") == []
    assert await titles(until=second.updated_at) == ["First"]
    assert await titles(since=second.updated_at) == ["Second"]
    assert await titles(since=first.updated_at, until=second.updated_at + timedelta(seconds=1)) == ["Second", "First"]
