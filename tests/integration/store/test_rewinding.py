"""Rewinds, and names that are used again: what is read afterwards, what is kept, what concurrent callers receive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from exai.conversations import AppendRequest, ChatRequest
from exai.conversations.formats import read_lines
from exai.db.filters import ListFilter
from exai.db.lifecycle import CurationRepository
from exai.db.search import SearchQuery
from exai.errors import Conflict, InvalidArgument, NotFound
from exai.models import LOCAL_OWNER, ContinuationId, ConversationKey, Message, NewMessage, Owner
from tests.integration.conversations.conftest import Rig, open_rig

NAME = ContinuationId("session/1")
LETTERS = "abcdefghij"


@pytest.fixture
async def rig(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Rig]:
    """Directly on the database."""
    async with open_rig(postgres_url, redis_url, tmp_path) as opened:
        yield opened


async def append(rig: Rig, contents: str, name: ContinuationId = NAME, key: str | None = None) -> int:
    """Append one message for each letter."""
    messages = [NewMessage("user", letter, key=letter) for letter in contents]
    request = AppendRequest(LOCAL_OWNER, messages, continuation_id=name, create=True, idempotency_key=key)
    return (await rig.app.conversations.append(request)).revision


async def text_of(rig: Rig, name: ContinuationId = NAME) -> str:
    """Read a conversation from the database and twice through the cache; all agree."""
    pages = [await rig.app.conversations.read(LOCAL_OWNER, name, limit=limit) for limit in (500, 50, 50)]
    first, *others = (tuple(message[:6] for message in page.messages[-50:]) for page in pages)
    assert all(each == first for each in others)
    assert len({page.conversation.last_seq for page in pages}) == 1
    assert [message.seq for message in pages[0].messages] == [*range(1, len(pages[0].messages) + 1)]
    return letters(pages[0].messages)


def letters(messages: tuple[Message, ...]) -> str:
    return "".join(message.content for message in messages)


async def test_rewind_keeps_the_name_and_what_was_before(rig: Rig) -> None:
    """One round trip; the numbers, the keys and the name are free for what comes then."""
    await append(rig, "abcde")
    assert await text_of(rig) == "abcde"
    rig.reset()
    rewound = await rig.app.conversations.rewind(LOCAL_OWNER, NAME, to_seq=2)
    assert rig.cost() == (1, 1)
    assert (letters(rewound.cut), rewound.cut_count, rewound.conversation.last_seq) == ("cde", 3, 2)
    assert [message.key for message in rewound.cut] == ["c", "d", "e"]
    assert await text_of(rig) == "ab"
    await append(rig, "xe")
    assert await text_of(rig) == "abxe"
    assert rewound.cut_id
    restored = await rig.app.conversations.restore(LOCAL_OWNER, rewound.cut_id)
    assert (restored.former_name, restored.last_seq) == (NAME, 5)
    assert await text_of(rig, rewound.cut_id) == "abcde"
    assert await text_of(rig) == "abxe"


@pytest.mark.parametrize("count", [1, 3])
async def test_concurrent_pops_return_different_messages(rig: Rig, count: int) -> None:
    """Each message once, without an expected revision; beyond the last one nothing is returned."""
    await append(rig, LETTERS)
    pops = (rig.app.conversations.rewind(LOCAL_OWNER, NAME, drop=count) for _ in range(12))
    popped = [letters(each.cut) for each in await asyncio.gather(*pops)]
    assert sorted("".join(popped)) == [*LETTERS]
    assert await text_of(rig) == ""
    again = await rig.app.conversations.rewind(LOCAL_OWNER, NAME, drop=1)
    assert (again.cut, again.cut_count, again.cut_id) == ((), 0, None)


async def test_pops_in_a_row_leave_one_deleted_conversation(rig: Rig) -> None:
    """However many there are, it has everything; a long chain of conversations would not be readable."""
    signs = "".join(chr(0x4E00 + number) for number in range(80))
    await append(rig, signs)
    names = set()
    for last in range(79, 5, -1):
        rewound = await rig.app.conversations.rewind(LOCAL_OWNER, NAME, drop=1)
        assert rewound.conversation.last_seq == last
        names.add(rewound.cut_id)
    (name,) = names
    assert name is not None
    await rig.app.conversations.restore(LOCAL_OWNER, name)
    assert await text_of(rig, name) == signs
    assert await text_of(rig) == signs[:6]


async def test_rewind_with_an_old_revision_is_refused(rig: Rig) -> None:
    """As for an append; and nothing is cut."""
    revision = await append(rig, "abc")
    await append(rig, "d")
    with pytest.raises(Conflict, match="revision"):
        await rig.app.conversations.rewind(LOCAL_OWNER, NAME, to_seq=1, expected_revision=revision)
    assert await text_of(rig) == "abcd"


async def test_repeated_rewind_cuts_once_and_returns_the_same(rig: Rig) -> None:
    """Also if the reply was lost, and after later changes."""
    await append(rig, "abcd")
    rig.database.lose_reply_to("rewind_v1")
    first = await rig.app.conversations.rewind(LOCAL_OWNER, NAME, drop=1, idempotency_key="pop")
    assert (letters(first.cut), first.duplicate) == ("d", False)
    await append(rig, "xy")
    second = await rig.app.conversations.rewind(LOCAL_OWNER, NAME, drop=1, idempotency_key="pop")
    assert (letters(second.cut), second.duplicate, second.cut_id) == ("d", True, first.cut_id)
    assert await text_of(rig) == "abcxy"
    with pytest.raises(Conflict, match="other content"):
        await rig.app.conversations.rewind(LOCAL_OWNER, NAME, drop=2, idempotency_key="pop")


async def test_append_repeated_after_its_messages_were_cut_stores_nothing(rig: Rig) -> None:
    """Its request was served; other messages have its numbers now."""
    await append(rig, "a")
    await append(rig, "bc", key="once")
    await rig.app.conversations.rewind(LOCAL_OWNER, NAME, drop=1)
    await append(rig, "xyz")
    request = AppendRequest(
        LOCAL_OWNER,
        [NewMessage("user", letter, key=letter) for letter in "bc"],
        continuation_id=NAME,
        create=True,
        idempotency_key="once",
    )
    again = await rig.app.conversations.append(request)
    assert (again.duplicate, again.seqs) == (True, (2, 3))
    assert await text_of(rig) == "abxyz"


async def test_bad_numbers_and_names_are_refused(rig: Rig) -> None:
    """With the numbers that can be used."""
    await append(rig, "ab")
    rewind = rig.app.conversations.rewind
    with pytest.raises(InvalidArgument, match="Use 0 to 2"):
        await rewind(LOCAL_OWNER, NAME, to_seq=3)
    for numbers in ({}, {"to_seq": 1, "drop": 1}, {"drop": 0}, {"to_seq": -1}):
        with pytest.raises(InvalidArgument):
            await rewind(LOCAL_OWNER, NAME, **numbers)
    with pytest.raises(NotFound):
        await rewind(Owner("other"), NAME, to_seq=0)
    await rig.app.conversations.delete(LOCAL_OWNER, NAME)
    with pytest.raises(NotFound):
        await rewind(LOCAL_OWNER, NAME, to_seq=0)


@pytest.mark.parametrize(("at", "to"), [(2, 4), (4, 2), (4, 4), (5, 0), (3, 0)])
async def test_forks_keep_what_they_show(rig: Rig, at: int, to: int) -> None:
    """Whether they were made before or after the message to which their source is rewound."""
    await append(rig, "abcde")
    fork, second = ContinuationId("fork"), ContinuationId("second")
    await rig.app.conversations.fork(LOCAL_OWNER, NAME, at_seq=at, name=fork)
    await append(rig, "xyz", fork)
    await rig.app.conversations.fork(LOCAL_OWNER, fork, at_seq=1, name=second)
    await rig.app.conversations.fork(LOCAL_OWNER, fork, at_seq=at + 1, name=ContinuationId("third"))
    shown = "abcde"[:at]
    assert await text_of(rig, fork) == f"{shown}xyz"
    rewound = await rig.app.conversations.rewind(LOCAL_OWNER, NAME, to_seq=to)
    await append(rig, "12345678")
    assert await text_of(rig) == "abcde"[:to] + "12345678"
    assert await text_of(rig, fork) == f"{shown}xyz"
    assert await text_of(rig, second) == "a"
    assert await text_of(rig, ContinuationId("third")) == f"{shown}x"
    assert rewound.cut_id is not None
    await rig.app.conversations.restore(LOCAL_OWNER, rewound.cut_id)
    assert await text_of(rig, rewound.cut_id) == "abcde"


@pytest.mark.parametrize("to", [0, 2, 4, 6])
async def test_a_fork_is_rewound_into_what_it_shares(rig: Rig, to: int) -> None:
    """The source keeps its messages, and the cut ones are all there again when they are restored."""
    await append(rig, "abcde")
    fork = ContinuationId("fork")
    await rig.app.conversations.fork(LOCAL_OWNER, NAME, at_seq=4, name=fork)
    await append(rig, "xyz", fork)
    rewound = await rig.app.conversations.rewind(LOCAL_OWNER, fork, to_seq=to)
    assert letters(rewound.cut) == "abcdxyz"[to:]
    assert await text_of(rig, fork) == "abcdxyz"[:to]
    await append(rig, "12", fork)
    assert await text_of(rig, fork) == "abcdxyz"[:to] + "12"
    assert await text_of(rig) == "abcde"
    assert rewound.cut_id is not None
    await rig.app.conversations.restore(LOCAL_OWNER, rewound.cut_id)
    assert await text_of(rig, rewound.cut_id) == "abcdxyz"


async def test_rewinds_appends_and_forks_at_once_lose_nothing(rig: Rig) -> None:
    """A fork has the messages that its source had at one moment, never those of two."""
    await append(rig, LETTERS)
    conversations = rig.app.conversations

    async def branch(number: int) -> ContinuationId | None:
        try:
            return (
                await conversations.fork(LOCAL_OWNER, NAME, at_seq=8, name=ContinuationId(f"f{number}"))
            ).continuation_id
        except InvalidArgument:
            return None

    async def back_and_forth(number: int) -> None:
        await conversations.rewind(LOCAL_OWNER, NAME, to_seq=5)
        await append(rig, f"{number}!?")

    work = (each for number in range(6) for each in (branch(number), back_and_forth(number)))
    names = [name for name in await asyncio.gather(*work) if name]
    for name in names:
        text = await text_of(rig, name)
        assert len(text) == 8
        assert text[:5] == "abcde"
        assert text[5:] == "fgh" or text[6:] == "!?"


async def test_chat_after_a_rewind_is_built_on_what_is_left(rig: Rig) -> None:
    """Although the page with the cut messages was cached; a repeated call of the cut turn returns its answer."""
    await append(rig, "ab")
    first = await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "question", continuation_id=NAME, idempotency_key="turn"))
    await rig.app.conversations.read(LOCAL_OWNER, NAME)
    await rig.app.conversations.rewind(LOCAL_OWNER, NAME, drop=1)
    await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "other", continuation_id=NAME))
    assert [part["content"] for part in rig.provider.chats[-1].body["messages"]] == ["a", "b", "question", "other"]
    asked = len(rig.provider.chats)
    again = await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "question", continuation_id=NAME, idempotency_key="turn"))
    assert (again.content, again.duplicate) == (first.content, True)
    assert len(rig.provider.chats) == asked


async def test_search_and_exports_show_what_is_left(rig: Rig) -> None:
    """Words of cut messages are not found, indexed or not, until they are restored."""
    for text in ("penguins", "ostriches", "penguins again"):
        request = AppendRequest(LOCAL_OWNER, [NewMessage("user", text)], continuation_id=NAME, create=True)
        await rig.app.conversations.append(request)
    await rig.app.maintenance.index_words()
    rewound = await rig.app.conversations.rewind(LOCAL_OWNER, NAME, to_seq=1)
    for _ in range(2):
        found = await rig.app.conversations.search(SearchQuery(LOCAL_OWNER, "penguins"))
        assert [(hit.continuation_id, hit.seq) for hit in found.hits] == [(NAME, 1)]
        assert (await rig.app.conversations.search(SearchQuery(LOCAL_OWNER, "ostriches"))).hits == ()
        await rig.app.maintenance.index_words()
    exported = "".join([part async for part in rig.app.transfer.export(LOCAL_OWNER, NAME)])
    assert "again" not in exported
    assert rewound.cut_id is not None
    await rig.app.conversations.restore(LOCAL_OWNER, rewound.cut_id)
    found = await rig.app.conversations.search(SearchQuery(LOCAL_OWNER, "ostriches"))
    assert [hit.continuation_id for hit in found.hits] == [rewound.cut_id]


async def test_a_deleted_conversation_is_restored_under_the_name_that_the_error_gives(rig: Rig) -> None:
    """Once another one has its name; while the name is free, it is restored as before."""
    conversations = rig.app.conversations
    await append(rig, "old")
    await conversations.delete(LOCAL_OWNER, NAME)
    await conversations.restore(LOCAL_OWNER, NAME)
    await conversations.delete(LOCAL_OWNER, NAME)
    await append(rig, "new")
    with pytest.raises(Conflict, match="Restore the deleted one as") as refused:
        await conversations.restore(LOCAL_OWNER, NAME)
    name = ContinuationId(refused.value.facts["continuation_id"])
    (listed,) = (await conversations.list(LOCAL_OWNER, only=ListFilter(deleted=True))).conversations
    assert listed.continuation_id == name
    assert (await conversations.restore(LOCAL_OWNER, name)).former_name == NAME
    assert await text_of(rig, name) == "old"
    assert await text_of(rig) == "new"
    assert (await conversations.restore(LOCAL_OWNER, NAME)).continuation_id == NAME


async def test_a_long_name_is_used_again(rig: Rig) -> None:
    """The deleted one's name stays one that clients can give."""
    name = ContinuationId("n" * 500)
    for text in ("one", "two"):
        await append(rig, text, name)
        assert await text_of(rig, name) == text
        await rig.app.conversations.delete(LOCAL_OWNER, name)
    for each in (await rig.app.conversations.list(LOCAL_OWNER, only=ListFilter(deleted=True))).conversations:
        await rig.app.conversations.restore(LOCAL_OWNER, each.continuation_id)


async def test_import_under_a_deleted_name(rig: Rig) -> None:
    """The same messages restore the conversation, others make a new one."""
    await append(rig, "abc")
    lines = "".join([part async for part in rig.app.transfer.export(LOCAL_OWNER, NAME)])
    for text, expected in (("abc", False), ("xyz", True)):
        await rig.app.conversations.delete(LOCAL_OWNER, NAME)
        if text == "xyz":
            await append(rig, text)
            await rig.app.conversations.delete(LOCAL_OWNER, NAME)
        steps = [step async for step in rig.app.transfer.import_text(LOCAL_OWNER, read_lines(lines.split("\n")))]
        assert steps[-1].restored is not expected
        assert await text_of(rig) == "abc"


async def test_cut_and_former_conversations_are_purged_and_erased(rig: Rig) -> None:
    """After a week, or at once with the conversation that has the name."""
    for _ in range(2):
        await append(rig, "abc")
        await rig.app.conversations.rewind(LOCAL_OWNER, NAME, to_seq=1)
        await rig.app.conversations.delete(LOCAL_OWNER, NAME)
    await append(rig, "abc")
    await rig.app.conversations.rewind(LOCAL_OWNER, NAME, to_seq=0)
    await append(rig, "xyz")
    assert len((await rig.app.conversations.list(LOCAL_OWNER, only=ListFilter(deleted=True))).conversations) == 5
    purged = 1
    while purged:
        purged = await CurationRepository(rig.app.database).purge(after_s=0.0)
    assert (await rig.app.conversations.list(LOCAL_OWNER, only=ListFilter(deleted=True))).conversations == ()
    assert await text_of(rig) == "xyz"


async def test_a_purged_name_is_used_again_while_the_cache_misses_it(
    rig: Rig, postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    """Another process deletes it and this one makes another, both without Redis, where the former page still is."""
    conversations = rig.app.conversations
    async with open_rig(postgres_url, redis_url, tmp_path) as other:
        while (await other.app.cache.status()).watermark_age_s is None:
            # The first reconciliation would remove the entry.
            await asyncio.sleep(0)
        for letter in "abc":
            await append(rig, letter)
        before = (await conversations.read(LOCAL_OWNER, NAME)).conversation
        await rig.app.cache.wait_settled()
        assert (await conversations.read(LOCAL_OWNER, NAME)).source == "cache"
        other.cache.lose_request(b"EVALSHA")
        await other.app.conversations.delete(LOCAL_OWNER, NAME)
        await CurationRepository(other.app.database).purge(after_s=0.0)
        held = await rig.app.cache.read_uncovered(ConversationKey(LOCAL_OWNER, NAME))
        assert held is not None
        assert held.conversation.id == before.id
        rig.cache.lose_request(b"EVALSHA")
        await append(rig, "x")
        page = await conversations.read(LOCAL_OWNER, NAME)
        assert letters(page.messages) == "x"
        assert page.conversation.revision > before.revision


@pytest.mark.parametrize("name", [ContinuationId("n"), ContinuationId("n" * 500)], ids=["short", "longest"])
async def test_a_deleted_name_is_free_although_the_name_of_what_had_it_is_taken(rig: Rig, name: ContinuationId) -> None:
    """By another conversation, or (names are cut) by itself, because it was renamed before."""
    conversations = rig.app.conversations
    await append(rig, "a", name)
    first = (await conversations.read(LOCAL_OWNER, name)).conversation
    taken = ContinuationId(f"{name[:460]}~{first.id}")
    await append(rig, "b", taken)
    contents = ["a", "b"]
    for letter, each in (("c", name), ("d", taken), ("e", name)):
        await conversations.delete(LOCAL_OWNER, each)
        await append(rig, letter, each)
        assert await text_of(rig, each) == letter
        contents.append(letter)
    deleted = (await conversations.list(LOCAL_OWNER, only=ListFilter(deleted=True))).conversations
    for each in deleted:
        await conversations.restore(LOCAL_OWNER, each.continuation_id)
    shown = [await text_of(rig, each) for each in (name, taken, *(one.continuation_id for one in deleted))]
    assert sorted(shown) == contents
    # What was renamed may lose that name as well.
    for each in deleted:
        await conversations.delete(LOCAL_OWNER, each.continuation_id)
        await append(rig, "f", each.continuation_id)
        assert await text_of(rig, each.continuation_id) == "f"
