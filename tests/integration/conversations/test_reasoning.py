"""Reasoning of earlier answers: returned to endpoints that demand it, under the name they used, and to no other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from exai.conversations import ChatRequest
from exai.models import LOCAL_OWNER, ContinuationId
from tests.integration.conversations.conftest import Rig, open_rig
from tests.integration.conversations.test_prefix import prefix_changes
from tests.support.provider_server import Reply, chunk, event, failure, kimi_answer, stream

DEMANDED = "The `reasoning_content` in the thinking mode must be passed back to the API."


@pytest.fixture
async def rig(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(postgres_url, redis_url, tmp_path) as opened:
        yield opened


def demanding(field: str) -> Any:
    """An endpoint that refuses answers without their reasoning, and names it in its own way."""

    def answer(body: Any) -> Reply:
        answers = [message for message in body["messages"] if message["role"] == "assistant"]
        if not all("reasoning_content" in message or "reasoning" in message for message in answers):
            return failure(400, {"error": {"message": DEMANDED, "type": "invalid_request_error"}})
        number = len(answers)
        steps = [chunk({field: f"because {number}"}), chunk({"content": f"answer {number}"}), chunk({}, finish="stop")]
        return stream(*steps, event("[DONE]"))

    return answer


async def ask(rig: Rig, name: ContinuationId | None, model: str = "kimi-k3") -> ContinuationId:
    result = await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Why?", model=model, continuation_id=name))
    return result.continuation_id


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
async def test_endpoint_that_demands_reasoning_receives_it_under_its_own_name(rig: Rig, field: str) -> None:
    """The first refusal teaches it; the answer before, whose reasoning was not kept, has an empty one."""
    rig.provider.default = demanding(field)
    name = await ask(rig, None)
    for _ in range(3):
        name = await ask(rig, name)
    answers = [message for message in rig.provider.chats[-1].body["messages"] if message["role"] == "assistant"]
    assert answers[0]["reasoning_content"] == ""
    assert [message[field] for message in answers[1:]] == ["because 1", "because 2"]
    accepted = [request for request in rig.provider.chats if "reasoning" in str(request.body["messages"])]
    assert len(accepted) == len(rig.provider.chats) - 2


async def test_reasoning_is_never_sent_to_a_model_that_does_not_demand_it(rig: Rig) -> None:
    """A model that reads the reasoning of another one follows it instead of judging the answer."""
    rig.provider.default = demanding("reasoning_content")
    name = await ask(rig, None)
    name = await ask(rig, name)
    rig.provider.default = lambda _body: kimi_answer("fine", reasoning="hm")
    name = await ask(rig, name, "small-8k")
    await ask(rig, name, "small-8k")
    for request in rig.provider.chats[-2:]:
        assert all(message.keys() == {"role", "content"} for message in request.body["messages"])


async def test_array_with_reasoning_begins_with_that_of_the_previous_turn(rig: Rig) -> None:
    """Reasoning is a part of the prefix."""
    rig.provider.default = demanding("reasoning_content")
    name = await ask(rig, None)
    name = await ask(rig, name)
    rig.provider.received.clear()
    for _ in range(3):
        name = await ask(rig, name)
    assert prefix_changes(rig.provider) == 0
