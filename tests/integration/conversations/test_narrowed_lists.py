"""Lists of conversations by what their turns were, and by the time of their last change."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from exai.cli.browse import newest_id
from exai.conversations import AppendRequest, ChatRequest
from exai.db.filters import WITH_MESSAGES, ListFilter
from exai.db.patches import MetadataPatch, RecordPatch
from exai.errors import InvalidArgument
from exai.models import LOCAL_OWNER, ContinuationId, NewMessage, Owner
from tests.integration.conversations.conftest import Rig, open_rig
from tests.support.many import insert_conversations


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


NAMES = ["a", "a/1", "a/2", "A/3", "a%", "a_b", "ab", "a/\U0010ffff", "á/1", "b", "a/" + "x" * 498]


async def test_names_with_a_prefix_and_every_order(rig: Rig) -> None:
    """The prefix is exact; pages follow each other in each order; one round trip a page."""
    append, listed = rig.app.conversations.append, rig.app.conversations.list
    for number, name in enumerate(NAMES):
        created = datetime(2024, 1, 1 + (number * 5) % len(NAMES), tzinfo=UTC)
        request = AppendRequest(
            LOCAL_OWNER,
            [NewMessage("user", "x")],
            ContinuationId(name),
            create=True,
            created_at=created,
            tags=[name[:1]],
        )
        await append(request)
        await append(replace(request, owner=Owner("other")))

    async def names(limit: int = 3, **more: Any) -> list[str]:
        found: list[str] = []
        cursor: str | None = None
        while True:
            rig.reset()
            page = await listed(LOCAL_OWNER, limit=limit, cursor=cursor, **more)
            assert rig.cost() == (1, 0)
            found += [each.continuation_id for each in page.conversations]
            if page.next_cursor is None:
                return found
            assert page.cursor_after(len(page.conversations)) == page.next_cursor
            cursor = page.next_cursor

    by_creation = sorted(NAMES, key=lambda name: (NAMES.index(name) * 5) % len(NAMES))
    assert await names(ascending=True) == NAMES
    assert await names() == NAMES[::-1]
    assert await names(order="created", ascending=True) == by_creation
    assert await names(order="created") == by_creation[::-1]
    for prefix in ("a", "a/", "a%", "a_", "A", "a/\U0010ffff", "zz", "á"):
        expected = [name for name in by_creation if name.startswith(prefix)]
        assert await names(order="created", ascending=True, only=ListFilter(prefix=prefix)) == expected
        assert {*await names(only=ListFilter(prefix=prefix))} == {*expected}
    only = ListFilter(prefix="a", tags=["a"], part="a/")
    assert await names(only=only, ascending=True) == ["a/1", "a/2", "a/\U0010ffff", NAMES[-1]]
    await rig.app.conversations.delete(LOCAL_OWNER, ContinuationId("a/1"))
    assert "a/1" not in await names(only=ListFilter(prefix="a/"))
    assert await names(only=ListFilter(prefix="a/", deleted=True)) == ["a/1"]
    cursor = (await listed(LOCAL_OWNER, limit=1)).next_cursor
    for wrong in ({"order": "created"}, {"ascending": True}):
        with pytest.raises(InvalidArgument, match="cursor"):
            await listed(LOCAL_OWNER, cursor=cursor, **wrong)
    for more in ({"order": "title"}, {"ascending": 1}, {"only": ListFilter(prefix="a", tool="chat")}):
        with pytest.raises(InvalidArgument):
            await listed(LOCAL_OWNER, **more)


async def test_conversations_without_messages_are_not_listed_for_people_and_models(rig: Rig) -> None:
    """Such as the states that adapters store beside sessions; the page, the command line and models ask so."""
    append, listed = rig.app.conversations.append, rig.app.conversations.list
    state = RecordPatch(ContinuationId("state"), MetadataPatch({"n": 1}))
    spoken = (await append(AppendRequest(LOCAL_OWNER, [NewMessage("user", "x")], also=[state]))).continuation_id
    await append(AppendRequest(LOCAL_OWNER, (), ContinuationId("empty"), create=True))
    rig.reset()
    assert [each.continuation_id for each in (await listed(LOCAL_OWNER, only=WITH_MESSAGES)).conversations] == [spoken]
    assert rig.cost() == (1, 0)
    only = ListFilter(tool="conversation_append", has_messages=True)
    assert [each.continuation_id for each in (await listed(LOCAL_OWNER, only=only)).conversations] == [spoken]
    assert await newest_id(rig.app, LOCAL_OWNER) == spoken
    everything = {each.continuation_id for each in (await listed(LOCAL_OWNER)).conversations}
    assert everything == {spoken, "state", "empty"}
    fork = await rig.app.conversations.fork(LOCAL_OWNER, spoken)
    found = {each.continuation_id for each in (await listed(LOCAL_OWNER, only=WITH_MESSAGES)).conversations}
    assert found == {spoken, fork.continuation_id}
    with pytest.raises(InvalidArgument, match="order: comes with"):
        await listed(LOCAL_OWNER, only=WITH_MESSAGES, ascending=True)
    with pytest.raises(InvalidArgument, match="prefix: comes with"):
        await listed(LOCAL_OWNER, only=ListFilter(prefix="s", has_messages=True))


async def test_ten_thousand_names_with_a_prefix_are_listed_in_pages(rig: Rig, postgres_url: str) -> None:
    """Among as many others: one statement a page, and no page is kept."""
    named = [(f"{'wanted' if number % 2 else 'other'}/{number}", {"n": number}) for number in range(20_000)]
    await insert_conversations(postgres_url, named)
    only, found = ListFilter(prefix="wanted/"), 0
    gc.collect()
    tracemalloc.start()
    try:
        cursor: str | None = None
        while found == 0 or cursor is not None:
            page = await rig.app.conversations.list(
                LOCAL_OWNER, limit=200, cursor=cursor, only=only, order="created", ascending=True
            )
            assert [each.metadata["n"] for each in page.conversations] == list(range(2 * found + 1, 2 * found + 400, 2))
            found, cursor = found + len(page.conversations), page.next_cursor
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    sent = rig.app.recorder.labelled("db_statements_total").items()
    listed = [number for labels, number in sent if dict(labels)["statement"] == "list_conversations_in_order"]
    assert (found, listed) == (10_000, [50])
    assert peak_bytes < 4 * 1_048_576
