"""Conversations as a whole: found, forked, renamed, deleted, written out and read back; each page one round trip."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from exai.conversations import AppendRequest, ChatRequest
from exai.conversations.formats import Format, read_lines, read_markdown
from exai.db.lifecycle import ConversationUpdate
from exai.db.search import SearchQuery
from exai.errors import Conflict, InvalidArgument, NotFound
from exai.models import LOCAL_OWNER, ContinuationId, Message, NewMessage, Owner
from tests.integration.conversations.conftest import Rig, open_rig
from tests.support.commands import run_exai_as_text


@pytest.fixture
async def rig(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Rig]:
    """Directly on the database."""
    async with open_rig(postgres_url, redis_url, tmp_path) as opened:
        yield opened


async def stored(rig: Rig, *contents: str, title: str | None = None) -> ContinuationId:
    messages = [NewMessage("user" if n % 2 == 0 else "assistant", text) for n, text in enumerate(contents)]
    return (await rig.app.conversations.append(AppendRequest(LOCAL_OWNER, messages, title=title))).continuation_id


async def messages_of(rig: Rig, name: ContinuationId) -> list[Message]:
    return list((await rig.app.conversations.read(LOCAL_OWNER, name, limit=500)).messages)


@pytest.mark.parametrize("days", [0, -1, float("nan"), float("inf")])
async def test_prune_refuses_a_number_of_days_that_would_delete_everything(rig: Rig, days: float) -> None:
    """A slip of the hand must not mark every conversation of every owner as deleted."""
    name = await stored(rig, "one")
    with pytest.raises(InvalidArgument):
        await rig.app.maintenance.prune(idle_days=days)
    assert len(await messages_of(rig, name)) == 1


async def test_search_finds_messages_by_their_words_in_one_round_trip(rig: Rig) -> None:
    """Ranked, with the matching words marked, in any language, and never those of others."""
    name = await stored(rig, "Where do penguins live?", "In Antarctica.", "企鹅 住在哪里", title="Birds")
    await rig.app.conversations.append(AppendRequest(Owner("other"), [NewMessage("user", "penguins of others")]))
    rig.reset()
    page = await rig.app.conversations.search(SearchQuery(LOCAL_OWNER, "penguins"))
    assert rig.cost() == (1, 0)
    assert [(hit.continuation_id, hit.seq) for hit in page.hits] == [(name, 1)]
    assert "**penguins**" in page.hits[0].snippet
    chinese = await rig.app.conversations.search(SearchQuery(LOCAL_OWNER, "企鹅"))
    assert [hit.seq for hit in chinese.hits] == [3]
    answers = await rig.app.conversations.search(SearchQuery(LOCAL_OWNER, "penguins", role="assistant"))
    assert answers.hits == ()


async def test_fork_shares_history_and_goes_its_own_way(rig: Rig) -> None:
    """One statement without copies; appends to one are not in the other, and each model receives its history."""
    name = await stored(rig, "one", "two", "three", "four")
    rig.reset()
    fork = await rig.app.conversations.fork(LOCAL_OWNER, name, at_seq=2, title="Other way")
    assert rig.database.round_trips == 1
    await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "instead", continuation_id=fork.continuation_id))
    assert [part["content"] for part in rig.provider.chats[-1].body["messages"]] == ["one", "two", "instead"]
    forked = await messages_of(rig, fork.continuation_id)
    assert [message.content for message in forked][:3] == ["one", "two", "instead"]
    assert [message.seq for message in forked] == [1, 2, 3, 4]
    assert [message.content for message in await messages_of(rig, name)] == ["one", "two", "three", "four"]
    with pytest.raises(InvalidArgument, match="1 to 4"):
        await rig.app.conversations.fork(LOCAL_OWNER, name, at_seq=9)


async def test_rename_is_seen_by_the_next_read_although_it_was_cached(rig: Rig) -> None:
    """A change that is not an append removes the older page from the cache before it is acknowledged."""
    name = await stored(rig, "one", title="Old")
    before = await rig.app.conversations.read(LOCAL_OWNER, name)
    changed = await rig.app.conversations.change(LOCAL_OWNER, name, ConversationUpdate(title="New", tags=["a", "b"]))
    after = await rig.app.conversations.read(LOCAL_OWNER, name)
    assert (before.conversation.title, after.conversation.title) == ("Old", "New")
    assert after.conversation.tags == changed.tags == ("a", "b")
    with pytest.raises(Conflict, match=name):
        await rig.app.conversations.change(
            LOCAL_OWNER, name, ConversationUpdate(title="Late"), expected_revision=before.conversation.revision
        )


async def test_every_change_with_a_key_happens_once(rig: Rig) -> None:
    """A lost reply is asked for again: the same answer, one round trip, and nothing done twice."""
    service, name = rig.app.conversations, await stored(rig, "one", "two")
    forks = [await service.fork(LOCAL_OWNER, name, at_seq=1, idempotency_key="fork") for _ in range(2)]
    assert forks[0] == forks[1]
    with pytest.raises(Conflict):
        await service.fork(LOCAL_OWNER, name, at_seq=2, idempotency_key="fork")
    first = await service.change(LOCAL_OWNER, name, ConversationUpdate(title="first"), idempotency_key="title")
    await service.change(LOCAL_OWNER, name, ConversationUpdate(title="second"))
    rig.reset()
    assert await service.change(LOCAL_OWNER, name, ConversationUpdate(title="first"), idempotency_key="title") == first
    assert rig.cost()[0] == 1
    with pytest.raises(Conflict):
        await service.change(LOCAL_OWNER, name, ConversationUpdate(title="third"), idempotency_key="title")
    await service.delete(LOCAL_OWNER, name, idempotency_key="delete")
    await service.restore(LOCAL_OWNER, name)
    await service.delete(LOCAL_OWNER, name, idempotency_key="delete")
    assert (await service.read(LOCAL_OWNER, name)).conversation.title == "second"
    with pytest.raises(Conflict, match=name):
        await service.delete(LOCAL_OWNER, name, expected_revision=1)


async def test_deleted_conversation_is_gone_for_all_readers_and_can_be_restored(rig: Rig) -> None:
    """Cached or not, listed or found; the mark can be taken back until the purge."""
    name = await stored(rig, "findable words")
    await rig.app.conversations.read(LOCAL_OWNER, name)
    await rig.app.conversations.delete(LOCAL_OWNER, name)
    with pytest.raises(NotFound):
        await rig.app.conversations.read(LOCAL_OWNER, name)
    with pytest.raises(NotFound):
        await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Hi", continuation_id=name))
    assert (await rig.app.conversations.list(LOCAL_OWNER)).conversations == ()
    assert (await rig.app.conversations.search(SearchQuery(LOCAL_OWNER, "findable"))).hits == ()
    assert await rig.app.maintenance.prune() == 0

    restored = await rig.app.conversations.restore(LOCAL_OWNER, name)
    assert restored.continuation_id == name
    assert [message.content for message in await messages_of(rig, name)] == ["findable words"]


@pytest.mark.parametrize("kind", ["jsonl", "markdown"])
async def test_export_and_import_are_exact_idempotent_and_can_be_resumed(rig: Rig, kind: Format) -> None:
    """The same messages, numbers, times and metadata; a second run stores nothing; a part of a run is completed."""
    contents = [f"line one of {n}\n\n<!-- exai message {{}} -->\nend" for n in range(1_200)]
    name = await stored(rig, *contents[:1_000], title="Long one")
    await rig.app.conversations.append(
        AppendRequest(LOCAL_OWNER, [NewMessage("user", text, metadata={"n": 1.5}) for text in contents[1_000:]], name)
    )
    text = "".join([part async for part in rig.app.transfer.export(LOCAL_OWNER, name, kind)])

    def parts() -> object:
        return read_lines(text.split("\n")) if kind == "jsonl" else read_markdown(text)

    copy = ContinuationId("copy")
    begun = rig.app.transfer.import_text(LOCAL_OWNER, parts(), as_name=copy)  # type: ignore[arg-type]
    first = await anext(begun)
    await begun.aclose()  # type: ignore[attr-defined]
    assert 0 < first.stored < 1_200
    progress = [p async for p in rig.app.transfer.import_text(LOCAL_OWNER, parts(), as_name=copy)]  # type: ignore[arg-type]
    assert (progress[-1].seen, progress[-1].stored) == (1_200, 1_200 - first.stored)
    again = [p async for p in rig.app.transfer.import_text(LOCAL_OWNER, parts(), as_name=copy)]  # type: ignore[arg-type]
    assert again[-1].stored == 0

    exported = "".join([part async for part in rig.app.transfer.export(LOCAL_OWNER, copy, kind)])
    assert exported.split("\n", 2)[2] == text.split("\n", 2)[2]
    assert exported.count('"copy"') == 1


async def test_import_over_another_conversation_is_a_conflict_and_changes_nothing(rig: Rig) -> None:
    """Two conversations are never mixed."""
    name = await stored(rig, "mine")
    text = "".join([part async for part in rig.app.transfer.export(LOCAL_OWNER, name)])
    other = text.replace('"mine"', '"yours"')
    with pytest.raises(Conflict) as caught:
        async for _ in rig.app.transfer.import_text(LOCAL_OWNER, read_lines(other.split("\n"))):
            pass
    assert caught.value.reason == "exists"
    assert [message.content for message in await messages_of(rig, name)] == ["mine"]


async def test_offset_pages_leave_out_the_newest(rig: Rig) -> None:
    """The way of older clients, in one round trip up to the largest page."""
    name = await stored(rig, *(f"{n}" for n in range(1, 701)))
    rig.reset()
    page = await rig.app.conversations.read(LOCAL_OWNER, name, limit=10, offset=20)
    assert rig.cost() == (1, 0)
    assert [message.seq for message in page.messages] == list(range(671, 681))
    far = await rig.app.conversations.read(LOCAL_OWNER, name, limit=10, offset=600)
    assert [message.seq for message in far.messages] == list(range(91, 101))
    beyond = await rig.app.conversations.read(LOCAL_OWNER, name, limit=10, offset=700)
    assert (beyond.messages, beyond.next_before_seq) == ((), None)


async def test_commands_carry_a_conversation_out_and_in_again(rig: Rig, postgres_url: str, tmp_path: Path) -> None:
    """`exai export`, `exai import` and `exai prune` for a person at a terminal."""
    name = await stored(rig, "héllo\r\nworld", "two")
    settings = {"EXAI_DATABASE__URL": postgres_url, "EXAI_CACHE__URL": "off", "EXAI_DATA_DIR": str(tmp_path)}

    def exai(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run_exai_as_text(*arguments, settings=settings, cwd=tmp_path)

    for target in ("out.jsonl", "out.md"):
        assert exai("export", name, target).returncode == 0
        done = exai("import", target, "--as", target)
        assert "2 of 2 messages stored" in done.stdout, done.stderr
        copied = await messages_of(rig, ContinuationId(target))
        assert [message.content for message in copied] == ["héllo\r\nworld", "two"]
    assert exai("export", "nobody").returncode == 1
    assert exai("import", "nowhere.jsonl").returncode == 1
    assert "removed 0 deleted conversations" in exai("prune").stdout
