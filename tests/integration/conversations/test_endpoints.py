"""Conversations with models that are particular: none ends for good, and no answer is lost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from exai.conversations import AppendRequest, ChatRequest
from exai.db.driver.pool import connect
from exai.errors import AnswerNotStored, ExaiError, ProviderRefused, ProviderTooLong, ProviderUnavailable
from exai.mcp.features.results import error_result
from exai.models import LOCAL_OWNER, ContinuationId, NewMessage
from tests.integration.conversations.conftest import Rig, open_rig
from tests.support.provider_server import ProviderServer, Reply, chunk, event, failure, kimi_answer, stream

WINDOW = 8_192
SMALL = "small-8k"
ODD_NAMES = '{"id": "a\\u0000", "model": "\\u0000\\ud800", "choices": [{"index": 0, "delta": {"content": "kept"}}]}'


@pytest.fixture
async def rig(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(postgres_url, redis_url, tmp_path) as opened:
        yield opened


def alternating(body: Any) -> Reply:
    """As a template of Gemma or Mistral: anything but the user and the model in turn is an error."""
    roles = [message["role"] for message in body["messages"] if message["role"] != "system"]
    wanted = ["user", "assistant"] * len(roles)
    if roles != wanted[: len(roles)] or not all(message["content"].strip() for message in body["messages"]):
        return failure(
            400, {"error": {"message": "Conversation roles must alternate user/assistant/user/assistant/..."}}
        )
    return kimi_answer("fine")


def strict(tokens_per_char: float, *, says_numbers: bool) -> Any:
    """A model with a window of 8,192 tokens that counts exactly."""

    def answer(body: Any) -> Reply:
        sent = int(sum(len(message["content"]) for message in body["messages"]) * tokens_per_char)
        if sent <= WINDOW:
            return kimi_answer("fine", usage={"prompt_tokens": sent, "completion_tokens": 1})
        numbers = f" maximum context length is {WINDOW} tokens, however your messages resulted in {sent} tokens"
        message = "context_length_exceeded" + (numbers if says_numbers else "")
        return failure(400, {"error": {"code": "context_length_exceeded", "message": message}})

    return answer


async def test_failed_turn_does_not_end_a_conversation_with_an_alternating_model(rig: Rig) -> None:
    """The question of the failed turn stays, and goes with the next one."""
    service = rig.app.conversations
    rig.provider.default = alternating
    first = await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "One"))
    rig.provider.script(failure(401))
    with pytest.raises(ExaiError):
        await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Two", continuation_id=first.continuation_id))
    again = await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Three", continuation_id=first.continuation_id))
    assert again.content == "fine"
    sent = [message["content"] for message in rig.provider.chats[-1].body["messages"]]
    assert sent == ["One", "fine", "Two\n\nThree"]
    stored = (await service.read(LOCAL_OWNER, first.continuation_id)).messages
    assert [message.content for message in stored if message.role == "user"] == ["One", "Two", "Three"]


@pytest.mark.parametrize(
    "given",
    [
        [("assistant", "Welcome."), ("user", "Hi")],
        [("user", "One"), ("user", "Two")],
        [("user", "One"), ("assistant", ""), ("user", "Two"), ("assistant", "x"), ("assistant", "y")],
        [("user", ""), ("assistant", "x")],
        [("system", "s"), ("assistant", "x"), ("tool", "42")],
    ],
)
async def test_appended_messages_of_any_roles_are_accepted_by_an_alternating_model(
    rig: Rig, given: list[tuple[Any, str]]
) -> None:
    """Clients may append any roles; the stored messages do not change."""
    service = rig.app.conversations
    rig.provider.default = alternating
    begun = await service.append(AppendRequest(LOCAL_OWNER, [NewMessage(role, content) for role, content in given]))
    assert (
        await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Go on", continuation_id=begun.continuation_id))
    ).content == "fine"
    stored = (await service.read(LOCAL_OWNER, begun.continuation_id)).messages
    assert [(message.role, message.content) for message in stored[: len(given)]] == given


@pytest.mark.parametrize("says_numbers", [True, False])
async def test_less_is_sent_after_a_refusal_for_length(rig: Rig, says_numbers: bool) -> None:
    """A vocabulary may lack the words of a text; the conversation goes on, and the estimate learns."""
    service = rig.app.conversations
    rig.provider.default = strict(1.0, says_numbers=says_numbers)
    talk = [NewMessage("user" if number % 2 == 0 else "assistant", "ho" * 1_000) for number in range(20)]
    begun = await service.append(AppendRequest(LOCAL_OWNER, talk))
    request = ChatRequest(LOCAL_OWNER, "just say hello", model=SMALL, continuation_id=begun.continuation_id)
    first = await rig.app.chat.run(request)
    assert first.content == "fine"
    assert 0 < first.left_out < len(talk)
    assert f"{first.left_out} older messages" in first.notes[0]
    tries = len(rig.provider.chats)
    assert 1 < tries <= 6
    await rig.app.chat.run(request)
    assert len(rig.provider.chats) == tries + 1


async def test_question_too_long_by_itself_does_not_end_its_conversation(rig: Rig) -> None:
    """It is refused, with its conversation's name; the next one is asked without it."""
    rig.provider.default = strict(1.0, says_numbers=True)
    with pytest.raises(ProviderTooLong) as refused:
        await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "ho" * 6_000, model=SMALL))
    assert len(rig.provider.chats) == 1
    name = refused.value.continuation_id
    assert name is not None
    later = await rig.app.chat.run(
        ChatRequest(LOCAL_OWNER, "just say hello", model=SMALL, continuation_id=ContinuationId(name))
    )
    assert later.content == "fine"
    assert later.left_out == 1


async def test_failed_first_chat_names_its_conversation_and_is_marked_where_it_is_read(rig: Rig) -> None:
    """In the error's text, in its facts, and in the history; the model never sees the mark."""
    service = rig.app.conversations
    rig.provider.script(failure(400, {"error": {"message": "no such model"}}))
    with pytest.raises(ProviderRefused) as refused:
        await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Hello"))
    shown = error_result(refused.value)
    name = shown["structuredContent"]["error"]["continuation_id"]
    assert f"continuation_id: {name}" in shown["content"][0]["text"].splitlines()[0]
    stored = (await service.read(LOCAL_OWNER, name)).messages
    assert [(message.role, message.kind) for message in stored] == [("user", "message"), ("assistant", "failed")]
    assert "no such model" in stored[1].content
    assert stored[1].metadata["error"] == "provider_unknown_model"
    (listed,) = (await service.list(LOCAL_OWNER)).conversations
    assert listed.newest_kind == "failed"
    fork = await service.fork(LOCAL_OWNER, ContinuationId(name))
    await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Again", continuation_id=name))
    kinds = {each.continuation_id: each.newest_kind for each in (await service.list(LOCAL_OWNER)).conversations}
    assert kinds == {name: "message", fork.continuation_id: None}
    assert [message["content"] for message in rig.provider.chats[-1].body["messages"]] == ["Hello", "Again"]


async def test_refused_first_chat_leaves_nothing_behind(rig: Rig) -> None:
    """A request is checked before anything is stored."""
    with pytest.raises(ExaiError) as refused:
        await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "x" * 60_000, model=SMALL))
    assert refused.value.continuation_id is None
    assert (await rig.app.conversations.list(LOCAL_OWNER)).conversations == ()


@pytest.mark.parametrize(
    "steps",
    [
        [event(ODD_NAMES)],
        [chunk({"content": "kept"}, usage={"prompt_tokens": 2**63, "completion_tokens": 2**80})],
        [chunk({"content": "kept"}, usage={"prompt_tokens": -1, "completion_tokens": 1e308, "cached_tokens": 2**64})],
        [chunk({"content": "kept", "tool_calls": [{"function": {"name": "a\x00b"}}]})],
        [chunk({"content": "kept"}, finish="\x00odd")],
    ],
    ids=["names", "huge counts", "odd counts", "tool name", "finish reason"],
)
async def test_odd_characters_and_numbers_of_a_provider_lose_no_answer(rig: Rig, steps: list[bytes]) -> None:
    """Values that cannot be stored as received are adapted."""
    rig.provider.script(stream(*steps, chunk({}, finish="stop"), event("[DONE]"), headers={"x-trace-id": "a\x7fb"}))
    result = await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Hi", model="kimi-k2.6"))
    assert result.content == "kept"
    stored = (await rig.app.conversations.read(LOCAL_OWNER, result.continuation_id)).messages
    assert stored[-1].content == "kept"


async def test_any_error_of_storing_an_answer_hands_it_over_and_ends_the_turn(rig: Rig) -> None:
    """The caller has paid for it, and the same key must not wait for a turn that will not end."""
    rig.provider.script(stream("gate", chunk({"content": "paid for"}, finish="stop"), event("[DONE]")))
    connection = await connect(rig.app.database.address, timeout_s=5)
    await connection.execute(
        "alter table public.messages add constraint no_answers check (kind <> 'message' or role <> 'assistant')"
    )
    rig.provider.gate.set()
    request = ChatRequest(LOCAL_OWNER, "Hello", idempotency_key="key")
    with pytest.raises(AnswerNotStored) as caught:
        await rig.app.chat.run(request)
    assert caught.value.report()["content"] == "paid for"
    assert caught.value.report()["continuation_id"]
    assert await connection.fetchval("select state from public.turns where request_key = 'key'") == "failed"
    await connection.execute("alter table public.messages drop constraint no_answers")
    await connection.close()
    assert (await rig.app.chat.run(request)).duplicate is False


async def test_unreachable_provider_names_the_conversation_too(rig: Rig) -> None:
    """Every error after the question was stored does."""
    await rig.provider.stop()
    with pytest.raises(ProviderUnavailable) as failed:
        await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Hello"))
    assert failed.value.continuation_id is not None


@pytest.fixture
async def slow_list() -> AsyncIterator[ProviderServer]:
    """An endpoint that answers the query for its models only once the gate is open."""
    models = json.dumps({"data": [{"id": "m", "max_model_len": 65_536}]}).encode()
    async with ProviderServer() as server:
        server.routes["/v1/models"] = Reply(["gate", models])
        yield server


@pytest.fixture
async def slow_rig(postgres_url: str, redis_url: str, tmp_path: Path, slow_list: ProviderServer) -> AsyncIterator[Rig]:
    async with open_rig(postgres_url, redis_url, tmp_path, endpoint=slow_list) as opened:
        yield opened


async def test_first_question_to_an_endpoint_does_not_wait_for_its_list_of_models(
    slow_rig: Rig, slow_list: ProviderServer
) -> None:
    """A short question of a new conversation fits every window, so that nothing has to be known of the model."""
    asked = slow_rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Hello", model="local/m"))
    assert "Hello" in (await asyncio.wait_for(asked, 5)).content
    assert len(slow_list.chats) == 1
    assert not slow_list.gate.is_set()


@pytest.mark.parametrize(
    "request_of_it",
    [
        ChatRequest(LOCAL_OWNER, "Hello"),
        ChatRequest(LOCAL_OWNER, "Hello", model="m"),
        ChatRequest(LOCAL_OWNER, "word " * 6_000, model="local/m"),
        ChatRequest(LOCAL_OWNER, "Hello", model="local/m", max_output_tokens=20_000),
    ],
    ids=["default model", "bare name", "long question", "long answer"],
)
async def test_question_that_needs_the_list_of_models_waits_for_it(
    slow_rig: Rig, slow_list: ProviderServer, request_of_it: ChatRequest
) -> None:
    """A question at the start of a daemon is delayed, not refused for a name that is not known yet."""
    asked = asyncio.create_task(slow_rig.app.chat.run(request_of_it))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not asked.done()
    slow_list.gate.set()
    assert (await asyncio.wait_for(asked, 5)).provider == "local"
