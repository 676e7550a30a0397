"""Appends under names of the caller's, keys of messages, their times and their items: each one round trip."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from exai.conversations import AppendRequest, ChatRequest
from exai.conversations.formats import read_lines
from exai.errors import Conflict, InvalidArgument, NotFound
from exai.items import dump_item, load_item, readable
from exai.models import LOCAL_OWNER, ContinuationId, Message, NewMessage, Owner
from tests.integration.conversations.conftest import Rig, open_rig

NAME = ContinuationId("session/1")
OTHER = Owner("other")


@pytest.fixture
async def rig(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Rig]:
    """Directly on the database."""
    async with open_rig(postgres_url, redis_url, tmp_path) as opened:
        yield opened


def block(*contents: str, keyed: bool = False) -> list[NewMessage]:
    return [NewMessage("user", text, key=f"k-{text}" if keyed else None) for text in contents]


def named(*messages: NewMessage, name: ContinuationId = NAME, **facts: Any) -> AppendRequest:
    return AppendRequest(LOCAL_OWNER, list(messages), continuation_id=name, create=True, **facts)


async def messages_of(rig: Rig, name: ContinuationId = NAME, owner: Owner = LOCAL_OWNER) -> list[Message]:
    """Read the newest page twice, so that it also comes from the cache, and compare it with the database's."""
    conversations = rig.app.conversations
    await conversations.read(owner, name)
    cached = await conversations.read(owner, name)
    stored = await conversations.read(owner, name, limit=500, whole=True)
    assert [each[:6] for each in cached.messages] == [each[:6] for each in stored.messages][-50:]
    assert [each.key for each in cached.messages] == [each.key for each in stored.messages][-50:]
    return list(stored.messages)


async def contents_of(rig: Rig, name: ContinuationId = NAME) -> list[str]:
    return [message.content for message in await messages_of(rig, name)]


async def test_first_append_makes_the_conversation_in_one_round_trip(rig: Rig) -> None:
    """Also the next ones; title, tags and metadata are those of the first."""
    await rig.app.conversations.append(named(*block("loads a script"), name=ContinuationId("other")))
    for text in ("one", "two"):
        rig.reset()
        request = named(
            *block(text), title=text, tags=[text], metadata={"from": text}, created_at=datetime(2020, 1, 1, tzinfo=UTC)
        )
        appended = await rig.app.conversations.append(request)
        assert rig.cost() == (1, 1)
        assert appended.created is (text == "one")
        assert appended.continuation_id == NAME
    page = await rig.app.conversations.read(LOCAL_OWNER, NAME)
    assert (page.conversation.title, page.conversation.tags, page.conversation.metadata) == (
        "one",
        ("one",),
        {"from": "one"},
    )
    assert page.conversation.created_at == datetime(2020, 1, 1, tzinfo=UTC)
    assert [message.seq for message in page.messages] == [1, 2]


async def test_first_writers_of_a_name_may_race(rig: Rig) -> None:
    """One makes the conversation, none fails, and nothing is lost or interleaved."""
    requests = [named(*block(f"{n} a", f"{n} b")) for n in range(20)]
    appended = await asyncio.gather(*(rig.app.conversations.append(each) for each in requests))
    assert [each.created for each in appended].count(True) == 1
    contents = await contents_of(rig)
    assert sorted(contents) == sorted(f"{n} {part}" for n in range(20) for part in "ab")
    assert all(one[:-1] == other[:-1] for one, other in zip(contents[::2], contents[1::2], strict=True))


async def test_a_name_belongs_to_its_owner(rig: Rig) -> None:
    """The same name of another owner is another conversation."""
    await rig.app.conversations.append(named(*block("mine", keyed=True)))
    theirs = replace(named(*block("theirs", "mine", keyed=True)), owner=OTHER)
    assert (await rig.app.conversations.append(theirs)).seqs == (1, 2)
    assert await contents_of(rig) == ["mine"]
    assert await rig.app.conversations.find(OTHER, ["k-absent"]) == ()
    assert [each.message.content for each in await rig.app.conversations.find(LOCAL_OWNER, ["k-theirs", "k-mine"])] == [
        "mine"
    ]


async def test_repeated_request_makes_one_conversation_and_one_block(rig: Rig) -> None:
    """The key decides, also for concurrent requests; it makes no second conversation elsewhere."""
    request = named(*block("one"), idempotency_key="once")
    first, second = await asyncio.gather(*(rig.app.conversations.append(request) for _ in range(2)))
    assert sorted([first.duplicate, second.duplicate]) == [False, True]
    assert await contents_of(rig) == ["one"]
    elsewhere = named(*block("one"), name=ContinuationId("elsewhere"), idempotency_key="once")
    with pytest.raises(Conflict):
        await rig.app.conversations.append(elsewhere)
    with pytest.raises(NotFound):
        await rig.app.conversations.read(LOCAL_OWNER, ContinuationId("elsewhere"))


async def test_lost_reply_of_the_first_append_is_repeated(rig: Rig) -> None:
    """The retry finds what the lost statement has made."""
    rig.database.lose_reply_to("append_v1")
    appended = await rig.app.conversations.append(named(*block("one", keyed=True)))
    assert (appended.seqs, appended.duplicate, appended.created) == ((1,), False, True)
    assert await contents_of(rig) == ["one"]


async def test_repeated_request_tells_whether_the_first_one_made_the_conversation(rig: Rig) -> None:
    """It answers as the first time, also after other appends; a conversation without a name is always made."""
    append = rig.app.conversations.append
    made = named(*block("one"), idempotency_key="made")
    added = named(*block("two"), idempotency_key="added")
    assert [(await append(each)).created for each in (made, added)] == [True, False]
    again = [await append(each) for each in (made, added)]
    assert [(each.created, each.duplicate) for each in again] == [(True, True), (False, True)]
    unnamed = AppendRequest(LOCAL_OWNER, block("one"), idempotency_key="unnamed")
    assert [(await append(unnamed)).created for _ in range(2)] == [True, True]
    assert (await append(AppendRequest(LOCAL_OWNER, block("one")))).created


async def test_expected_revision_of_a_missing_conversation(rig: Rig) -> None:
    """0 asks for a new one; any other revision is that of a conversation which is not there."""
    with pytest.raises(Conflict, match="revision 0"):
        await rig.app.conversations.append(named(*block("one"), expected_revision=3))
    assert (await rig.app.conversations.append(named(*block("one"), expected_revision=0))).created
    with pytest.raises(Conflict, match="revision 1"):
        await rig.app.conversations.append(named(*block("two"), expected_revision=0))
    assert await contents_of(rig) == ["one"]


async def test_an_empty_conversation_can_be_made(rig: Rig) -> None:
    """Without messages it is made once and then left as it is."""
    assert (await rig.app.conversations.append(named())).created
    again = await rig.app.conversations.append(named())
    assert (again.created, again.revision, again.seqs) == (False, 1, ())
    assert await contents_of(rig) == []
    with pytest.raises(InvalidArgument, match="messages: is empty"):
        await rig.app.conversations.append(replace(named(), create=False))
    with pytest.raises(InvalidArgument, match="create: comes without"):
        await rig.app.conversations.append(AppendRequest(LOCAL_OWNER, block("one"), create=True))


async def test_deleted_name_is_usable_at_once(rig: Rig) -> None:
    """The new conversation has nothing of the former one, not even from the cache, and its revision is higher."""
    first = await rig.app.conversations.append(named(*block("old", "older", keyed=True), idempotency_key="first"))
    assert await contents_of(rig) == ["old", "older"]
    deleted = await rig.app.conversations.delete(LOCAL_OWNER, NAME)
    rig.reset()
    appended = await rig.app.conversations.append(named(*block("new", "old", keyed=True)))
    assert rig.cost() == (1, 1)
    assert appended.created
    assert appended.skipped == ()
    assert appended.revision > deleted.revision > first.revision
    assert await contents_of(rig) == ["new", "old"]
    with pytest.raises(NotFound):
        await rig.app.conversations.append(named(*block("old", "older", keyed=True), idempotency_key="first"))
    assert await contents_of(rig) == ["new", "old"]


async def test_known_keys_are_skipped_in_the_same_statement(rig: Rig) -> None:
    """The result names the numbers of all messages; without a new one nothing changes."""
    await rig.app.conversations.append(named(*block("a", "b", keyed=True)))
    rig.reset()
    appended = await rig.app.conversations.append(named(*block("b", "c", "a", "c", "d", keyed=True)))
    assert rig.cost() == (1, 1)
    assert (appended.seqs, appended.skipped) == ((2, 3, 1, 3, 4), (0, 2, 3))
    assert (appended.first_seq, appended.last_seq) == (3, 4)
    assert await contents_of(rig) == ["a", "b", "c", "d"]
    again = await rig.app.conversations.append(named(*block("a", "d", keyed=True), idempotency_key="again"))
    assert (again.seqs, again.skipped) == ((1, 4), (0, 1))
    assert (again.first_seq, again.last_seq, again.revision) == (0, 0, appended.revision)
    repeated = await rig.app.conversations.append(named(*block("a", "d", keyed=True), idempotency_key="again"))
    assert (repeated.duplicate, repeated.seqs, repeated.skipped) == (True, (1, 4), (0, 1))
    mixed = await rig.app.conversations.append(named(*block("a", keyed=True), *block("a", "b")))
    assert (mixed.seqs, mixed.skipped) == ((1, 5, 6), (0,))


async def test_concurrent_appends_of_one_key_store_one_message(rig: Rig) -> None:
    """A mirror that runs twice does not double its messages."""
    await asyncio.gather(*(rig.app.conversations.append(named(*block("a", "b", "c", keyed=True))) for _ in range(10)))
    assert await contents_of(rig) == ["a", "b", "c"]


async def test_messages_are_found_by_their_keys(rig: Rig) -> None:
    """In one conversation or in all that are not deleted, in the order of the keys."""
    conversations = rig.app.conversations
    await conversations.append(named(*block("a", "b", keyed=True)))
    second = ContinuationId("session/2")
    await conversations.append(named(*block("b", "c", keyed=True), name=second))
    rig.reset()
    found = await conversations.find(LOCAL_OWNER, ["k-c", "k-b", "k-x"])
    assert rig.cost() == (1, 0)
    assert [(each.continuation_id, each.message.seq, each.message.key) for each in found] == [
        (second, 2, "k-c"),
        (second, 1, "k-b"),
        (NAME, 2, "k-b"),
    ]
    here = await conversations.find(LOCAL_OWNER, ["k-b", "k-c"], continuation_id=NAME)
    assert [(each.continuation_id, each.message.content) for each in here] == [(NAME, "b")]
    await conversations.delete(LOCAL_OWNER, second)
    assert [each.continuation_id for each in await conversations.find(LOCAL_OWNER, ["k-b", "k-c"])] == [NAME]
    with pytest.raises(NotFound):
        await conversations.find(LOCAL_OWNER, ["k-b"], continuation_id=second)
    with pytest.raises(InvalidArgument, match=r"keys\[1\]"):
        await conversations.find(LOCAL_OWNER, ["a", ""])


async def test_keys_of_shared_messages_are_known_in_a_fork(rig: Rig) -> None:
    """Up to the message at which it was forked; a named fork can be asked for again."""
    conversations, branch = rig.app.conversations, ContinuationId("branch")
    await conversations.append(named(*block("a", "b", "c", keyed=True)))
    for _ in range(2):
        rig.reset()
        fork = await conversations.fork(LOCAL_OWNER, NAME, at_seq=2, name=branch)
        assert rig.cost() == (1, 1)
        assert (fork.continuation_id, fork.last_seq) == (branch, 2)
    appended = await conversations.append(named(*block("a", "b", "c", "d", keyed=True), name=branch))
    assert (appended.seqs, appended.skipped) == ((1, 2, 3, 4), (0, 1))
    assert await contents_of(rig, branch) == ["a", "b", "c", "d"]
    assert [
        each.message.seq for each in await conversations.find(LOCAL_OWNER, ["k-a", "k-d"], continuation_id=branch)
    ] == [1, 4]
    for at_seq in (1, 3):
        with pytest.raises(Conflict, match="exists"):
            await conversations.fork(LOCAL_OWNER, NAME, at_seq=at_seq, name=branch)


async def test_times_are_those_given_and_the_order_is_that_of_storing(rig: Rig) -> None:
    """Times may go back; the conversation's own time is the latest given, and never that of the future."""
    times = [datetime(2024, 5, 2, 3, 4, 5, 678901, tzinfo=UTC), datetime(2023, 1, 1, tzinfo=UTC)]
    dated = [NewMessage("user", str(at), created_at=at) for at in times]
    await rig.app.conversations.append(named(*dated, updated_at=times[0]))
    assert [message.created_at for message in await messages_of(rig)] == times
    assert (await rig.app.conversations.read(LOCAL_OWNER, NAME)).conversation.updated_at == times[0]
    await rig.app.conversations.append(named(*block("late"), updated_at=times[1]))
    assert (await rig.app.conversations.read(LOCAL_OWNER, NAME)).conversation.updated_at == times[0]
    ahead = datetime.now(UTC) + timedelta(days=9)
    await rig.app.conversations.append(named(*block("ahead"), updated_at=ahead))
    assert (await rig.app.conversations.read(LOCAL_OWNER, NAME)).conversation.updated_at < ahead - timedelta(days=8)
    with pytest.raises(InvalidArgument, match=r"messages\[0\].created_at: has no time zone"):
        await rig.app.conversations.append(named(NewMessage("user", "x", created_at=datetime(2024, 1, 1))))


EXACT: list[Any] = [
    "\0 nul \ud800 half \U0001f600",
    {"n": 2**70, "x": 1.0, "i": 1, "list": [float("inf"), -0.0], "": {"\0": None}},
    "e\u0301 \u00e9 \r\n \u2028",
    [[[]]] * 3,
]


@pytest.mark.parametrize("value", EXACT)
async def test_items_are_returned_to_the_last_character(rig: Rig, value: object) -> None:
    """Also from the cache, in an export, and in a conversation imported from it."""
    text = dump_item(value)
    appended = await rig.app.conversations.append(named(NewMessage("user", readable(str(value)), item=text)))
    assert appended.seqs == (1,)
    assert [message.item for message in await messages_of(rig)] == [text]
    assert load_item(text) == value
    lines = [line async for line in rig.app.transfer.export(LOCAL_OWNER, NAME)]
    parts = list(read_lines("".join(lines).split("\n")))
    copy = ContinuationId("copy")
    async for _ in rig.app.transfer.import_text(LOCAL_OWNER, parts, as_name=copy):
        pass
    assert [message.item for message in await messages_of(rig, copy)] == [text]


async def test_large_items_go_to_files_in_the_same_statement(rig: Rig) -> None:
    """Images in them are stored once by content; read as a whole they are the same text again."""
    image = "data:image/png;base64," + "iVBORw0KGgoAAAANSUhEUgAA" * 4_000
    texts = [dump_item({"image": image, "n": n}) for n in range(2)] + [dump_item("\u00fc\0" * 400_000)]
    assert len(texts[-1]) > 4 * 1_048_576
    messages = [NewMessage("user", "picture", item=text, key=str(n)) for n, text in enumerate(texts)]
    rig.reset()
    await rig.app.conversations.append(named(*messages))
    assert rig.database.round_trips == 1
    assert [message.item for message in await messages_of(rig)] == texts
    plain = await rig.app.conversations.read(LOCAL_OWNER, NAME)
    assert [message.item for message in plain.messages] == [None, None, None]
    found = await rig.app.conversations.find(LOCAL_OWNER, ["2", "0"], whole=True)
    assert [each.message.item for each in found] == [texts[2], texts[0]]
    lines = "".join([line async for line in rig.app.transfer.export(LOCAL_OWNER, NAME)])
    copy = ContinuationId("copy")
    async for _ in rig.app.transfer.import_text(LOCAL_OWNER, read_lines(lines.split("\n")), as_name=copy):
        pass
    assert [(message.item, message.key) for message in await messages_of(rig, copy)] == [
        (text, str(n)) for n, text in enumerate(texts)
    ]


@pytest.mark.parametrize("item", ["\0", "\ud800", 7])
async def test_unstorable_items_are_refused(rig: Rig, item: Any) -> None:
    """The error names the field, and the function that writes items."""
    with pytest.raises(InvalidArgument, match=r"messages\[0\].item"):
        await rig.app.conversations.append(named(NewMessage("user", "x", item=item)))
    with pytest.raises(InvalidArgument, match="exai_item"):
        await rig.app.conversations.append(named(NewMessage("user", "x", metadata={"exai_item": "{}"})))


async def test_a_model_is_not_sent_items(rig: Rig) -> None:
    """A chat continues a named conversation with what is readable of it."""
    await rig.app.conversations.append(named(NewMessage("user", "hello", item=dump_item({"secret": 1}), key="k")))
    await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "go on", continuation_id=NAME))
    assert [part["content"] for part in rig.provider.chats[-1].body["messages"]] == ["hello", "go on"]
