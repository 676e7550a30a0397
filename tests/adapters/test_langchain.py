"""The mirror of LangChain agents, with a scripted model."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import pytest

from exai.app import open_app
from exai.client import blocking, connect, connect_blocking
from exai.db.search import SearchQuery
from exai.errors import InvalidArgument
from exai.items import load_item
from exai.models import LOCAL_OWNER, ContinuationId, Message, Owner
from exai.settings.load import load_settings
from exai.store import Store

pytest.importorskip("langchain.agents", reason="langchain is not installed")

from langchain.agents import create_agent
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langgraph.checkpoint.memory import InMemorySaver

from exai.adapters.langchain import ExaiMirror
from tests.adapters.quick_starts import run_quick_start

WORD = "quicksilver"
EXPECTED = [
    ("user", f"Where is the {WORD}?"),
    ("assistant", 'look_up({"place":"cellar"})'),
    ("tool", "found in cellar"),
    ("assistant", "In the cellar."),
    ("user", "Thanks."),
    ("assistant", "At your service."),
]


def look_up(place: str) -> str:
    """Look a place up."""
    return f"found in {place}"


class Scripted(GenericFakeChatModel):
    """Gives its messages in turn."""

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self


def agent(mirror: ExaiMirror, **options: Any) -> Any:
    call = {"name": "look_up", "args": {"place": "cellar"}, "id": "c1", "type": "tool_call"}
    answers = [AIMessage("", tool_calls=[call]), AIMessage("In the cellar."), AIMessage("At your service.")]
    model = Scripted(messages=iter(answers))
    return create_agent(model, [look_up], middleware=[mirror], checkpointer=InMemorySaver(), **options)


def questions(thread: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    config = {"configurable": {"thread_id": thread}}
    return [({"messages": [{"role": "user", "content": text}]}, config) for text in (EXPECTED[0][1], EXPECTED[4][1])]


def shown(messages: tuple[Message, ...]) -> list[tuple[str, str]]:
    return [(each.role, each.content) for each in messages]


async def test_messages_are_mirrored_once_and_found(store: Store) -> None:
    thread = str(uuid.uuid4())
    scripted = agent(ExaiMirror(store))
    for question, config in questions(thread):
        await scripted.ainvoke(question, config)
    page = await store.conversations.read(LOCAL_OWNER, ContinuationId(thread))
    assert shown(page.messages) == EXPECTED
    items = [load_item(each.item or "") for each in page.messages]
    assert [each["type"] for each in items] == ["human", "ai", "tool", "ai", "human", "ai"]
    # Another process knows no message: all are sent, and none is stored again.
    again = create_agent(
        Scripted(messages=iter([AIMessage("No.")])), middleware=[ExaiMirror(store)], checkpointer=scripted.checkpointer
    )
    await again.ainvoke({"messages": [{"role": "user", "content": "More?"}]}, questions(thread)[0][1])
    page = await store.conversations.read(LOCAL_OWNER, ContinuationId(thread))
    assert shown(page.messages) == [*EXPECTED, ("user", "More?"), ("assistant", "No.")]
    found = await store.conversations.search(SearchQuery(LOCAL_OWNER, WORD))
    assert thread in {hit.continuation_id for hit in found.hits}


def test_synchronous_agent_needs_no_event_loop(settings: Mapping[str, str], address: str) -> None:
    with blocking(open_app(load_settings(dict(settings)))) as in_process, connect_blocking(address) as client:
        for store in (in_process, client, address):
            thread, mirror = str(uuid.uuid4()), ExaiMirror(store)
            scripted = agent(mirror)
            for question, config in questions(thread):
                scripted.invoke(question, config)
            page = client.conversations.read(LOCAL_OWNER, ContinuationId(thread))
            assert shown(page.messages) == EXPECTED
            mirror.close()


async def test_owner_comes_from_the_context(settings: Mapping[str, str]) -> None:
    async with open_app(load_settings(dict(settings))) as app:
        thread = str(uuid.uuid4())
        scripted = agent(ExaiMirror(app, owner=lambda context: context["user"]), context_schema=dict)
        question, config = questions(thread)[0]
        await scripted.ainvoke(question, config, context={"user": "alice"})
        page = await app.conversations.read(Owner("alice"), ContinuationId(thread))
        assert shown(page.messages) == EXPECTED[:4]


async def test_missing_threads_and_wrong_stores_are_refused(settings: Mapping[str, str]) -> None:
    async with open_app(load_settings(dict(settings))) as app:
        with pytest.raises(InvalidArgument, match="thread_id"):
            await create_agent(Scripted(messages=iter([])), middleware=[ExaiMirror(app)]).ainvoke({"messages": []})
        question, config = questions("thread")[0]
        with pytest.raises(InvalidArgument, match="store"):
            agent(ExaiMirror(app)).invoke(question, config)


async def test_quick_start_mirrors_the_thread(address: str) -> None:
    model = Scripted(messages=iter([AIMessage("San Francisco")]))
    await run_quick_start("langchain", address, model=model)
    async with connect(address) as client:
        page = await client.conversations.read(LOCAL_OWNER, ContinuationId("conversation_123"))
    assert shown(page.messages) == [
        ("user", "What city is the Golden Gate Bridge in?"),
        ("assistant", "San Francisco"),
    ]
