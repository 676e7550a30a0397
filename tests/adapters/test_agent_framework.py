"""The history provider of Microsoft's Agent Framework."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from typing import Any

import pytest

from exai.app import open_app
from exai.conversations import AppendRequest
from exai.errors import InvalidArgument
from exai.models import LOCAL_OWNER, ContinuationId, NewMessage, Owner
from exai.settings.load import load_settings
from exai.store import Store
from tests.adapters.quick_starts import run_quick_start

framework: Any = pytest.importorskip("agent_framework", reason="agent-framework is not installed")

from exai.adapters.agent_framework import ExaiHistoryProvider  # noqa: E402

Content, Message = framework.Content, framework.Message

CONTENTS: dict[str, Any] = {
    "text": Content.from_text("U+0000 \0, half a pair \ud83d and \u2028."),
    "reasoning": Content.from_text_reasoning(text="thinking", protected_data="x"),
    "uri": Content.from_uri("https://example.com/a.png", media_type="image/png"),
    "large data": Content.from_uri("data:image/png;base64," + "QUJD" * 20_000),
    "call": Content.from_function_call("c1", "look_up", arguments={"place": "bridge", "big": 2**70}),
    "result": Content.from_function_result("c1", result="San Francisco"),
    "failed": Content.from_function_result("c1", exception="no such place"),
    "error": Content.from_error(message="refused", error_code="1"),
    "usage": Content.from_usage({"input_token_count": 3}),
    "hosted file": Content.from_hosted_file("file-1"),
    "vector store": Content.from_hosted_vector_store("vs-1"),
}


@pytest.mark.parametrize("kind", CONTENTS)
async def test_contents_are_returned_equal(store: Store, kind: str) -> None:
    provider, session = ExaiHistoryProvider(store), str(uuid.uuid4())
    saved = [
        Message("user", ["question"], author_name="A", message_id="m1", additional_properties={"a": [1, None]}),
        Message("assistant", [CONTENTS[kind]]),
        Message("tool", [CONTENTS[kind], "and text"]),
    ]
    await provider.save_messages(session, saved[:1])
    await provider.save_messages(session, saved[1:])
    found = await provider.get_messages(session)
    assert [each.to_dict() for each in found] == [each.to_dict() for each in saved]


class Scripted(framework.BaseChatClient):
    """Answers with the number of messages that it was given."""

    def _inner_get_response(self, *, messages: Any, stream: bool, options: Any, **kwargs: Any) -> Any:
        async def answer() -> Any:
            return framework.ChatResponse(messages=[Message("assistant", [f"{len(messages)} messages"])])

        return answer()


async def test_agent_continues_its_session(store: Store) -> None:
    session = framework.AgentSession(session_id=str(uuid.uuid4()))
    name = ContinuationId(session.session_id)
    for expected in ("1 messages", "3 messages", "5 messages"):
        agent = framework.Agent(Scripted(), context_providers=[ExaiHistoryProvider(store)])
        assert (await agent.run("question", session=session)).text == expected
    page = await store.conversations.read(LOCAL_OWNER, name)
    assert [message.content for message in page.messages][:2] == ["question", "1 messages"]
    await store.conversations.append(AppendRequest(LOCAL_OWNER, [NewMessage("user", "of another client")], name))
    assert [each.text for each in await ExaiHistoryProvider(store, limit=1).get_messages(name)] == ["of another client"]


async def test_limits_and_missing_sessions(store: Store) -> None:
    session = str(uuid.uuid4())
    await ExaiHistoryProvider(store).save_messages(session, [Message("user", ["mine"])])
    assert await ExaiHistoryProvider(store).get_messages(str(uuid.uuid4())) == []
    assert await ExaiHistoryProvider(store, limit=0).get_messages(session) == []
    with pytest.raises(InvalidArgument, match="session_id"):
        await ExaiHistoryProvider(store).get_messages(None)
    with pytest.raises(InvalidArgument, match="limit"):
        ExaiHistoryProvider(store, limit=-1)


async def test_owners_are_apart(settings: Mapping[str, str]) -> None:
    async with open_app(load_settings(dict(settings))) as app:
        session = str(uuid.uuid4())
        await ExaiHistoryProvider(app, owner="alice").save_messages(session, [Message("user", ["mine"])])
        assert await ExaiHistoryProvider(app, owner="bob").get_messages(session) == []
        assert len((await app.conversations.read(Owner("alice"), ContinuationId(session))).messages) == 1


async def test_cancelled_caller_loses_no_write(store: Store) -> None:
    provider, session = ExaiHistoryProvider(store), str(uuid.uuid4())
    saving = asyncio.create_task(provider.save_messages(session, [Message("user", ["kept"])]))
    await asyncio.sleep(0)
    saving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await saving
    assert [each.text for each in await provider.get_messages(session)] == ["kept"]


async def test_quick_start_continues_the_session(address: str) -> None:
    for expected in (2, 4):
        names = await run_quick_start("microsoft", address, client=Scripted())
        assert len(await names["history"].get_messages("conversation_123")) == expected
        await names["history"].close()
