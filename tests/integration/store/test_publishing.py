"""Every change of a conversation is applied to Redis before it is acknowledged: no later read is older.

Passes are off and the bound is a minute, so that nothing else could make up for a change that was not told.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from exai.conversations import AppendRequest, ChatRequest
from exai.conversations.formats import ConversationText, MessageText
from exai.db.lifecycle import ConversationUpdate
from exai.errors import InvalidArgument, NotFound
from exai.models import LOCAL_OWNER, ContinuationId, NewMessage
from tests.fault.service import NO_PASS_S, Servers, Service

MANY = 600


def text_of(name: str, messages: int) -> list[ConversationText | MessageText]:
    """An exported conversation."""
    numbers = range(1, messages + 1)
    return [
        ConversationText(name),
        *(MessageText(number, NewMessage("user", f"m{number}"), None, "") for number in numbers),
    ]


async def appends(writer: Service, name: ContinuationId) -> None:
    await writer.append(name, "more")


async def chats(writer: Service, name: ContinuationId) -> None:
    await writer.app.chat.run(ChatRequest(LOCAL_OWNER, "more?", continuation_id=name))


async def renames(writer: Service, name: ContinuationId) -> None:
    await writer.conversations.change(LOCAL_OWNER, name, ConversationUpdate(title="new"))


async def marks(writer: Service, name: ContinuationId) -> None:
    await writer.conversations.change(LOCAL_OWNER, name, ConversationUpdate(metadata={"a": 1}, tags=("t",)))


async def deletes_and_restores(writer: Service, name: ContinuationId) -> None:
    await writer.conversations.delete(LOCAL_OWNER, name)
    await writer.conversations.restore(LOCAL_OWNER, name)


CHANGES = [appends, chats, renames, marks, deletes_and_restores]


async def two(rig: Servers) -> tuple[Service, Service]:
    """A writer and a reader, which the cache treats as two processes."""
    return (
        await rig.open(max_staleness_s=60, reconcile_interval_s=NO_PASS_S),
        await rig.open(max_staleness_s=60, reconcile_interval_s=NO_PASS_S),
    )


@pytest.mark.parametrize("change", CHANGES)
async def test_change_is_seen_by_the_next_reader_who(
    change: Callable[[Service, ContinuationId], Awaitable[None]], rig: Servers
) -> None:
    """The page read from anywhere after the acknowledgement is the stored one, header and all."""
    writer, reader = await two(rig)
    name = (await writer.append(None, "one")).continuation_id
    before = await reader.read(name)
    # A miss is stored in Redis after the reader was answered.
    await reader.app.cache.wait_settled()
    assert (await reader.read(name)).source == "cache"
    await change(writer, name)
    after = await reader.read(name)
    stored = await reader.conversations.read(LOCAL_OWNER, name, before_seq=MANY)
    assert (after.messages, after.conversation) == (stored.messages, stored.conversation)
    assert after.conversation.revision > before.conversation.revision


async def test_deleted_conversation_is_gone_for_every_reader(rig: Servers) -> None:
    """Deleting is a change like any other."""
    writer, reader = await two(rig)
    name = (await writer.append(None, "one")).continuation_id
    await reader.read(name)
    await writer.conversations.delete(LOCAL_OWNER, name)
    for service in (reader, writer):
        with pytest.raises(NotFound):
            await service.read(name)


async def test_each_batch_of_an_import_is_seen_by_the_next_reader(rig: Servers) -> None:
    """A large import shows itself batch by batch; a reader who was there for the first one misses none of the rest."""
    writer, reader = await two(rig)
    name = ContinuationId("imported")
    seen = []
    async for progress in writer.app.transfer.import_text(LOCAL_OWNER, text_of(name, MANY)):
        page = await reader.read(name)
        seen.append((page.conversation.last_seq, page.messages[-1].seq))
        assert page.conversation.revision == progress.revision
    assert len(seen) > 1
    assert seen[-1] == (MANY, MANY)


async def test_deep_metadata_comes_back_as_it_went_in(rig: Servers) -> None:
    """A hundred levels, in two ways: from the database, and as it was cached by the append; far deeper is refused."""
    writer, reader = await two(rig)
    deep: dict[str, object] = {"bottom": ["\u20ac", None, 0.1, True]}
    for _ in range(100):
        deep = {"a": [deep]}
    name = (await writer.append(None, "one")).continuation_id
    await writer.read(name)
    message = NewMessage("user", "two", metadata=deep)
    await writer.conversations.append(AppendRequest(LOCAL_OWNER, [message], name))
    cached = await reader.read(name)
    stored = await reader.conversations.read(LOCAL_OWNER, name, before_seq=MANY)
    assert (cached.source, stored.source) == ("cache", "database")
    assert cached.messages[-1].metadata == stored.messages[-1].metadata == deep
    for _ in range(9_900):
        deep = {"a": deep}
    with pytest.raises(InvalidArgument, match=r"messages\[0\].metadata"):
        await writer.conversations.append(
            AppendRequest(LOCAL_OWNER, [NewMessage("user", "three", metadata=deep)], name)
        )
    assert (await reader.read(name)).messages == cached.messages


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\0", "\ud800", object(), {"a": 2**70}])
async def test_metadata_that_is_no_json_changes_nothing(rig: Servers, value: object) -> None:
    """Refused by the field's name before anything is sent."""
    service, _ = await two(rig)
    name = (await service.append(None, "one")).continuation_id
    with pytest.raises(InvalidArgument) as caught:
        await service.conversations.change(LOCAL_OWNER, name, ConversationUpdate(metadata={"a": {"b": [value]}}))
    assert (caught.value.field, bool(caught.value.cure)) == ("metadata", True)
    assert (await service.read(name)).conversation.revision == 1
