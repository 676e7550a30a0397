"""Rows written by other programs (a dashboard, older clients, SQL) are numbered and noticed like EXAI's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import orjson
import pytest

from exai.db.conversations import ConversationRepository
from exai.db.driver.pool import Database, OneTrip, connect
from exai.db.lifecycle import CurationRepository
from exai.db.records import CachedRange
from exai.db.turns import TurnRepository
from exai.models import LOCAL_OWNER, ConversationId, ConversationKey
from tests.support.database import appending, beginning, contents_of, conversation_of, new_id, once


@pytest.fixture
async def sql(database: Database) -> AsyncIterator[OneTrip]:
    connection = await connect(database.address, timeout_s=5)
    yield connection
    await connection.close()


async def revision_of(repository: ConversationRepository, name: str) -> int:
    return (await repository.read_page(ConversationKey(LOCAL_OWNER, name))).conversation.revision  # type: ignore[arg-type]


async def test_a_message_without_a_number_gets_the_next_one(repository: ConversationRepository, sql: OneTrip) -> None:
    """Older clients insert messages without numbers."""
    conversation = await conversation_of(repository, "one")
    await sql.execute(
        "insert into messages (conversation_id, role, content) select $1::text::uuid, 'user', c"
        " from unnest(array['two', 'three']) c",
        conversation.id,
    )
    await repository.append(appending(conversation.continuation_id, "four"))
    assert await contents_of(repository, conversation.continuation_id) == ["one", "two", "three", "four"]
    assert await revision_of(repository, conversation.continuation_id) == 4


async def test_outside_and_inside_writers_interleave(repository: ConversationRepository, sql: OneTrip) -> None:
    """Both take their numbers under the same lock."""
    conversation = await conversation_of(repository, "0")

    async def outside() -> None:
        for _ in range(20):
            await sql.execute(
                "insert into messages (conversation_id, role, content) values ($1::text::uuid, 'user', 'out')",
                conversation.id,
            )

    async def inside() -> None:
        for _ in range(20):
            await repository.append(appending(conversation.continuation_id, "in", "in"))

    await asyncio.gather(outside(), inside())
    assert len(await contents_of(repository, conversation.continuation_id)) == 61


async def test_a_plain_insert_is_an_append_for_caches(
    repository: ConversationRepository, turns: TurnRepository, sql: OneTrip
) -> None:
    """Cached messages stay valid; only the new one is read."""
    conversation = await conversation_of(repository, "one")
    await sql.execute(
        "insert into messages (conversation_id, role, content) values ($1::text::uuid, 'user', 'two')", conversation.id
    )
    begun = await turns.begin(beginning(conversation.continuation_id, "q", known=CachedRange(1, 1, 1, 3)))
    assert ([message.content for message in begun.history], begun.full) == (["two"], False)


@pytest.mark.parametrize(
    "change",
    [
        "update messages set content = 'changed' where content = 'one'",
        "delete from messages where content = 'two'",
        "truncate messages",
        "update conversations set title = 'changed'",
        "update conversations set metadata = '{\"a\": 1}'",
        "update conversations set tags = array['t']",
    ],
)
async def test_an_edit_by_another_program_invalidates_cached_pages(
    repository: ConversationRepository, turns: TurnRepository, sql: OneTrip, change: str
) -> None:
    """It has a new revision and is a change for reconciliation; a turn receives the whole history."""
    conversation = await conversation_of(repository, "one", "two")
    start = await repository.changes(None)
    await sql.execute(change)
    assert await revision_of(repository, conversation.continuation_id) == 2
    assert [told.revision for told in (await repository.changes(start.xmin)).changed] == [2]
    begun = await turns.begin(beginning(conversation.continuation_id, "q", known=CachedRange(1, 1, 2, 6)))
    assert begun.full


@pytest.mark.parametrize(
    "change",
    [
        "insert into conversations (continuation_id, updated_at) values ('new', now() + interval '8 hours')",
        "update conversations set updated_at = now() + interval '8 hours'",
        "update conversations set title = 'new', updated_at = 'infinity'",
    ],
)
async def test_a_last_change_that_is_still_to_come_is_now(
    repository: ConversationRepository, sql: OneTrip, change: str
) -> None:
    """Clients that write local time would be listed first for hours, and expire late."""
    await conversation_of(repository, "one")
    await sql.execute(change)
    assert await sql.fetchval("select count(*) from conversations where updated_at > clock_timestamp()") == 0


REPLICATING = "set session_replication_role = replica; "


@pytest.mark.direct
@pytest.mark.parametrize(
    "change",
    [
        "update messages set content = 'changed' where content = 'one'",
        "delete from messages where content = 'two'",
        "truncate messages",
        "update conversations set title = 'changed'",
    ],
)
async def test_an_edit_is_noted_in_a_session_that_replicates(
    repository: ConversationRepository, sql: OneTrip, change: str
) -> None:
    """Tools that load data switch triggers off this way."""
    await conversation_of(repository, "one", "two")
    start = await repository.changes(None)
    await sql.execute(REPLICATING + change)
    assert [told.revision for told in (await repository.changes(start.xmin)).changed] == [2]


@pytest.mark.direct
@pytest.mark.parametrize("role", ["", REPLICATING])
async def test_deleted_conversations_of_an_owner_are_noted(
    repository: ConversationRepository, sql: OneTrip, role: str
) -> None:
    """Nothing is left to see their revisions in."""
    conversation = await conversation_of(repository, "one")
    start = await repository.changes(None)
    await sql.execute(role + "delete from conversations where owner = 'local'")
    told = {change.continuation_id: change.revision for change in (await repository.changes(start.xmin)).changed}
    assert told == {conversation.continuation_id: None}


@pytest.mark.direct
@pytest.mark.parametrize("role", ["", REPLICATING])
@pytest.mark.parametrize(
    "change",
    [
        "truncate conversations cascade",
        "truncate messages",
        "alter table messages disable trigger all; truncate messages",
        "alter table messages disable trigger all; alter table messages add column other integer default random()",
    ],
)
async def test_new_files_of_a_table_are_a_new_incarnation(
    repository: ConversationRepository, sql: OneTrip, role: str, change: str
) -> None:
    """Rows that go without a trace leave nothing that a pass could read, so caches begin anew."""
    conversation = await conversation_of(repository, "one")
    before = await repository.changes(None)
    page = await repository.read_page(ConversationKey(LOCAL_OWNER, conversation.continuation_id))
    appended = await repository.append(appending(conversation.continuation_id, "two"))
    assert appended.commit.server_epoch == page.server_epoch
    assert (await repository.changes(None)).server_epoch == before.server_epoch
    await sql.execute(role + change)
    assert (await repository.changes(None)).server_epoch != before.server_epoch
    other = await repository.append(appending(None, "three"))
    assert other.commit.server_epoch != page.server_epoch


async def test_our_own_writes_do_not_bump_twice(repository: ConversationRepository) -> None:
    """The triggers leave alone what counts for itself."""
    conversation = await conversation_of(repository, "one")
    await repository.append(appending(conversation.continuation_id, "two"))
    assert await revision_of(repository, conversation.continuation_id) == 2


@pytest.mark.parametrize(
    "change",
    [
        "update messages set seq = 7",
        "update messages set conversation_id = gen_random_uuid()",
        "insert into messages (conversation_id, seq, role, content) select id, 9, 'user', 'x' from conversations",
        "insert into messages (conversation_id, seq, role, content) select id, 1, 'user', 'x' from conversations",
        "insert into messages (conversation_id, role, content) select id, 'robot', 'x' from conversations",
    ],
)
async def test_numbers_are_the_databases_to_give(repository: ConversationRepository, sql: OneTrip, change: str) -> None:
    """A number is how caches, turns and forks know a message; it is never changed and never chosen."""
    conversation = await conversation_of(repository, "one")
    with pytest.raises(asyncpg.IntegrityConstraintViolationError):
        await sql.execute(change)
    assert await contents_of(repository, conversation.continuation_id) == ["one"]


async def test_a_renamed_conversation_is_gone_under_its_old_name(
    repository: ConversationRepository, sql: OneTrip
) -> None:
    """Caches know it by its name."""
    conversation = await conversation_of(repository, "one")
    start = await repository.changes(None)
    await sql.execute("update conversations set continuation_id = 'new'")
    told = {change.continuation_id: change.revision for change in (await repository.changes(start.xmin)).changed}
    assert told == {conversation.continuation_id: None, "new": 2}


@pytest.mark.parametrize("value", ["[1, 2]", '"text"', "7", "null"])
async def test_metadata_that_is_no_object_is_read_as_the_value_of_one(
    repository: ConversationRepository, turns: TurnRepository, sql: OneTrip, value: str
) -> None:
    """Everything that reads metadata looks for its fields."""
    conversation = await conversation_of(repository, "one")
    await sql.execute(f"update messages set metadata = '{value}'")
    expected = {"value": orjson.loads(value)}
    page = await repository.read_page(ConversationKey(LOCAL_OWNER, conversation.continuation_id))
    assert [message.metadata for message in page.messages] == [expected]
    begun = await turns.begin(beginning(conversation.continuation_id, "q"))
    assert [message.metadata for message in begun.history] == [expected]


async def test_a_message_of_no_conversation_is_refused(sql: OneTrip) -> None:
    """Rules belong to the schema."""
    with pytest.raises(asyncpg.IntegrityConstraintViolationError):
        await sql.execute(
            "insert into messages (conversation_id, role, content) values (gen_random_uuid(), 'user', '')"
        )


async def test_forks_notice_a_message_that_is_put_back(
    repository: ConversationRepository, database: Database, sql: OneTrip
) -> None:
    """Their caches hold the page without it, and would go on serving that."""
    source = await conversation_of(repository, "one", "two", "three")
    curation = CurationRepository(database)

    async def fork(at_seq: int) -> str:
        new = ConversationId(new_id())
        made = await curation.fork(
            ConversationKey(LOCAL_OWNER, source.continuation_id), once(), new_conversation_id=new, at_seq=at_seq
        )
        assert made.commit is not None
        return made.commit.conversation.continuation_id

    reading, ending_before = await fork(3), await fork(1)
    await sql.execute("delete from messages where conversation_id = $1::text::uuid and seq = 2", source.id)
    before = await revision_of(repository, reading), await revision_of(repository, ending_before)
    await sql.execute(
        "insert into messages (conversation_id, seq, role, content) values ($1::text::uuid, 2, 'user', 'mended')",
        source.id,
    )
    assert await contents_of(repository, reading) == ["one", "mended", "three"]
    after = await revision_of(repository, reading), await revision_of(repository, ending_before)
    assert after == (before[0] + 1, before[1])
