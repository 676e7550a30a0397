"""After every kind of change the cached page equals the page in the database."""

from __future__ import annotations

from pathlib import Path

import pytest

from exai.cache.records import Hit
from exai.conversations import AppendRequest, ChatRequest
from exai.db.conversations import ConversationRepository
from exai.models import LOCAL_OWNER, PAGE_MESSAGES, ContinuationId, ConversationKey, NewMessage
from tests.integration.conversations.conftest import Rig, open_rig


def words(count: int) -> list[NewMessage]:
    return [
        NewMessage("user", f"words {number}", metadata={"é": [1, 2.5, None, {"deep": True}]}) for number in range(count)
    ]


async def append(rig: Rig, continuation_id: ContinuationId | None, count: int) -> ContinuationId:
    request = AppendRequest(LOCAL_OWNER, words(count), continuation_id=continuation_id, title="A title")
    return (await rig.app.conversations.append(request)).continuation_id


async def chat(rig: Rig, continuation_id: ContinuationId) -> None:
    await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Hello", continuation_id=continuation_id))


async def expect_same(rig: Rig, continuation_id: ContinuationId) -> None:
    cached = await rig.app.cache.read(ConversationKey(LOCAL_OWNER, continuation_id))
    stored = await ConversationRepository(rig.app.database).read_page(
        ConversationKey(LOCAL_OWNER, continuation_id), limit=PAGE_MESSAGES
    )
    assert isinstance(cached, Hit)
    assert cached.conversation == stored.conversation
    assert cached.messages == stored.messages
    assert cached.complete == (not stored.has_older)


@pytest.mark.parametrize("size", [1, 49, 50, 51])
async def test_page_is_the_same_however_it_came_to_be_cached(
    postgres_url: str, redis_url: str, tmp_path: Path, size: int
) -> None:
    """Filled by a read, moved on by an append and by a turn, and stored whole by a turn that found nothing."""
    async with open_rig(postgres_url, redis_url, tmp_path) as rig:
        name = await append(rig, None, size)
        await rig.app.conversations.read(LOCAL_OWNER, name)
        await expect_same(rig, name)
        await append(rig, name, 2)
        await expect_same(rig, name)
        await chat(rig, name)
        await expect_same(rig, name)
        fork = await rig.app.conversations.fork(LOCAL_OWNER, name)
        await chat(rig, fork.continuation_id)
        await expect_same(rig, fork.continuation_id)


@pytest.mark.parametrize("entry_max_bytes", [1_024, 4_096, 8_192])
async def test_page_is_the_same_however_little_an_entry_may_hold(
    postgres_url: str, redis_url: str, tmp_path: Path, entry_max_bytes: int
) -> None:
    """A page that has become too large for an entry is read from the database."""
    async with open_rig(postgres_url, redis_url, tmp_path, entry_max_bytes=entry_max_bytes) as rig:
        name = await append(rig, None, 1)
        sources = set()
        for number in range(1, 70):
            read = await rig.app.conversations.read(LOCAL_OWNER, name)
            sources.add(read.source)
            assert len(read.messages) == min(number, PAGE_MESSAGES)
            assert (read.next_before_seq is None) == (number <= PAGE_MESSAGES)
            await append(rig, name, 1)
        assert sources == {"cache", "database"}
