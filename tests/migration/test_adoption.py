"""A database of the older system is taken over in place: every row survives, in order, while its clients go on."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from alembic.util import CommandError

from exai.db.conversations import ConversationRepository
from exai.db.curation import CurationRepository
from exai.db.migrate import upgrade
from exai.errors import SchemaMismatch
from exai.models import LOCAL_OWNER, ContinuationId
from tests.support.database import appending, beginning, contents_of, ending, opened
from tests.support.migrations import downgrade, revisions, run, session, value
from tests.support.older import LIKE_SUPABASE, OLDER, WITHOUT_ANY_RULES, A, Older

TABLES = ("conversations", "messages", "files", "conversation_files")


@pytest.fixture(params=list(OLDER))
def older(request: pytest.FixtureRequest) -> Older:
    return OLDER[request.param]


async def everything(url: str) -> dict[str, list[str]]:
    """All rows with the transactions that wrote them."""
    async with session(url) as connection:
        return {
            table: [
                row[0] for row in await connection.fetch(f"select t.xmin || ' ' || t::text from {table} t order by 1")
            ]
            for table in TABLES
        }


async def test_every_row_survives_in_order(empty_postgres_url: str, older: Older) -> None:
    """By time, then by id; what no key could hold is kept as JSON."""
    url = empty_postgres_url
    await run(url, older.sql)
    messages = sorted(text for texts in older.conversations.values() for text in texts)
    await upgrade(url)
    async with opened(url) as database:
        repository = ConversationRepository(database)
        listed = await repository.list_conversations(LOCAL_OWNER)
        assert {each.continuation_id for each in listed.conversations} == set(older.conversations)
        for name, contents in older.conversations.items():
            assert await contents_of(repository, name) == contents
    assert await value(url, "select coalesce(array_agg(content order by content), '{}') from messages") == messages
    assert await value(url, "select count(*) from conversation_files") == older.links
    assert await value(url, "select count(*) from exai.set_aside") == older.set_aside


async def test_a_second_run_changes_nothing(empty_postgres_url: str, older: Older) -> None:
    """Not a row is written."""
    url = empty_postgres_url
    await run(url, older.sql)
    await upgrade(url)
    before = await everything(url)
    await upgrade(url)
    assert await everything(url) == before


async def test_the_service_works_on_it(empty_postgres_url: str, older: Older) -> None:
    """Appends, turns, forks, deletion: as on a database of its own."""
    url = empty_postgres_url
    await run(url, older.sql)
    await upgrade(url)
    async with opened(url) as database:
        repository, curation = ConversationRepository(database), CurationRepository(database)
        for name, contents in older.conversations.items():
            result = await repository.append(appending(name, "new"))
            assert (result.status, result.first_seq) == ("appended", len(contents) + 1)
            begun = await repository.begin_turn(beginning(name, "question"))
            assert [message.content for message in begun.history] == [*contents, "new"]
            finished = await repository.finish_turn(ending(begun.turn_id, "answer"))
            assert finished.status == "finished"
            assert (await curation.delete(LOCAL_OWNER, ContinuationId(name))).status == "changed"
        await run(url, "update conversations set deleted_at = now() - interval '9 days' where deleted_at is not null")
        while await curation.purge():
            pass
        assert await value(url, "select count(*) from messages") == 0
        assert (await repository.append(appending(None, "one"))).status == "appended"


async def test_older_clients_go_on_afterwards(empty_postgres_url: str) -> None:
    """They write what they always wrote, and find what they always found."""
    url = empty_postgres_url
    await run(url, LIKE_SUPABASE)
    await upgrade(url)
    await run(
        url,
        "insert into conversations (continuation_id, metadata) values ('older', null)",
        "insert into messages (conversation_id, role, content) select id, 'user', 'hello' from conversations"
        " where continuation_id = 'older'",
        "insert into messages (conversation_id, role, content, metadata, created_at)"
        " select id, 'user', 'again', null, null from conversations where continuation_id = 'older'",
        "insert into conversations (continuation_id) values ('a') on conflict (continuation_id) do nothing",
        "insert into files (storage_path, original_name) values ('p/3', 'three')",
        "select cleanup_orphaned_files()",
    )
    async with opened(url) as database:
        assert await contents_of(ConversationRepository(database), "older") == ["hello", "again"]
        await ConversationRepository(database).append(appending("older", "new"))
    seen = await value(url, "select array_agg(content order by created_at) from messages where id is not null")
    assert seen[-3:] == ["hello", "again", "new"]
    assert await value(url, "select count(*) from files") == 3


async def test_older_clients_go_on_meanwhile(empty_postgres_url: str) -> None:
    """Nobody is turned away, and what they write is numbered with the rest."""
    url = empty_postgres_url
    await run(url, LIKE_SUPABASE)
    await run(
        url,
        "insert into conversations (continuation_id) select 'bulk' || i from generate_series(1, 300) i",
        "insert into messages (conversation_id, role, content, created_at)"
        " select c.id, 'user', s::text, '2025-01-01'::timestamptz + s * interval '1 minute'"
        " from conversations c cross join generate_series(1, 20) s where continuation_id like 'bulk%'",
    )
    done = asyncio.Event()
    written = {"new": 0, "old": 0}

    async def write() -> None:
        async with session(url) as connection:
            while not done.is_set():
                name = f"meanwhile{written['new']}"
                await connection.execute("insert into conversations (continuation_id) values ($1)", name)
                for _ in range(2):
                    await connection.execute(
                        "insert into messages (conversation_id, role, content)"
                        " select id, 'user', 'm' from conversations where continuation_id = $1",
                        name,
                    )
                written["new"] += 1
                await connection.execute(
                    "insert into messages (conversation_id, role, content)"
                    " select id, 'user', 'later' from conversations"
                    " where continuation_id = 'bulk' || ($1::int % 300 + 1)",
                    written["old"],
                )
                written["old"] += 1

    async def read() -> None:
        async with session(url) as connection:
            while not done.is_set():
                await connection.fetch(
                    "select id, role, content, created_at from messages order by created_at limit 50"
                )

    tasks = [asyncio.create_task(write()), asyncio.create_task(write_titles(url, done)), asyncio.create_task(read())]
    try:
        await upgrade(url)
    finally:
        done.set()
    await asyncio.gather(*tasks)
    assert written["new"] > 0
    async with opened(url) as database:
        repository = ConversationRepository(database)
        for number in range(written["new"]):
            assert await contents_of(repository, f"meanwhile{number}") == ["m", "m"]
        for number in range(1, 301):
            contents = await contents_of(repository, f"bulk{number}")
            assert contents[:20] == [str(i) for i in range(1, 21)]
            assert set(contents[20:]) <= {"later"}
    assert await value(url, "select count(*) from messages where content = 'later'") == written["old"]


async def write_titles(url: str, done: asyncio.Event) -> None:
    async with session(url) as connection:
        count = 0
        while not done.is_set():
            count += 1
            await connection.execute(f"update conversations set title = 'x{count}' where continuation_id = 'bulk7'")
            await connection.execute(f"update messages set content = content where conversation_id = '{A}'")


async def test_a_migration_that_was_killed_is_run_again(empty_postgres_url: str) -> None:
    """Wherever it was: what was done stays done, the rest is done now."""
    url = empty_postgres_url
    await run(url, WITHOUT_ANY_RULES)
    kills = 0
    for _ in range(12):
        running = asyncio.create_task(upgrade(url))
        async with session(url) as killer:
            while not running.done():
                await asyncio.sleep(0.05 * (kills + 1))
                kills += await killer.fetchval(
                    "select count(pg_terminate_backend(pid)) from pg_stat_activity"
                    " where datname = current_database() and pid <> pg_backend_pid()"
                )
        with contextlib.suppress(Exception):
            await running
    await upgrade(url)
    assert kills > 0
    async with opened(url) as database:
        for name, contents in OLDER["without any rules"].conversations.items():
            assert await contents_of(ConversationRepository(database), name) == contents
    assert await value(url, "select count(*) from exai.set_aside") == OLDER["without any rules"].set_aside


async def test_whoever_is_writing_is_waited_for(empty_postgres_url: str) -> None:
    """What an open transaction adds to a conversation is numbered after what was there."""
    url = empty_postgres_url
    await run(url, LIKE_SUPABASE)
    await upgrade(url, "0001")
    async with session(url) as observer:
        async with session(url) as other, other.transaction():
            await other.execute("update conversations set title = 'held' where continuation_id = 'a'")
            running = asyncio.create_task(upgrade(url))
            while not await observer.fetchval("select count(*) from pg_stat_activity where wait_event_type = 'Lock'"):
                await asyncio.sleep(0.01)
            await other.execute(
                "insert into messages (conversation_id, role, content) select id, 'user', 'last' from conversations"
                " where continuation_id = 'a'"
            )
        await running
    async with opened(url) as database:
        assert await contents_of(ConversationRepository(database), "a") == ["a1", "a2", "a3", "last"]


async def test_redundant_indexes_go_and_useful_ones_stay(empty_postgres_url: str) -> None:
    """Three of the old ones were one index, which every write paid for three times."""
    url = empty_postgres_url
    await run(url, LIKE_SUPABASE)
    await upgrade(url)
    names = await value(url, "select array_agg(indexname::text) from pg_indexes where indexname like 'idx_%'")
    assert sorted(names) == ["idx_conversations_continuation_id", "idx_messages_created_at"]


async def test_row_level_security_of_old_tables_is_left_to_their_owner(empty_postgres_url: str) -> None:
    """Switching it on would lock older clients out."""
    url = empty_postgres_url
    await run(url, LIKE_SUPABASE)
    await upgrade(url)
    secured = "select relrowsecurity from pg_class where oid = $1::text::regclass"
    assert [await value(url, secured, f"public.{table}") for table in ("conversations", "messages", "turns")] == [
        True,
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("sql", "part"),
    [
        ("create table conversations (id bigint primary key, continuation_id text)", "conversations.id is bigint"),
        ("create table conversations (name text)", "no column id"),
        ("create table messages (conversation_id text, role text, content text)", "conversation_id is text"),
        ("create table messages (id uuid, body text)", "no column conversation_id, role, content"),
        ("create table turns (x int)", "public.turns is there already"),
        ("create table messages (conversation_id uuid, role text, content text, metadata json)", "metadata is json"),
    ],
)
async def test_what_cannot_be_kept_is_refused_untouched(empty_postgres_url: str, sql: str, part: str) -> None:
    """With the name of what is in the way."""
    url = empty_postgres_url
    await run(url, sql)
    with pytest.raises(SchemaMismatch, match=part):
        await upgrade(url)
    assert await value(url, "select count(*) from information_schema.tables where table_schema = 'public'") == 1


async def test_an_adopted_database_does_not_go_back(empty_postgres_url: str) -> None:
    """What was added could only be removed with what was written since."""
    url = empty_postgres_url
    await run(url, LIKE_SUPABASE)
    await upgrade(url)
    with pytest.raises(CommandError, match="before EXAI"):
        await downgrade(url, "base")
    await upgrade(url)
    assert await value(url, "select version_num from exai.alembic_version") == revisions()[-1]
