"""The words of an older system's messages are indexed by a revision, which continues where it was interrupted."""

from __future__ import annotations

import asyncpg
import pytest
from alembic.script import ScriptDirectory

from exai.db.conversations import ConversationRepository
from exai.db.migrations.migrate import migration_config, upgrade
from exai.db.search import SearchQuery, SearchRepository
from exai.models import LOCAL_OWNER
from tests.support.database import conversation_of, opened
from tests.support.migrations import before, named, run, session, value
from tests.support.older import LIKE_SUPABASE

OLDER = (
    LIKE_SUPABASE,
    "truncate conversations, messages, files, conversation_files",
    "insert into conversations (continuation_id, title)"
    " select 'c' || i, case when i % 2 = 0 then 'title of ' || i end from generate_series(1, 50) i",
    "insert into messages (conversation_id, role, content, created_at)"
    " select c.id, 'user', 'word ' || s, '2025-01-01'::timestamptz + s * interval '1 minute'"
    " from conversations c cross join generate_series(1, 11) s",
)
AGREE = """
select count(*)
  from messages m
  join exai.message_words w using (conversation_id, seq, created_at)
  join conversations c on c.id = m.conversation_id
 where w.words = (select x.words from exai.words_v1(exai.owner_key_v1(c.owner), m.content) x)
"""


async def found(url: str, text: str) -> int:
    async with opened(url) as database:
        return len((await SearchRepository(database).search(SearchQuery(LOCAL_OWNER, text), limit=1_000)).hits)


async def back_to(url: str, revision: str) -> None:
    """Let the next upgrade run what follows this revision again, as after an interruption."""
    await run(url, f"update exai.alembic_version set version_num = '{revision}'")


async def test_messages_and_titles_of_an_older_system_are_indexed(empty_postgres_url: str) -> None:
    """By the rules by which new ones are; a long message waits for the daemon, and is found meanwhile."""
    url = empty_postgres_url
    await run(url, *OLDER)
    await run(
        url,
        "insert into messages (conversation_id, role, content) select id, 'user', repeat('filling ', 9000) || 'needle'"
        " from conversations where continuation_id = 'c7'",
        "update messages set content = content || ' caf\u00e9 fooBar' where content = 'word 1'",
    )
    await upgrade(url)
    assert await value(url, AGREE) == 550
    assert await value(url, "select count(*) from exai.message_words where seq = 0") == 25
    assert await value(url, "select count(*) from exai.unindexed_messages") == 1
    texts = {"word 7": 50, "word": 500, "cafe": 50, "bar": 50, "title": 25, "needle": 1}
    assert {text: await found(url, text) for text in texts} == texts
    async with opened(url) as database:
        while (await SearchRepository(database).index(1_000)).left:
            pass
        await conversation_of(ConversationRepository(database), "word 7")
    assert {text: await found(url, text) for text in texts} == texts | {"word 7": 51}


async def test_it_continues_where_it_was_interrupted(empty_postgres_url: str) -> None:
    """Some are indexed, others were changed or stored since they were, and the index was half built."""
    url = empty_postgres_url
    await run(url, *OLDER)
    await upgrade(url, named("backfill_older_rows"))
    await run(
        url,
        "delete from exai.message_words where seq > 5 or (seq = 0 and conversation_id in"
        " (select id from conversations where continuation_id like 'c1%'))",
        "update messages set content = 'changed' where seq = 1",
        "insert into messages (conversation_id, role, content) select id, 'user', 'new' from conversations",
        "create table kept as select xmin::text::bigint as written, w.conversation_id, w.seq from exai.message_words w",
        "create index message_words_words_idx on exai.message_words using gin (words)",
        "update pg_index set indisvalid = false where indexrelid = 'exai.message_words_words_idx'::regclass",
    )
    await back_to(url, before("backfill_older_rows"))
    await upgrade(url)
    again = (
        "select count(*) from kept k left join exai.message_words w using (conversation_id, seq)"
        " where w.xmin::text::bigint is distinct from k.written"
    )
    assert await value(url, again) == 0
    assert await value(
        url, "select indisvalid from pg_index where indexrelid = 'exai.message_words_words_idx'::regclass"
    )
    for _ in ("waiting", "indexed"):
        assert [await found(url, each) for each in ("word", "changed", "new", "title")] == [500, 50, 50, 25]
        async with opened(url) as database:
            await SearchRepository(database).index(1_000)
    assert await value(url, AGREE) == 600


async def test_a_locked_conversation_is_not_waited_for(empty_postgres_url: str) -> None:
    """Its messages and title are queued; waiting for its deletion would make the migration fail."""
    url = empty_postgres_url
    await run(url, *OLDER)
    await upgrade(url, named("backfill_older_rows"))
    await run(url, "truncate exai.message_words, exai.unindexed_messages")
    module = ScriptDirectory.from_config(migration_config()).get_revision(named("backfill_older_rows")).module
    async with session(url) as locking, session(url) as indexing, locking.transaction():
        await locking.execute("select from conversations where continuation_id in ('c8', 'c9') for update")
        await indexing.execute("set lock_timeout = '1ms'")
        for statement, first in ((module.INDEX_MESSAGES, module.FIRST_MESSAGE), (module.INDEX_TITLES, (module.FIRST,))):
            row = await indexing.fetchrow(statement, *first)
            while row:
                row = await indexing.fetchrow(statement, *row)
        await locking.execute("delete from conversations where continuation_id = 'c9'")
    await upgrade(url)
    assert (await value(url, AGREE), await found(url, "word 7"), await found(url, "title")) == (528, 49, 25)
    async with opened(url) as database:
        await SearchRepository(database).index(1_000)
    assert (await value(url, AGREE), await found(url, "word 7"), await found(url, "title")) == (539, 49, 25)
    assert await value(url, "select count(*) from exai.unindexed_messages") == 0


async def test_messages_of_older_clients_are_searched(empty_postgres_url: str) -> None:
    """Stored before the adoption and afterwards, by a role without rights on our objects."""
    url = empty_postgres_url
    await run(url, LIKE_SUPABASE)
    await upgrade(url)
    assert [await found(url, each) for each in ("a1", "b1")] == [1, 1]
    async with session(url) as connection:
        role = "exai_older_client"
        await connection.execute(
            f"do $$ begin create role {role}; exception when duplicate_object then null; end $$;"
            f" grant select, insert, update, delete on messages to {role};"
            f" grant select, update on conversations to {role}"
        )
        await connection.execute(f"set role {role}")
        await connection.execute(
            "insert into messages (conversation_id, role, content) select id, 'AI', 'c1' from conversations"
        )
        await connection.execute("update messages set content = 'd1' where content = 'a1'")
        await connection.execute("delete from messages where content = 'b1'")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("select from exai.message_words")
    assert [await found(url, each) for each in ("a1", "b1", "c1", "d1")] == [0, 0, 3, 1]
