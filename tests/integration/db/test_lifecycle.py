"""Forks, names, deletion, retention: shared messages stay readable, deleted ones are gone."""

from __future__ import annotations

import asyncio

import pytest

from exai.db.conversations import ConversationRepository
from exai.db.driver.pool import Database, connect
from exai.db.lifecycle import ConversationUpdate, CurationRepository, Forked
from exai.db.records import CachedRange
from exai.db.transfer import TransferRepository
from exai.db.turns import TurnRepository
from exai.errors import NotFound
from exai.models import LOCAL_OWNER, Conversation, ConversationId, ConversationKey, NewMessage, Owner
from tests.support.database import appending, assert_consecutive, beginning, contents_of, conversation_of, new_id, once

LONG_AGO = "update conversations set deleted_at = now() - interval '8 days' where deleted_at is not null"


@pytest.fixture
def curation(database: Database) -> CurationRepository:
    return CurationRepository(database)


async def execute(database: Database, sql: str, *args: object) -> None:
    connection = await connect(database.address, timeout_s=5)
    try:
        await connection.execute(sql, *args)
    finally:
        await connection.close()


async def forked(curation: CurationRepository, source: Conversation, at_seq: int | None = None) -> Conversation:
    result = await curation.fork(
        ConversationKey(LOCAL_OWNER, source.continuation_id),
        once(),
        new_conversation_id=ConversationId(new_id()),
        at_seq=at_seq,
    )
    assert result.status == "forked"
    assert result.commit is not None
    return result.commit.conversation


async def test_a_fork_and_its_source_change_independently(
    repository: ConversationRepository, curation: CurationRepository
) -> None:
    """They share the beginning after any later change of either."""
    source = await conversation_of(repository, "1", "2", "3", "4")
    fork = await forked(curation, source, at_seq=2)
    assert (fork.parent_id, fork.parent_seq, fork.last_seq) == (source.id, 2, 2)
    await repository.append(appending(source.continuation_id, "5"))
    await repository.append(appending(fork.continuation_id, "3'", "4'"))
    assert await contents_of(repository, fork.continuation_id) == ["1", "2", "3'", "4'"]
    assert await contents_of(repository, source.continuation_id) == ["1", "2", "3", "4", "5"]


async def test_pages_and_turns_go_on_into_the_parents(
    repository: ConversationRepository, turns: TurnRepository, curation: CurationRepository
) -> None:
    """Across any number of forks, without hole or repeat."""
    conversation = await conversation_of(repository, *(f"0.{i}" for i in range(10)))
    for depth in range(1, 5):
        conversation = await forked(curation, conversation)
        await repository.append(appending(conversation.continuation_id, *(f"{depth}.{i}" for i in range(10))))
    name = conversation.continuation_id
    everything = [f"{depth}.{i}" for depth in range(5) for i in range(10)]
    assert await contents_of(repository, name) == everything
    page = await repository.read_page(ConversationKey(LOCAL_OWNER, name), limit=7, before_seq=24)
    assert [message.content for message in page.messages] == everything[16:23]
    begun = await turns.begin(beginning(name, "question"))
    assert [message.content for message in begun.history] == everything
    known = CachedRange(begun.commit.revision, 36, 51, 100)
    begun = await turns.begin(beginning(name, "question", known=known))
    assert [message.content for message in begun.history] == everything[:35]
    assert not begun.full


async def test_the_system_message_of_a_parent_counts(
    repository: ConversationRepository, turns: TurnRepository, curation: CurationRepository
) -> None:
    """Rules are inherited."""
    result = await repository.append(
        appending(None, messages=[NewMessage("system", "rules"), *[NewMessage("user", "x" * 84)] * 20])
    )
    assert result.commit is not None
    fork = await forked(curation, result.commit.conversation)
    begun = await turns.begin(beginning(fork.continuation_id, "q", budget_bytes=500))
    assert begun.system is not None
    assert begun.system.content == "rules"


async def test_a_fork_of_inherited_messages_hangs_on_their_owner(
    repository: ConversationRepository, curation: CurationRepository
) -> None:
    """So that chains stay as short as they can be."""
    source = await conversation_of(repository, "1", "2", "3")
    first = await forked(curation, source, at_seq=3)
    second = await forked(curation, first, at_seq=2)
    assert second.parent_id == source.id
    assert await contents_of(repository, second.continuation_id) == ["1", "2"]


async def test_the_same_fork_again_is_the_same_fork(
    repository: ConversationRepository, curation: CurationRepository
) -> None:
    """By its key, one after the other or at once; with other arguments the key is a conflict, and no fork is made."""
    source = await conversation_of(repository, "1")

    async def fork(key: str, digest: str = "hash") -> Forked:
        new = ConversationId(new_id())
        return await curation.fork(
            ConversationKey(LOCAL_OWNER, source.continuation_id), once(key, digest), new_conversation_id=new
        )

    first = await fork("key")
    await repository.append(appending(source.continuation_id, "2"))
    again = await fork("key")
    assert (first.status, again.status) == ("forked", "duplicate")
    assert first.commit.conversation == again.commit.conversation
    assert (await fork("key", "other")).status == "conflict_key"
    at_once = await asyncio.gather(*(fork("another") for _ in range(4)))
    assert sorted(each.status for each in at_once) == ["duplicate"] * 3 + ["forked"]
    assert len({each.commit.conversation.id for each in at_once if each.commit}) == 1
    assert len((await repository.list_conversations(LOCAL_OWNER)).conversations) == 3


async def test_a_fork_beyond_the_end_or_of_nothing_is_refused(
    repository: ConversationRepository, curation: CurationRepository
) -> None:
    """With the last number there is."""
    source = await conversation_of(repository, "1", "2")
    for at_seq in (3, -1):
        result = await curation.fork(
            ConversationKey(LOCAL_OWNER, source.continuation_id),
            once(),
            new_conversation_id=ConversationId(new_id()),
            at_seq=at_seq,
        )
        assert (result.status, result.last_seq) == ("out_of_range", 2)
    other = await curation.fork(
        ConversationKey(Owner("o"), source.continuation_id), once(), new_conversation_id=ConversationId(new_id())
    )
    assert other.status == "not_found"


async def test_chains_of_forks_are_bounded(repository: ConversationRepository, curation: CurationRepository) -> None:
    """Reading walks them, so their length is a limit like any other."""
    conversation = await conversation_of(repository, "0")
    for depth in range(64):
        conversation = await forked(curation, conversation)
        await repository.append(appending(conversation.continuation_id, str(depth + 1)))
    assert await contents_of(repository, conversation.continuation_id) == [str(i) for i in range(65)]
    result = await curation.fork(
        ConversationKey(LOCAL_OWNER, conversation.continuation_id), once(), new_conversation_id=ConversationId(new_id())
    )
    assert result.status == "too_deep"


async def test_an_edit_in_a_parent_is_a_change_of_its_forks(
    repository: ConversationRepository, curation: CurationRepository, database: Database
) -> None:
    """Their texts have changed, so their cache entries must be replaced."""
    source = await conversation_of(repository, "1")
    fork = await forked(curation, await forked(curation, source))
    start = await repository.changes(None)
    await execute(database, "update messages set content = 'changed'")
    told = {change.continuation_id for change in (await repository.changes(start.xmin)).changed}
    assert {source.continuation_id, fork.continuation_id} <= told


async def test_a_change_is_one_revision_and_no_appends_of_it_are_known(
    repository: ConversationRepository, curation: CurationRepository
) -> None:
    """Title, metadata and tags are part of what caches hold."""
    source = await conversation_of(repository, "1")
    change = ConversationUpdate(title="new", metadata={"a": 1}, tags=["x", "y", "x"])
    changed = await curation.change(ConversationKey(LOCAL_OWNER, source.continuation_id), once(), change)
    assert (changed.status, changed.commit.base_revision, changed.commit.revision) == ("changed", 1, 2)
    assert changed.commit is not None
    assert changed.commit.conversation.title == "new"
    assert (changed.commit.conversation.metadata, changed.commit.conversation.tags) == ({"a": 1}, ("x", "y"))
    page = await repository.read_page(ConversationKey(LOCAL_OWNER, source.continuation_id))
    assert page.conversation == changed.commit.conversation
    again = await curation.change(ConversationKey(LOCAL_OWNER, source.continuation_id), once(), change)
    assert (again.status, again.commit.revision) == ("unchanged", 2)
    cleared = await curation.change(
        ConversationKey(LOCAL_OWNER, source.continuation_id), once(), ConversationUpdate(title="", tags=[])
    )
    assert cleared.commit is not None
    assert (cleared.commit.conversation.title, cleared.commit.conversation.tags) == (None, ())


async def test_a_change_of_another_state_is_a_conflict(
    repository: ConversationRepository, curation: CurationRepository
) -> None:
    """Unless it is done already."""
    source = await conversation_of(repository, "1")
    await repository.append(appending(source.continuation_id, "2"))
    name = source.continuation_id
    refused = await curation.change(
        ConversationKey(LOCAL_OWNER, name), once(), ConversationUpdate(title="new"), expected_revision=1
    )
    assert (refused.status, refused.current_revision) == ("conflict_revision", 2)
    assert (
        await curation.change(
            ConversationKey(LOCAL_OWNER, name), once(), ConversationUpdate(title="new"), expected_revision=2
        )
    ).status == "changed"
    assert (
        await curation.change(
            ConversationKey(LOCAL_OWNER, name), once(), ConversationUpdate(title="new"), expected_revision=2
        )
    ).status == "unchanged"


async def test_a_repeated_change_undoes_no_later_one(
    repository: ConversationRepository, curation: CurationRepository
) -> None:
    """A delayed repetition returns the first result and changes nothing."""
    name = (await conversation_of(repository, "1")).continuation_id
    first = await curation.change(
        ConversationKey(LOCAL_OWNER, name), once("key"), ConversationUpdate(title="first"), expected_revision=1
    )
    await curation.change(ConversationKey(LOCAL_OWNER, name), once(), ConversationUpdate(title="second"))
    again = await curation.change(
        ConversationKey(LOCAL_OWNER, name), once("key"), ConversationUpdate(title="first"), expected_revision=1
    )
    assert (again.status, again.commit.conversation, again.commit.revision) == (
        "duplicate",
        first.commit.conversation,
        3,
    )
    page = await repository.read_page(ConversationKey(LOCAL_OWNER, name))
    assert (page.conversation.title, page.conversation.revision) == ("second", 3)
    assert (
        await curation.change(ConversationKey(LOCAL_OWNER, name), once("key", "other"), ConversationUpdate(title="x"))
    ).status == "conflict_key"
    other = (await conversation_of(repository, "1")).continuation_id
    assert (
        await curation.change(ConversationKey(LOCAL_OWNER, other), once("key"), ConversationUpdate(title="first"))
    ).status == "conflict_key"
    unchanged = await repository.read_page(ConversationKey(LOCAL_OWNER, other))
    assert (unchanged.conversation.title, unchanged.conversation.revision) == (None, 1)


async def test_a_key_belongs_to_one_request_of_any_kind(
    repository: ConversationRepository, curation: CurationRepository
) -> None:
    """Appends, forks and changes share their keys."""
    name = (await conversation_of(repository, "1")).continuation_id
    await repository.append(appending(name, "2", key="key"))
    assert (
        await curation.change(ConversationKey(LOCAL_OWNER, name), once("key", "x"), ConversationUpdate(title="x"))
    ).status == "conflict_key"
    new = ConversationId(new_id())
    fork = await curation.fork(ConversationKey(LOCAL_OWNER, name), once("key", "x"), new_conversation_id=new)
    assert fork.status == "conflict_key"
    await curation.change(ConversationKey(LOCAL_OWNER, name), once("other", "x"), ConversationUpdate(title="x"))
    assert (await repository.append(appending(name, "3", key="other"))).status == "conflict_key"


async def test_a_repeated_deletion_does_not_delete_what_was_brought_back(
    repository: ConversationRepository, curation: CurationRepository
) -> None:
    """The mark is set once per key."""
    name = (await conversation_of(repository, "1")).continuation_id
    for _ in range(2):
        await curation.mark_deleted(ConversationKey(LOCAL_OWNER, name), once("delete"), deleted=True)
    await curation.mark_deleted(ConversationKey(LOCAL_OWNER, name), once("restore"), deleted=False)
    late = await curation.mark_deleted(ConversationKey(LOCAL_OWNER, name), once("delete"), deleted=True)
    assert late.status == "duplicate"
    assert await contents_of(repository, name) == ["1"]


async def test_a_deleted_conversation_is_nowhere_until_it_is_brought_back(
    repository: ConversationRepository, turns: TurnRepository, curation: CurationRepository
) -> None:
    """Not read, not listed, not appended to, not asked; its forks go on."""
    source = await conversation_of(repository, "1")
    name = source.continuation_id
    fork = await forked(curation, source)
    deleted = await curation.mark_deleted(ConversationKey(LOCAL_OWNER, name), once(), deleted=True)
    assert (deleted.status, deleted.commit.revision) == ("changed", 2)
    assert (await curation.mark_deleted(ConversationKey(LOCAL_OWNER, name), once(), deleted=True)).status == "unchanged"
    with pytest.raises(NotFound):
        await repository.read_page(ConversationKey(LOCAL_OWNER, name))
    assert (await repository.append(appending(name, "2"))).status == "deleted"
    assert (await turns.begin(beginning(name, "2"))).status == "not_found"
    assert (
        await curation.change(ConversationKey(LOCAL_OWNER, name), once(), ConversationUpdate(title="x"))
    ).status == "not_found"
    listed = await repository.list_conversations(LOCAL_OWNER)
    assert [conversation.id for conversation in listed.conversations] == [fork.id]
    assert await contents_of(repository, fork.continuation_id) == ["1"]
    assert (await curation.mark_deleted(ConversationKey(LOCAL_OWNER, name), once(), deleted=False)).commit.revision == 3
    assert await contents_of(repository, name) == ["1"]


async def test_a_purge_takes_what_was_deleted_long_ago_and_no_fork_needs(
    repository: ConversationRepository, curation: CurationRepository, database: Database
) -> None:
    """In batches, oldest first."""
    source = await conversation_of(repository, "1")
    fork = await forked(curation, source)
    lonely = await conversation_of(repository, "2")
    kept = await conversation_of(repository, "3")
    for each in (source, lonely):
        await curation.mark_deleted(ConversationKey(LOCAL_OWNER, each.continuation_id), once(), deleted=True)
    assert await curation.purge() == 0
    await execute(
        database, "update conversations set deleted_at = now() - interval '8 days' where deleted_at is not null"
    )
    assert await curation.purge(limit=1) == 1
    assert await curation.purge() == 0
    assert await contents_of(repository, fork.continuation_id) == ["1"]
    await curation.mark_deleted(ConversationKey(LOCAL_OWNER, fork.continuation_id), once(), deleted=True)
    await execute(
        database, "update conversations set deleted_at = now() - interval '8 days' where deleted_at is not null"
    )
    assert [await curation.purge() for _ in range(3)] == [1, 1, 0]
    assert await contents_of(repository, kept.continuation_id) == ["3"]
    assert await curation.prune_removed() == 0
    assert await curation.prune_removed(after_s=0) == 3


async def test_idle_conversations_expire_by_owner_or_all(
    repository: ConversationRepository, curation: CurationRepository, database: Database
) -> None:
    """Expiry counts from the last change, never from the creation."""
    for owner in ("a", "b"):
        for _ in range(3):
            await repository.append(appending(None, "x", owner=owner))
    fresh = await conversation_of(repository, "fresh")
    await execute(
        database, "update conversations set updated_at = now() - interval '40 days' where owner in ('a', 'b')"
    )
    month_s = 30 * 86_400.0
    assert await curation.expire_idle(Owner("a"), idle_s=month_s, limit=2) == 2
    assert await curation.expire_idle(None, idle_s=month_s) == 4
    assert await curation.expire_idle(None, idle_s=month_s) == 0
    assert await contents_of(repository, fresh.continuation_id) == ["fresh"]


async def test_appending_and_deleting_at_once_do_not_wait_for_each_other_for_ever(
    repository: ConversationRepository, curation: CurationRepository
) -> None:
    """Every writer takes the conversation first."""
    source = await conversation_of(repository, "1")
    name = source.continuation_id
    await asyncio.gather(
        *(repository.append(appending(name, "x")) for _ in range(10)),
        *(
            curation.change(ConversationKey(LOCAL_OWNER, name), once(), ConversationUpdate(title=str(i)))
            for i in range(10)
        ),
        *(forked(curation, source) for _ in range(10)),
    )
    page = await repository.read_page(ConversationKey(LOCAL_OWNER, name))
    assert_consecutive(page.messages)
    assert page.conversation.revision == 21


async def test_an_export_reads_forks_from_the_beginning(
    repository: ConversationRepository, curation: CurationRepository, database: Database
) -> None:
    """A page at a time, and as it was when it began."""
    conversation = await conversation_of(repository, *(f"0.{i}" for i in range(60)))
    conversation = await forked(curation, conversation, at_seq=55)
    await repository.append(appending(conversation.continuation_id, *(f"1.{i}" for i in range(60))))
    transfer = TransferRepository(database)
    seen: list[str] = []
    after = 0
    while True:
        page = await transfer.read_forward(
            ConversationKey(LOCAL_OWNER, conversation.continuation_id), after_seq=after, limit=26
        )
        if not page.messages:
            break
        assert len(page.messages) <= 26
        seen += [message.content for message in page.messages]
        after = page.messages[-1].seq
    assert seen == [*(f"0.{i}" for i in range(55)), *(f"1.{i}" for i in range(60))]
