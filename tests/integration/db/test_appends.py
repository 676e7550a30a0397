"""Appends: contiguous blocks, numbered without gaps or repetitions, once per request key."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from exai.db.conversations import ConversationRepository
from exai.db.driver.pool import Database, connect
from exai.db.files import FileRepository
from exai.db.turns import TurnRepository
from exai.errors import NotFound
from exai.models import LOCAL_OWNER, ConversationKey, FileId, NewMessage, Owner, TurnId
from tests.support.database import (
    appending,
    assert_consecutive,
    beginning,
    contents_of,
    conversation_of,
    ending,
    new_id,
)

OTHER = Owner("other")


async def test_an_append_without_a_name_makes_a_conversation(repository: ConversationRepository) -> None:
    """The id it is given is also the name it is continued by."""
    start = appending(None, "one", "two", title="Title")
    result = await repository.append(start)
    assert result.status == "appended"
    assert result.commit is not None
    assert result.commit.conversation.continuation_id == start.new_conversation_id
    assert (
        result.commit.conversation.title,
        result.commit.conversation.last_seq,
        result.commit.conversation.revision,
    ) == ("Title", 2, 1)
    assert (result.commit.base_revision, result.commit.revision, result.first_seq, result.last_seq) == (0, 1, 1, 2)


async def test_what_an_append_reports_is_what_a_read_returns(repository: ConversationRepository) -> None:
    """The cache stores the report without asking again, so the two may not differ."""
    messages = [
        NewMessage("system", "rules"),
        NewMessage("user", "Zürich 東京 🙂", kind="note", metadata={"a": [1, 2.5, None, {"b": "c"}]}),
        NewMessage("tool", ""),
    ]
    result = await repository.append(appending(None, messages=messages))
    assert result.commit is not None
    page = await repository.read_page(ConversationKey(LOCAL_OWNER, result.commit.conversation.continuation_id))
    assert result.commit.added == page.messages
    assert result.commit.conversation == page.conversation
    assert result.commit.server_epoch == page.server_epoch


async def test_a_repeated_key_answers_as_the_first_time(repository: ConversationRepository) -> None:
    """Promise 6, also when the conversation has moved on meanwhile."""
    start = appending(None, "one", "two")
    first = await repository.append(start)
    assert first.commit is not None
    name = first.commit.conversation.continuation_id
    await repository.append(appending(name, "three"))
    again = await repository.append(appending(None, "one", "two", key=start.request_key))
    assert again.status == "duplicate"
    assert (again.first_seq, again.last_seq, again.commit.base_revision, again.commit.revision) == (1, 2, 0, 1)
    assert again.commit.added == first.commit.added
    assert again.commit is not None
    assert again.commit.conversation.revision == 2
    assert await contents_of(repository, name) == ["one", "two", "three"]


async def test_a_key_used_for_other_content_is_a_conflict(repository: ConversationRepository) -> None:
    """The hash differs, or the conversation."""
    first, second = await conversation_of(repository, "a"), await conversation_of(repository, "b")
    key = new_id()
    await repository.append(appending(first.continuation_id, "x", key=key))
    other_hash = await repository.append(appending(first.continuation_id, "y", key=key, request_hash="other"))
    elsewhere = await repository.append(appending(second.continuation_id, "x", key=key))
    assert (other_hash.status, elsewhere.status) == ("conflict_key", "conflict_key")
    assert await contents_of(repository, second.continuation_id) == ["b"]


async def test_the_same_key_of_another_owner_is_another_request(repository: ConversationRepository) -> None:
    """Everything is scoped by owner, keys too."""
    key = new_id()
    mine = await repository.append(appending(None, "mine", key=key))
    theirs = await repository.append(appending(None, "theirs", key=key, owner=OTHER))
    assert (mine.status, theirs.status) == ("appended", "appended")


async def test_another_owner_sees_nothing(repository: ConversationRepository) -> None:
    """Things of other owners do not exist."""
    name = (await conversation_of(repository, "secret")).continuation_id
    with pytest.raises(NotFound):
        await repository.read_page(ConversationKey(OTHER, name))
    assert (await repository.append(appending(name, "x", owner=OTHER))).status == "not_found"
    assert (await repository.list_conversations(OTHER)).conversations == ()


async def test_an_unknown_name_is_not_found(repository: ConversationRepository) -> None:
    """A misspelled name must not start a conversation of its own."""
    assert (await repository.append(appending("nobody", "x"))).status == "not_found"


async def test_expected_revision_lets_exactly_one_of_many_through(repository: ConversationRepository) -> None:
    """Optimistic writers: a refused write states the current revision and stores nothing."""
    conversation = await conversation_of(repository, "zero")
    name, revision = conversation.continuation_id, conversation.revision
    results = await asyncio.gather(
        *(repository.append(appending(name, f"{i}", expected_revision=revision)) for i in range(8))
    )
    assert sorted(result.status for result in results) == ["appended", *["conflict_revision"] * 7]
    revisions = {result.commit.revision if result.commit else result.current_revision for result in results}
    assert revisions == {revision + 1}
    assert len(await contents_of(repository, name)) == 2


async def test_a_repeat_is_a_duplicate_although_its_expected_revision_has_passed(
    repository: ConversationRepository,
) -> None:
    """The first time moved the revision on itself."""
    conversation = await conversation_of(repository, "zero")
    start = appending(conversation.continuation_id, "one", expected_revision=conversation.revision)
    assert (await repository.append(start)).status == "appended"
    assert (await repository.append(replace(start, turn_id=TurnId(new_id())))).status == "duplicate"


async def test_interleaved_writers_leave_no_hole_and_keep_their_blocks_whole(
    repository: ConversationRepository,
) -> None:
    """Promise 7."""
    name = (await conversation_of(repository, "start")).continuation_id

    async def write(writer: int) -> None:
        for block in range(10):
            result = await repository.append(appending(name, *(f"{writer}.{block}.{part}" for part in range(3))))
            assert result.status == "appended"
            assert result.commit.revision == result.commit.base_revision + 1

    await asyncio.gather(*(write(writer) for writer in range(6)))
    page = await repository.read_page(ConversationKey(LOCAL_OWNER, name), limit=500)
    assert len(page.messages) == 1 + 6 * 10 * 3
    assert_consecutive(page.messages)
    assert page.conversation.revision == 61
    parts = [message.content.split(".") for message in page.messages[1:]]
    for at in range(0, len(parts), 3):
        block = parts[at : at + 3]
        assert [part for _, _, part in block] == ["0", "1", "2"]
        assert len({(writer, number) for writer, number, _ in block}) == 1
    for writer in range(6):
        mine = [int(number) for owner, number, part in parts if owner == str(writer) and part == "0"]
        assert mine == sorted(mine)
    assert [message.created_at for message in page.messages] == sorted(m.created_at for m in page.messages)


async def test_concurrent_duplicates_store_once(repository: ConversationRepository) -> None:
    """A duplicate that meets the first while it runs waits for it and gets its answer."""
    name = (await conversation_of(repository, "start")).continuation_id
    for round_ in range(10):
        key = new_id()
        results = await asyncio.gather(*(repository.append(appending(name, f"{round_}", key=key)) for _ in range(4)))
        assert sorted(result.status for result in results) == ["appended", *["duplicate"] * 3]
        assert len({(result.first_seq, result.commit.revision) for result in results}) == 1
    assert await contents_of(repository, name) == ["start", *(f"{i}" for i in range(10))]


async def test_concurrent_duplicates_make_one_conversation(repository: ConversationRepository) -> None:
    """There is no row to lock yet, so the key alone has to decide."""
    for _ in range(10):
        key = new_id()
        results = await asyncio.gather(*(repository.append(appending(None, "x", key=key)) for _ in range(4)))
        assert sorted(result.status for result in results) == ["appended", *["duplicate"] * 3]
        assert len({result.commit.conversation.id for result in results if result.commit}) == 1
    assert len((await repository.list_conversations(LOCAL_OWNER)).conversations) == 10


async def test_identical_statements_at_once_store_once(repository: ConversationRepository) -> None:
    """A statement that was given up and repeated may still be running: same key, same ids, and one caller."""
    for _ in range(10):
        start = appending(None, "x")
        results = await asyncio.gather(*(repository.append(start) for _ in range(4)))
        assert [(each.status, each.first_seq, each.commit.revision) for each in results] == [("appended", 1, 1)] * 4
        assert all(each.commit.added == results[0].commit.added for each in results)
    assert len((await repository.list_conversations(LOCAL_OWNER)).conversations) == 10


async def test_files_are_linked_once_with_the_messages(repository: ConversationRepository, database: Database) -> None:
    """Promise 3; a file that is missing, or of another owner, stops the whole append."""
    mine = await make_file(database, LOCAL_OWNER)
    theirs = await make_file(database, OTHER)
    result = await repository.append(appending(None, "one", file_ids=[mine, mine]))
    assert result.status == "appended"
    assert result.commit is not None
    name = result.commit.conversation.continuation_id
    refused = await repository.append(appending(name, "two", file_ids=[mine, theirs]))
    assert (refused.status, refused.missing) == ("file_not_found", theirs)
    again = await repository.append(appending(name, "two", file_ids=[mine]))
    assert again.status == "appended"
    assert await contents_of(repository, name) == ["one", "two"]


async def test_a_repeated_key_is_answered_although_its_file_is_gone(
    repository: ConversationRepository, turns: TurnRepository, database: Database
) -> None:
    """Promise 6: an acknowledged append stays stored after its files were deleted."""
    file_id = await make_file(database, LOCAL_OWNER)
    key, turn_key = new_id(), new_id()
    first = await repository.append(appending(None, "one", key=key, file_ids=[file_id]))
    begun = await turns.begin(beginning(None, "two", key=turn_key, file_ids=[file_id]))
    await turns.finish(ending(begun.turn_id, "answer"))
    assert await FileRepository(database).delete(LOCAL_OWNER, FileId(file_id))
    again = await repository.append(appending(None, "one", key=key, file_ids=[file_id]))
    assert (again.status, again.last_seq) == ("duplicate", first.last_seq)
    answered = await turns.begin(beginning(None, "two", key=turn_key, file_ids=[file_id]))
    assert answered.reply is not None
    assert answered.reply.content == "answer"
    new = await repository.append(appending(None, "one", file_ids=[file_id]))
    assert new.status == "file_not_found"


async def make_file(database: Database, owner: str) -> str:
    connection = await connect(database.address, timeout_s=5)
    try:
        return str(await connection.fetchval("insert into files (owner) values ($1) returning id::text", owner))
    finally:
        await connection.close()


async def test_an_append_without_messages_only_links(repository: ConversationRepository, database: Database) -> None:
    """Files may come without words."""
    conversation = await conversation_of(repository, "one")
    file_id = await make_file(database, LOCAL_OWNER)
    result = await repository.append(appending(conversation.continuation_id, file_ids=[file_id]))
    assert (result.status, result.first_seq, result.last_seq, result.commit.added) == ("appended", None, None, ())
    assert result.commit.revision == conversation.revision + 1
