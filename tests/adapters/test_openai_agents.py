"""Sessions of the OpenAI Agents SDK, without the SDK: `tests/adapters/test_openai_suite.py` runs its own tests."""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from exai.adapters.openai_agents import ExaiSession
from exai.conversations import AppendRequest
from exai.db.search import SearchQuery
from exai.errors import InvalidArgument
from exai.models import LOCAL_OWNER, ContinuationId, NewMessage, Owner
from exai.store import Store

ITEMS: list[Any] = [
    {"role": "user", "content": "Where is the Golden Gate Bridge?"},
    {"role": "developer", "content": "Be brief."},
    {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [{"type": "summary_text", "text": "a bridge"}],
        "encrypted_content": "x",
    },
    {"type": "function_call", "call_id": "c1", "name": "look_up", "arguments": '{"place":"bridge"}'},
    {"type": "function_call_output", "call_id": "c1", "output": "San Francisco"},
    {
        "type": "message",
        "id": "m1",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": "In San Francisco.", "annotations": []}],
    },
    {"role": "user", "content": "a\0b \ud83d \u2028"},
    {"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64," + "QUJD" * 20_000}]},
    {"role": ["unexpected"], "content": None, "number": 2**70, "float": 1.0, "infinite": math.inf, "type": 7},
    {"role": "assistant", "content": "", "name": "a"},
    {"role": "tool", "content": "x"},
    {},
]


@dataclass
class Wrapper:
    """What the SDK gives as `wrapper`."""

    context: Any


@pytest.fixture
def session(store: Store) -> ExaiSession:
    return ExaiSession(str(uuid.uuid4()), store)


async def test_items_are_returned_equal_and_in_order(session: ExaiSession) -> None:
    await session.add_items(ITEMS[:3])
    await session.add_items([])
    await session.add_items(ITEMS[3:])
    assert await session.get_items() == ITEMS
    for count in range(1, len(ITEMS) + 2):
        assert await session.get_items(count) == ITEMS[-count:]
    assert await session.get_items(0) == []
    assert await session.get_items(-1) == ITEMS


async def test_an_unknown_session_is_empty_and_is_not_made_by_reading_it(store: Store) -> None:
    session = ExaiSession(str(uuid.uuid4()), store)
    assert await session.get_items() == []
    assert await session.pop_item() is None
    await session.clear_session()
    listed = await store.conversations.list(LOCAL_OWNER)
    assert session.session_id not in [each.continuation_id for each in listed.conversations]


async def test_the_default_limit_is_that_of_the_settings(store: Store) -> None:
    for settings in ({"limit": 2}, type("Settings", (), {"limit": 2})()):
        session = ExaiSession(str(uuid.uuid4()), store, session_settings=settings)
        await session.add_items(ITEMS[:4])
        assert await session.get_items() == ITEMS[2:4]
        assert await session.get_items(3) == ITEMS[1:4]


async def test_concurrent_pops_differ_and_what_is_popped_is_gone(session: ExaiSession) -> None:
    items = [{"role": "user", "content": f"message {number}"} for number in range(12)]
    await session.add_items(items)
    popped = await asyncio.gather(*(session.pop_item() for _ in range(8)))
    assert sorted(popped, key=items.index) == items[4:]
    assert await session.get_items() == items[:4]
    assert [await session.pop_item() for _ in range(5)] == [*reversed(items[:4]), None]
    await session.add_items(ITEMS[:1])
    assert await session.get_items() == ITEMS[:1]


async def test_a_cleared_session_is_used_again_under_its_id(session: ExaiSession) -> None:
    await session.add_items(ITEMS)
    await session.clear_session()
    assert await session.get_items() == []
    await session.add_items(ITEMS[:2])
    assert await session.get_items() == ITEMS[:2]


async def test_first_writers_of_a_session_race_without_loss(store: Store) -> None:
    name = str(uuid.uuid4())
    batches = [[{"role": "user", "content": f"{writer}.{number}"} for number in range(5)] for writer in range(6)]
    await asyncio.gather(*(ExaiSession(name, store).add_items(batch) for batch in batches))
    found = await ExaiSession(name, store).get_items()
    blocks = [found[at : at + 5] for at in range(0, 30, 5)]
    assert sorted(blocks, key=str) == sorted(batches, key=str)


async def test_a_cancelled_caller_loses_no_write(session: ExaiSession) -> None:
    task = asyncio.create_task(session.add_items(ITEMS[:2]))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    stored = await session.get_items()
    assert stored in ([], ITEMS[:2])


async def test_an_item_that_is_no_json_stores_nothing(session: ExaiSession) -> None:
    with pytest.raises(TypeError):
        await session.add_items([{"role": "user", "content": "first"}, {"role": "user", "content": object()}])
    assert await session.get_items() == []


async def test_the_owner_is_that_of_the_run(store: Store) -> None:
    owner_of: Callable[[Any], str] = lambda context: context["tenant"]  # noqa: E731
    session = ExaiSession(str(uuid.uuid4()), store, owner=owner_of)
    local = Wrapper({"tenant": LOCAL_OWNER})
    await session.add_items(ITEMS[:2], wrapper=local)
    assert await session.get_items(wrapper=local) == ITEMS[:2]
    assert await session.pop_item(wrapper=local) == ITEMS[1]
    await session.clear_session(wrapper=local)
    assert await session.get_items(wrapper=local) == []
    with pytest.raises(InvalidArgument, match="wrapper"):
        await session.get_items()


async def test_sessions_of_one_id_and_several_owners_are_separate(settings: Any) -> None:
    from exai.app import open_app
    from exai.settings.load import load_settings

    async with open_app(load_settings(dict(settings))) as app:
        session = ExaiSession("shared", app, owner=lambda context: context)
        alice, bob = Wrapper("alice"), Wrapper("bob")
        await session.add_items(ITEMS[:1], wrapper=alice)
        await session.add_items(ITEMS[1:3], wrapper=bob)
        await session.clear_session(wrapper=bob)
        assert await session.get_items(wrapper=alice) == ITEMS[:1]
        assert await session.get_items(wrapper=bob) == []
        page = await app.conversations.read(Owner("alice"), ContinuationId("shared"))
        assert page.conversation.owner == "alice"


async def test_other_clients_read_search_and_continue_a_session(store: Store) -> None:
    name = ContinuationId(f"trip {uuid.uuid4()}")
    session = ExaiSession(name, store)
    await session.add_items(ITEMS[:6])
    page = await store.conversations.read(LOCAL_OWNER, name)
    assert [(each.role, each.kind, each.content) for each in page.messages] == [
        ("user", "message", "Where is the Golden Gate Bridge?"),
        ("system", "message", "Be brief."),
        ("assistant", "reasoning", "a bridge"),
        ("assistant", "function_call", 'look_up({"place":"bridge"})'),
        ("tool", "function_call_output", "San Francisco"),
        ("assistant", "message", "In San Francisco."),
    ]
    found = await store.conversations.search(SearchQuery(LOCAL_OWNER, "francisco", continuation_id=name))
    assert {hit.seq for hit in found.hits} == {5, 6}
    await store.conversations.append(AppendRequest(LOCAL_OWNER, [NewMessage("user", "And then?")], name))
    assert (await session.get_items())[-1] == {"role": "user", "content": "And then?"}


@pytest.mark.parametrize("session_id", ["", "x" * 600, "a\0b", "\ud800", "ü/%2F ~", " "])
async def test_any_text_is_the_id_of_a_session(store: Store, session_id: str) -> None:
    session = ExaiSession(session_id, store)
    await session.clear_session()
    await session.add_items(ITEMS[:1])
    assert await session.get_items() == ITEMS[:1]
    assert await ExaiSession(session_id + "y", store).get_items() == []


async def test_long_items_and_many_items_are_returned_whole(session: ExaiSession) -> None:
    items = [{"role": "user", "content": f"{number}"} for number in range(1_203)]
    items[700] = {"type": "function_call_output", "call_id": "c", "output": "line of a log\n" * 450_000}
    await session.add_items(items)
    assert await session.get_items() == items
    assert await session.get_items(600) == items[-600:]


async def test_a_session_at_an_address_is_used_by_several_loops(address: str) -> None:
    session = ExaiSession(str(uuid.uuid4()), address)
    await session.add_items(ITEMS[:1])
    await asyncio.to_thread(lambda: asyncio.run(session.add_items(ITEMS[1:2])))
    await asyncio.to_thread(lambda: asyncio.run(session.add_items(ITEMS[2:3])))
    assert await session.get_items() == ITEMS[:3]
    await session.close()
    await session.close()
