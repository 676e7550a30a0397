"""Messages, titles and metadata are encrypted in the database and in the cache, and read as before at the same cost."""

from __future__ import annotations

import pytest

from exai.conversations import AppendRequest, ChatRequest
from exai.db.filters import ListFilter
from exai.db.lifecycle import ConversationUpdate
from exai.db.rekey import FIRST, RekeyRepository
from exai.errors import ConfigError, ContentUnreadable, InvalidArgument
from exai.models import LOCAL_OWNER, ContinuationId, NewMessage, Owner
from tests.integration.conversations.conftest import Rig
from tests.integration.encryption.conftest import OpenRig
from tests.support.migrations import run, value

WHERE = "where c.continuation_id = '{}'"


async def appended(rig: Rig, *texts: str, to: ContinuationId | None = None) -> ContinuationId:
    """Append texts as messages of the user with metadata; returns the conversation's name."""
    messages = [NewMessage("user", text, metadata={"note": text[:100]}) for text in texts]
    title = f"title {texts[0]}"[:100] if to is None else None
    return (await rig.app.conversations.append(AppendRequest(LOCAL_OWNER, messages, to, title=title))).continuation_id


async def read(rig: Rig, name: ContinuationId) -> list[str]:
    """The contents of a conversation's newest messages."""
    return [each.content for each in (await rig.app.conversations.read(LOCAL_OWNER, name)).messages]


async def test_append_and_reads_cost_what_they_do_without_keys(rig: Rig) -> None:
    """A hit is 0 database round trips, a miss and an append 1, a chat turn 2."""
    name = await appended(rig, *(f"message {number}" for number in range(60)))
    rig.reset()
    missed = await rig.app.conversations.read(LOCAL_OWNER, name)
    await rig.app.cache.wait_settled()
    assert (missed.source, rig.cost()) == ("database", (1, 2))
    rig.reset()
    hit = await rig.app.conversations.read(LOCAL_OWNER, name)
    assert (hit.source, rig.cost()) == ("cache", (0, 1))
    assert hit.messages == missed.messages
    assert hit.conversation == missed.conversation
    assert hit.conversation.title == "title message 0"
    assert hit.messages[0].metadata == {"note": "message 10"}
    rig.reset()
    await appended(rig, "one more", to=name)
    assert rig.cost() == (1, 1)
    again = await rig.app.conversations.read(LOCAL_OWNER, name)
    assert (again.source, again.messages[-1].content) == ("cache", "one more")
    for _ in ("cold", "warm"):
        rig.reset()
        await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "And now?", continuation_id=name))
        assert rig.cost() == (2, 3)
    assert [each["content"] for each in rig.provider.chats[-1].body["messages"]][-4:-2] == ["one more", "And now?"]


async def test_fork_reads_the_messages_of_its_source(rig: Rig) -> None:
    """Shared messages are bound to the conversation that holds them."""
    name = await appended(rig, "one", "two", "three")
    fork = await rig.app.conversations.fork(LOCAL_OWNER, name, at_seq=2)
    assert fork.title == "title one"
    await appended(rig, "other", to=fork.continuation_id)
    second = await rig.app.conversations.fork(LOCAL_OWNER, fork.continuation_id, at_seq=3)
    await appended(rig, "last", to=second.continuation_id)
    for _ in ("database", "cache"):
        assert await read(rig, second.continuation_id) == ["one", "two", "other", "last"]
        await rig.app.cache.wait_settled()
    await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "And now?", continuation_id=second.continuation_id))
    asked = [each["content"] for each in rig.provider.chats[-1].body["messages"]]
    assert asked == ["one", "two", "other", "last", "And now?"]


@pytest.mark.parametrize(
    "swap",
    [
        "update public.messages m set content = o.content from public.messages o "
        "where o.conversation_id = m.conversation_id and m.seq in (2, 3) and o.seq = 5 - m.seq",
        "update public.messages m set content = o.content, turn_id = o.turn_id from public.messages o "
        "where o.conversation_id = m.conversation_id and m.seq in (2, 3) and o.seq = 5 - m.seq",
        "update public.messages m set content = overlay(content placing 'AAAA' from 30) where m.seq in (2, 3)",
        "update public.messages m set content = left(content, 60) where m.seq in (2, 3)",
        "update public.messages m set role = 'assistant' where m.seq in (2, 3)",
        "update public.messages m set kind = 'partial' where m.seq in (2, 3)",
    ],
    ids=["two swapped", "two swapped with their turns", "changed", "cut", "role", "kind"],
)
async def test_message_that_was_changed_or_moved_is_named_and_hides_no_other(
    rig: Rig, postgres_url: str, swap: str
) -> None:
    """Each message is bound to its owner, conversation, number, role and kind."""
    name = await appended(rig, "one")
    for text in ("two", "three", "four"):
        await appended(rig, text, to=name)
    await run(postgres_url, swap)
    page = await rig.app.conversations.read(LOCAL_OWNER, name, before_seq=10)
    assert [each.content for each in page.messages if each.kind != "unreadable"] == ["one", "four"]
    broken = page.messages[1]
    assert broken.kind == "unreadable"
    assert f"content of message 2 of the conversation {page.conversation.id} cannot be read" in broken.content
    assert "backup" in broken.content
    with pytest.raises(ContentUnreadable, match="content of message"):
        await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "And now?", continuation_id=name))
    assert rig.provider.chats == []


async def test_message_of_another_conversation_or_owner_is_not_accepted(rig: Rig, postgres_url: str) -> None:
    """Also where its number is the same."""
    first, second = await appended(rig, "first"), await appended(rig, "second")
    other = Owner("other")
    third = await rig.app.conversations.append(AppendRequest(other, [NewMessage("user", "third")]))
    copied = (
        f"(select m.content from public.messages m join public.conversations c on c.id = m.conversation_id {WHERE})"
    )
    await run(postgres_url, f"update public.messages set content = {copied.format(first)}")
    contents = [await read(rig, first), await read(rig, second)]
    contents.append(
        [each.content for each in (await rig.app.conversations.read(other, third.continuation_id)).messages]
    )
    assert contents[0] == ["first"]
    assert all("cannot be read" in content[0] for content in contents[1:])


async def test_title_and_metadata_of_another_conversation_are_not_accepted(rig: Rig, postgres_url: str) -> None:
    """The other fields of the conversation are still shown."""
    first, second = await appended(rig, "first"), await appended(rig, "second")
    for name in (first, second):
        change = ConversationUpdate(metadata={"of": name})
        await rig.app.conversations.change(LOCAL_OWNER, name, change)
    await run(
        postgres_url,
        "update public.conversations c set title = o.title, metadata = o.metadata from public.conversations o "
        "where o.id <> c.id and o.owner = c.owner and c.owner = 'local'",
    )
    for listed in (await rig.app.conversations.list(LOCAL_OWNER)).conversations:
        assert listed.title is not None
        assert "title cannot be read" in listed.title
        assert listed.metadata["unreadable"]["field"] in ("title", "metadata")
        assert listed.last_seq == 1


async def test_equal_change_is_no_change(rig: Rig) -> None:
    """Although the database compares encrypted values."""
    name = await appended(rig, "one")
    change = ConversationUpdate(title="new", metadata={"a": 1, "b": [1, 2]})
    changed = await rig.app.conversations.change(LOCAL_OWNER, name, change)
    again = await rig.app.conversations.change(
        LOCAL_OWNER, name, ConversationUpdate(title="new", metadata={"b": [1, 2], "a": 1})
    )
    assert (again.revision, again.title, again.metadata) == (changed.revision, "new", {"a": 1, "b": [1, 2]})


async def test_filter_by_what_is_encrypted_is_refused(rig: Rig) -> None:
    """An empty list would look as if there were none."""
    await appended(rig, "one")
    with pytest.raises(InvalidArgument, match=r"metadata: cannot be searched, because it is encrypted"):
        await rig.app.conversations.list(LOCAL_OWNER, only=ListFilter(metadata={"a": 1}))
    listed = await rig.app.conversations.list(LOCAL_OWNER, only=ListFilter(part="e"))
    assert listed.conversations == () or listed.conversations[0].continuation_id.startswith("e")


async def test_older_key_decrypts_and_the_newest_encrypts(with_keys: OpenRig) -> None:
    """Two applications, one with both keys and one still with the older."""
    async with with_keys("k1") as older:
        name = await appended(older, "one")
        async with with_keys("k2", "k1") as newer:
            await appended(newer, "two", to=name)
            assert await read(newer, name) == ["one", "two"]
            # The older one lacks a key that was added after its start.
            page = await older.app.conversations.read(LOCAL_OWNER, name)
            assert page.messages[0].content == "one"
            assert "'k2', which EXAI_STORE__KEYS does not have" in page.messages[1].content


@pytest.mark.parametrize("names", [(), ("k2",), ("plain", "k2")])
async def test_process_that_lacks_a_key_in_use_does_not_start(with_keys: OpenRig, names: tuple[str, ...]) -> None:
    """It would show nothing of what is stored."""
    async with with_keys("k1") as rig:
        await appended(rig, "one")
    with pytest.raises(ConfigError, match=r"EXAI_STORE__KEYS: lacks keys .*: k1\. Add them"):
        async with with_keys(*names):
            raise AssertionError("it started")


async def test_plain_rows_stay_readable_with_keys_and_new_ones_can_be_plain_again(
    with_keys: OpenRig, postgres_url: str
) -> None:
    """Encryption can begin and end while there are rows."""
    async with with_keys() as rig:
        name = await appended(rig, "one")
    async with with_keys("k1") as rig:
        await appended(rig, "two", to=name)
    async with with_keys("plain", "k1") as rig:
        await appended(rig, "three", to=name)
        assert await read(rig, name) == ["one", "two", "three"]
        stored = await value(postgres_url, "select content from public.messages where seq = 3")
        assert stored == "three"


async def test_repeated_requests_are_recognized_after_the_keys_changed(with_keys: OpenRig) -> None:
    """Their hashes are made with a key that outlives the others."""
    request = AppendRequest(LOCAL_OWNER, [NewMessage("user", "one")], idempotency_key="once")
    async with with_keys("k1") as rig:
        first = await rig.app.conversations.append(request)
        chat = ChatRequest(LOCAL_OWNER, "Hello?", idempotency_key="chat")
        answer = await rig.app.chat.run(chat)
    async with with_keys("k2", "k1") as rig:
        again = await rig.app.conversations.append(request)
        assert (again.duplicate, again.continuation_id) == (True, first.continuation_id)
        repeated = await rig.app.chat.run(chat)
        assert (repeated.duplicate, repeated.content) == (True, answer.content)


async def test_long_message_is_read_in_parts(rig: Rig) -> None:
    """Parts are those of the text, not of the ciphertext."""
    text = "".join(f"{number:07} " for number in range(40_000))
    name = await appended(rig, text)
    page = await rig.app.conversations.read(LOCAL_OWNER, name, char_offset=1_000, budget_bytes=4_000)
    assert page.part is not None
    assert (page.part.offset, page.part.chars) == (1_000, len(text))
    assert page.messages[0].content == text[1_000:2_000]


async def test_what_a_rewind_cuts_joins_no_other_conversation(rig: Rig) -> None:
    """Also if what was cut from a fork begins where the rewound conversation ends."""
    conversations = rig.app.conversations
    name = await appended(rig, "one", "two", "three")
    fork = (await conversations.fork(LOCAL_OWNER, name, title="other")).continuation_id
    await appended(rig, "four", "five", to=fork)
    of_fork = (await conversations.rewind(LOCAL_OWNER, fork, to_seq=3)).cut_id
    cut = (await conversations.rewind(LOCAL_OWNER, name, to_seq=2)).cut_id
    assert (await conversations.rewind(LOCAL_OWNER, name, to_seq=1)).cut_id == cut
    kept = {name: ["one"], fork: ["one", "two", "three"], cut: ["one", "two", "three"]}
    kept[of_fork] = ["one", "two", "three", "four", "five"]
    for each, contents in kept.items():
        assert each is not None
        if each in (cut, of_fork):
            await conversations.restore(LOCAL_OWNER, each)
        found = (await conversations.read(LOCAL_OWNER, each)).conversation
        assert (await read(rig, each), found.title) == (contents, "title one" if each in (name, cut) else "other")


async def header_of(rig: Rig, name: ContinuationId) -> tuple[str | None, object]:
    """Title and metadata, read from the database and from the cache."""
    pages = [await rig.app.conversations.read(LOCAL_OWNER, name, limit=limit) for limit in (500, 50, 50)]
    [found] = {(page.conversation.title, str(page.conversation.metadata)) for page in pages}
    return found


async def test_titles_stay_readable_when_forks_and_names_change(with_keys: OpenRig) -> None:
    """A fork that is rewound to nothing, what lost its name more than once, and what was cut from such a one."""
    async with with_keys("k1") as rig:
        conversations = rig.app.conversations
        name = ContinuationId("anna/1")

        def made(text: str, at: ContinuationId = name) -> AppendRequest:
            facts = {"of": text}
            return AppendRequest(LOCAL_OWNER, [NewMessage("user", text)], at, title=text, create=True, metadata=facts)

        await conversations.append(made("first"))
        expected = ("first", "{'of': 'first'}")
        fork = (await conversations.fork(LOCAL_OWNER, name)).continuation_id
        cut = (await conversations.rewind(LOCAL_OWNER, fork, to_seq=0)).cut_id
        assert await header_of(rig, fork) == expected
        # The first one loses its name, is restored under the one that it has then, and loses that as well.
        await conversations.delete(LOCAL_OWNER, name)
        await conversations.append(made("second"))
        [renamed] = [
            each.continuation_id
            for each in (await conversations.list(LOCAL_OWNER, only=ListFilter(deleted=True))).conversations
            if each.continuation_id.startswith(f"{name}~")
        ]
        await conversations.restore(LOCAL_OWNER, renamed)
        assert await header_of(rig, renamed) == expected
        part = (await conversations.rewind(LOCAL_OWNER, renamed, to_seq=0)).cut_id
        await conversations.delete(LOCAL_OWNER, renamed)
        await conversations.append(made("third", renamed))
        [again] = [
            each.continuation_id
            for each in (await conversations.list(LOCAL_OWNER, only=ListFilter(deleted=True))).conversations
            if each.continuation_id.startswith(f"{renamed}~") and each.continuation_id != part
        ]
        for each in (again, part, cut):
            assert each is not None
            await conversations.restore(LOCAL_OWNER, each)
            assert await header_of(rig, each) == expected
    async with with_keys("k2", "k1") as rig:
        batch = await RekeyRepository(rig.app.database).conversations((FIRST, 0), is_rehearsal=False)
        assert (batch.found, batch.replaced, batch.unreadable) == (6, 6, [])
        for each in (fork, again, part, cut):
            assert each is not None
            assert await header_of(rig, each) == expected


LIKE_ENCRYPTED = (
    "$exai1$k1$AAAA$b$c",
    "$exai1$",
    "$exai0$",
    f"\x01$exai1$k1$AAAA${'A' * 22}==",
    f"$exai1$ {'long ' * 60_000}",
)


@pytest.mark.parametrize("names", [(), ("plain", "k1"), ("k1",)], ids=["no keys", "plain first", "encrypted"])
async def test_texts_that_look_encrypted_are_read_as_given(with_keys: OpenRig, names: tuple[str, ...]) -> None:
    """Such texts are contents and titles: from the database, from the cache, to models, and after rekeying."""
    async with with_keys(*names) as rig:
        conversations = rig.app.conversations
        requests = [AppendRequest(LOCAL_OWNER, [NewMessage("user", each)], title=each[:90]) for each in LIKE_ENCRYPTED]
        made = [(await conversations.append(each)).continuation_id for each in requests]
        for name, text in zip(made, LIKE_ENCRYPTED, strict=True):
            for _ in ("database", "cache", "cache"):
                page = await conversations.read(LOCAL_OWNER, name)
                shown = page.messages[0]
                assert (shown.kind, page.conversation.title) == ("message", text[:90])
                assert text.startswith(shown.content) and len(shown.content) > len(text) // 8
                await rig.app.cache.wait_settled()
            parts = [page.messages[0].content]
            while page.part and (place := sum(map(len, parts))) < len(text):
                rest = await conversations.read(LOCAL_OWNER, name, limit=1, char_offset=place)
                parts.append(rest.messages[0].content)
            assert "".join(parts) == text
        question = LIKE_ENCRYPTED[0]
        await rig.app.chat.run(ChatRequest(LOCAL_OWNER, question, continuation_id=made[1]))
        asked = [each["content"] for each in rig.provider.chats[-1].body["messages"]]
        assert asked == [LIKE_ENCRYPTED[1], question]
        assert (await read(rig, made[1]))[:2] == asked
        listed = await conversations.list(LOCAL_OWNER)
        assert {each.title for each in listed.conversations} == {each[:90] for each in LIKE_ENCRYPTED}
        with pytest.raises(InvalidArgument, match=r"\$exai"):
            await conversations.change(LOCAL_OWNER, made[0], ConversationUpdate(metadata={"$exai": "$exai1$k1$AAAA$b"}))
    async with with_keys("k2", "k1") as rig:
        repository = RekeyRepository(rig.app.database)
        place: tuple[str, int] | None = (FIRST, 0)
        while place is not None:
            batch = await repository.messages(place, is_rehearsal=False)
            place = batch.place
            assert batch.unreadable == []
        assert (await repository.conversations((FIRST, 0), is_rehearsal=False)).unreadable == []
        assert (await read(rig, made[0]))[0] == LIKE_ENCRYPTED[0]


async def test_message_moved_into_an_ancestor_is_detected_where_that_is_read(rig: Rig, postgres_url: str) -> None:
    """A fork does not know its ancestors' ids: docs/encryption.md says what it accepts, which is nothing more."""
    conversations = rig.app.conversations
    names = []
    for text in ("one", "other"):
        messages = [NewMessage("user", f"{text} {number}") for number in range(2)]
        names.append((await conversations.append(AppendRequest(LOCAL_OWNER, messages))).continuation_id)
    # Two, because a page that was read is cached.
    forks = [(await conversations.fork(LOCAL_OWNER, names[0], at_seq=2)).continuation_id for _ in range(2)]
    copied = (
        "update public.messages m set content = o.content from public.messages o"
        " join public.conversations p on p.id = o.conversation_id, public.conversations c"
        f" where c.id = m.conversation_id and c.continuation_id = '{names[0]}' and p.continuation_id = '{names[1]}'"
    )
    await run(postgres_url, f"{copied} and m.seq = 1 and o.seq = 1")
    read = [await conversations.read(LOCAL_OWNER, name, limit=500) for name in (names[0], forks[0])]
    own, shared = [page.messages for page in read]
    assert own[0].kind == "unreadable"
    assert "was encrypted for another place" in own[0].content
    assert [each.content for each in shared] == ["other 0", "one 1"]
    await run(postgres_url, f"{copied} and m.seq = 1 and o.seq = 2")
    read = [await conversations.read(LOCAL_OWNER, name, limit=500) for name in (names[0], forks[1])]
    own, shared = [page.messages for page in read]
    assert [each.kind for each in (own[0], shared[0])] == ["unreadable"] * 2
