"""The conversation store of Pydantic AI, beside the framework's own in memory."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Mapping
from typing import Any

import pytest

from exai.app import open_app
from exai.models import LOCAL_OWNER, ContinuationId
from exai.settings.load import load_settings
from exai.store import Store

pytest.importorskip("pydantic_ai.conversation_store", reason="pydantic-ai is not installed")

from pydantic_ai import Agent, UserError
from pydantic_ai import messages as parts
from pydantic_ai.conversation import Conversation
from pydantic_ai.conversation_store import ConversationConflict, InMemoryConversationStore
from pydantic_ai.models.test import TestModel

from exai.adapters.pydantic_ai import ExaiConversationStore
from tests.adapters.quick_starts import run_quick_start

STEPS = 25
KINDS = ("save", "save", "save", "rewrite", "branch", "back", "fork", "delete", "limit", "stale")
SCOPES = (None, "red", "blue")


def turn(number: int) -> list[Any]:
    """One to four messages."""
    picture = parts.BinaryImage(b"\x89PNG" + bytes([number]) * 40_000, media_type="image/png")
    question = [f"question {number}", picture] if number % 5 == 0 else f"question {number}"
    return [
        parts.ModelRequest([parts.UserPromptPart(question)]),
        parts.ModelResponse([parts.ThinkingPart("hm"), parts.ToolCallPart("find", {"at": number}, tool_call_id="c")]),
        parts.ModelRequest([parts.ToolReturnPart("find", {"found": 2**40 + number}, tool_call_id="c")]),
        parts.ModelResponse([parts.TextPart(f"answer {number}")]),
    ][: 1 + number % 4]


@pytest.mark.parametrize("seed", range(4))
async def test_histories_are_those_of_the_store_in_memory(store: Store, seed: int) -> None:
    chosen = random.Random(seed)
    ours, theirs = ExaiConversationStore(store), InMemoryConversationStore()
    names = [str(uuid.uuid4()) for _ in range(3)]
    for step in range(STEPS):
        name, kind = chosen.choice(names), chosen.choice(KINDS)
        new, at, scope = turn(chosen.randrange(100)), chosen.randrange(5), chosen.choice(SCOPES)
        results = [await outcome(act(each, kind, name, scope, new, at, f"{name}-{step}")) for each in (ours, theirs)]
        assert results[0] == results[1], (step, kind)
        if kind == "fork" and isinstance(results[0], list):
            names.append(f"{name}-{step}")
    for name in names:
        assert await outcome(entries(ours, name)) == await outcome(entries(theirs, name))
    for scope in SCOPES:
        listed = await ExaiConversationStore(store).list_conversations(scope=scope)
        expected = await theirs.list_conversations(scope=scope)
        assert [each.conversation_id for each in listed if each.conversation_id in names] == [
            each.conversation_id for each in expected
        ]


async def outcome(doing: Any) -> Any:
    """Return a result, or the type of the error."""
    try:
        return await doing
    except (UserError, LookupError) as error:
        return type(error)


async def entries(store: Any, name: str, **options: Any) -> Any:
    """Return the messages of a history: ids are random, and so differ between two stores."""
    found = await store.load_entries(name, **options)
    return None if found is None else [each.message for each in found]


async def act(store: Any, kind: str, name: str, scope: str | None, new: list[Any], at: int, fork: str) -> Any:
    """Do one step with a store, and return what does not depend on ids."""
    if kind == "limit":
        return await entries(store, name, limit=at, scope=scope)
    if kind == "delete":
        return await store.delete(name, scope=scope)
    if kind == "fork":
        return (await store.fork(name, at=at, new_conversation_id=fork, scope=scope)).messages
    loaded = await store.load(name)
    revision = loaded.revision if loaded else None
    if kind == "branch":
        return (await store.branch(name, at=at, expected_revision=revision, scope=scope)).messages
    if kind == "back":
        record = await store.read_record(name)
        tip = record.branches[0] if record and record.branches else "unknown"
        return (await store.branch(name, from_entry=tip, expected_revision=revision)).messages
    conversation = loaded or Conversation(conversation_id=name)
    if kind == "rewrite":
        kept = [*conversation.messages[:at], *new]
        conversation = Conversation(messages=kept, conversation_id=name, revision=revision)
    elif kind == "stale":
        conversation = Conversation(messages=[*conversation.messages, *new], conversation_id=name, revision="stale")
    else:
        conversation.messages.extend(new)
    return [each.message for each in await store.save(conversation, scope=scope)]


async def test_one_of_concurrent_saves_is_stored(store: Store) -> None:
    ours, name = ExaiConversationStore(store), str(uuid.uuid4())
    await ours.save(Conversation(messages=turn(3), conversation_id=name))
    loaded = [await ours.load(name) for _ in range(5)]
    for number, each in enumerate(loaded):
        assert each is not None
        each.messages.extend(turn(number))
    saved = await asyncio.gather(*(ours.save(each) for each in loaded if each), return_exceptions=True)
    stored = [each for each in saved if isinstance(each, list)]
    assert [type(each) for each in saved if not isinstance(each, list)] == [ConversationConflict] * 4
    assert [entry.message for entry in stored[0]] == (await entries(ours, name))[4:]


async def test_agent_continues_its_conversation(store: Store) -> None:
    agent, name = Agent(TestModel(custom_output_text="an answer")), str(uuid.uuid4())
    for turns in (1, 2, 3):
        ours = ExaiConversationStore(store)
        conversation = await ours.load(name) or Conversation(conversation_id=name)
        await ours.save(await agent.run(f"question {turns}", conversation=conversation))
        assert len(await entries(ours, name)) == 2 * turns
    page = await store.conversations.read(LOCAL_OWNER, ContinuationId(f"pydantic-ai/{name}"))
    assert [each.content for each in page.messages][:2] == ["question 1", "an answer"]


async def test_fork_outlives_its_origin(store: Store) -> None:
    ours, name = ExaiConversationStore(store), str(uuid.uuid4())
    saved = await ours.save(Conversation(messages=turn(3), conversation_id=name))
    fork = await ours.fork(name, at=2)
    await ours.delete(name)
    again = ExaiConversationStore(store)
    assert await again.load(name) is None
    assert await entries(again, fork.conversation_id) == [entry.message for entry in saved[:2]]
    assert (await again.read_entry(saved[1].id)).message == saved[1].message


async def test_owners_are_apart(settings: Mapping[str, str]) -> None:
    async with open_app(load_settings(dict(settings))) as app:
        conversation = Conversation(messages=turn(3), conversation_id=str(uuid.uuid4()))
        saved = await ExaiConversationStore(app, owner="alice").save(conversation)
        other = ExaiConversationStore(app, owner="bob")
        assert await other.load(conversation.conversation_id) is None
        assert await other.list_conversations() == []
        with pytest.raises(LookupError):
            await other.read_entry(saved[0].id)


async def test_quick_start_continues_the_conversation(address: str) -> None:
    for turns in (1, 2):
        names = await run_quick_start("pydantic", address, model=TestModel(custom_output_text="San Francisco"))
        assert len((await names["store"].load("conversation_123")).messages) == 2 * turns
        await names["store"].close()
