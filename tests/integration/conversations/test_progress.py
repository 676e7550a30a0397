"""Progress notifications while a model answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from exai.mcp.core.protocol import CallContext
from exai.models import LOCAL_OWNER
from exai.tools.chat import ChatArguments
from exai.tools.registry import build_tools
from tests.integration.conversations.conftest import Rig, open_rig
from tests.support.provider_server import chunk, event, stream

PIECES = 500


@pytest.fixture
async def rig(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Rig]:
    """Directly on the database."""
    async with open_rig(postgres_url, redis_url, tmp_path) as opened:
        yield opened


async def test_progress_comes_far_less_often_than_the_pieces_of_an_answer(rig: Rig) -> None:
    """A report is larger than the token it is about; a client that asked for progress must not drown in it."""
    said: list[str] = []

    async def progress(sentence: str) -> None:
        said.append(sentence)

    pieces = [chunk({"content": "word "}) for _ in range(PIECES)]
    rig.provider.script(stream(*pieces, chunk({}, finish="stop"), event("[DONE]")))
    spec = next(each for each in build_tools(rig.app) if each.name == "chat")
    result = await spec.handler(ChatArguments(prompt="Hi"), CallContext(LOCAL_OWNER, "1", progress))
    assert result.as_text() == "word " * PIECES
    assert said[0] == f"{result.model} answering, 5 characters"
    assert len(said) < PIECES / 5
