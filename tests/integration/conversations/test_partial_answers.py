"""Incomplete answers, and prompts that omit messages, are marked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from exai.conversations import AppendRequest, ChatRequest
from exai.mcp.features.results import call_result
from exai.models import LOCAL_OWNER, NewMessage
from exai.tools.chat import ChatOutput
from tests.integration.conversations.conftest import Rig, open_rig
from tests.support.provider_server import chunk, event, kimi_answer, stream

CUT = stream(
    chunk({"content": "Do NOT "}, finish="stop"), 0.05, chunk({"content": "delete"}, finish="stop"), 0.05, "rst"
)


@pytest.fixture
async def rig(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(postgres_url, redis_url, tmp_path) as opened:
        yield opened


async def test_answer_without_its_end_is_kept_and_marked_wherever_it_is_read(rig: Rig) -> None:
    """The text is not lost, is nowhere taken for a whole answer, and the model sees it in the next turn."""
    rig.provider.script(CUT, kimi_answer("Deleted nothing."))
    service = rig.app.conversations
    asked = ChatRequest(LOCAL_OWNER, "Delete it?", idempotency_key="key")
    first = await rig.app.chat.run(asked)
    assert (first.content, first.partial, first.duplicate) == ("Do NOT delete", True, False)
    again = await rig.app.chat.run(asked)
    assert (again.content, again.partial, again.notes, again.duplicate) == (first.content, True, first.notes, True)
    stored = (await service.read(LOCAL_OWNER, first.continuation_id)).messages[-1]
    assert (stored.kind, stored.metadata["notes"]) == ("partial", list(first.notes))
    shown = call_result(ChatOutput.of(first))
    assert shown["structuredContent"]["partial"] is True
    assert "note: the answer may be incomplete" in shown["content"][0]["text"]
    await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Well?", continuation_id=first.continuation_id))
    sent = [message["content"] for message in rig.provider.chats[-1].body["messages"]]
    assert sent == ["Delete it?", "Do NOT delete", "Well?"]


async def test_what_could_not_be_read_is_counted_in_the_result(rig: Rig) -> None:
    """A whole answer of which one event was no JSON may lack a piece."""
    rig.provider.script(
        stream(chunk({"content": "a"}), b'data: {"choi\n\n', chunk({"content": "c"}, finish="stop"), event("[DONE]"))
    )
    result = await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Hi"))
    assert (result.content, result.partial, result.unread_events) == ("ac", True, 1)
    assert "1 events" in result.notes[0]


async def test_number_of_messages_left_out_is_reported(rig: Rig) -> None:
    """A full window drops the oldest messages; the caller has to know, also when the reply is repeated."""
    service = rig.app.conversations
    old = [NewMessage("user" if number % 2 == 0 else "assistant", "word " * 1_000) for number in range(10)]
    begun = await service.append(AppendRequest(LOCAL_OWNER, old))
    asked = ChatRequest(
        LOCAL_OWNER,
        "Hi",
        model="small-8k",
        continuation_id=begun.continuation_id,
        system="Be brief.",
        idempotency_key="key",
    )
    result = await rig.app.chat.run(asked)
    sent = rig.provider.chats[-1].body["messages"]
    assert result.left_out == len(old) - (len(sent) - 2) > 0
    assert f"{result.left_out} older messages" in result.notes[0]
    assert (await rig.app.chat.run(asked)).left_out == result.left_out
    whole = await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Hi", continuation_id=begun.continuation_id))
    assert (whole.left_out, whole.notes) == (0, ())
