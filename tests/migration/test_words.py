"""The words of messages that are there already are indexed by a migration that can be broken off and taken back."""

from __future__ import annotations

import asyncpg
import pytest

from exai.db.conversations import ConversationRepository
from exai.db.migrate import upgrade
from exai.db.search import SearchQuery, SearchRepository
from exai.models import LOCAL_OWNER
from tests.support.database import conversation_of, opened
from tests.support.migrations import downgrade, run, session, value
from tests.support.older import LIKE_SUPABASE

BEFORE = "0013"
FILL = (
    "insert into conversations (continuation_id, next_seq) select 'c' || i, 12 from generate_series(1, 50) i",
    "insert into messages (conversation_id, seq, turn_id, role, content)"
    " select c.id, s, c.id, 'user', 'word ' || s from conversations c cross join generate_series(1, 11) s",
)
AGREE = """
select count(*)
  from messages m
  join exai.message_words w using (conversation_id, seq, created_at)
  join conversations c on c.id = m.conversation_id
 where w.words = case w.version when 1 then to_tsvector('simple', m.content)
                                else (select x.words from exai.words_v1(exai.owner_key_v1(c.owner), m.content) x) end
"""
OUTDATED = "select count(*) from exai.message_words where version < 2"
INDEXES = """
select string_agg(indexname, ',') from pg_indexes where indexname in ('messages_text_idx', 'message_words_words_idx')
"""


async def found(url: str, text: str) -> int:
    async with opened(url) as database:
        return len((await SearchRepository(database).search(SearchQuery(LOCAL_OWNER, text), limit=1_000)).hits)


async def test_messages_are_indexed_on_the_way_up_and_down_and_up(empty_postgres_url: str) -> None:
    """No message is changed, and what is stored in between is found after it."""
    url = empty_postgres_url
    await upgrade(url, BEFORE)
    await run(url, *FILL)
    written = "select string_agg(xmin::text || ctid::text, ',') from messages"
    before = await value(url, written)
    await upgrade(url)
    assert (await value(url, AGREE), await value(url, INDEXES)) == (550, "message_words_words_idx")
    assert await found(url, "word 7") == 50
    async with opened(url) as database:
        await conversation_of(ConversationRepository(database), "word 7")
    await downgrade(url, BEFORE)
    assert await value(url, INDEXES) == "messages_text_idx"
    await run(
        url, "insert into messages (conversation_id, role, content) select id, 'user', 'word 7' from conversations"
    )
    await upgrade(url)
    assert await value(url, AGREE) == 602
    assert await found(url, "word 7") == 102
    assert (await value(url, written)).startswith(before)


async def test_it_goes_on_where_it_was_broken_off(empty_postgres_url: str) -> None:
    """Some are indexed, others were changed or stored since they were, and the index was half built."""
    url = empty_postgres_url
    await upgrade(url, BEFORE)
    await run(url, *FILL)
    await upgrade(url, "0014")
    await run(
        url,
        "insert into exai.message_words select conversation_id, seq, created_at, to_tsvector('simple', content)"
        " from messages order by conversation_id, seq limit 333",
        "update messages set content = 'changed' where seq = 1",
        "insert into messages (conversation_id, role, content) select id, 'user', 'new' from conversations",
        "create index message_words_words_idx on exai.message_words using gin (words)",
        "update pg_index set indisvalid = false where indexrelid = 'exai.message_words_words_idx'::regclass",
    )
    await upgrade(url)
    assert await value(
        url, "select indisvalid from pg_index where indexrelid = 'exai.message_words_words_idx'::regclass"
    )
    for _ in ("waiting", "indexed"):
        assert [await found(url, each) for each in ("word", "changed", "new")] == [500, 50, 50]
        async with opened(url) as database:
            await SearchRepository(database).index(1_000)
    assert await value(url, AGREE) == 600


async def test_whoever_holds_a_conversation_is_not_waited_for(empty_postgres_url: str) -> None:
    """Its messages are queued; whoever deletes it would make the migration fail."""
    url = empty_postgres_url
    await upgrade(url, BEFORE)
    await run(url, *FILL)
    async with session(url) as connection, connection.transaction():
        await connection.execute("select from conversations where continuation_id in ('c7', 'c9') for update")
        await upgrade(url, "0022")
        await connection.execute("delete from conversations where continuation_id = 'c9'")
    await upgrade(url)
    assert (await value(url, AGREE), await found(url, "word 7")) == (528, 49)
    async with opened(url) as database:
        await SearchRepository(database).index(1_000)
    assert (await value(url, AGREE), await found(url, "word 7")) == (539, 49)
    assert await value(url, "select count(*) from exai.unindexed_messages") == 0


async def test_what_older_clients_stored_is_searched(empty_postgres_url: str) -> None:
    """Before their tables were taken over, and afterwards, by a role that may use nothing of ours."""
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


async def test_what_an_earlier_release_indexed_is_found_while_it_is_indexed_again(empty_postgres_url: str) -> None:
    """In portions, each in a transaction of its own; the migration indexes titles, also where it is run again."""
    url = empty_postgres_url
    await upgrade(url, "0017")
    await run(
        url,
        *FILL,
        "update messages set content = content || ' caf\u00e9 fooBar' where seq = 1",
        "update conversations set title = 'the title of ' || continuation_id",
        "select exai.index_messages_v1(10000)",
    )
    assert await value(url, "select count(*) from exai.message_words") == 550
    await upgrade(url)
    assert await value(url, OUTDATED) == 550
    texts = {"word 7": 50, "word": 500, "caf\u00e9": 50, "title": 50, "c7": 1}
    left = 550
    async with opened(url) as database:
        search = SearchRepository(database)
        while left:
            assert {text: await found(url, text) for text in texts} == texts
            indexed = await search.index(100)
            assert (indexed.indexed, indexed.left, indexed.outdated) == (min(left, 100), 0, max(left - 100, 0))
            left = indexed.outdated
    assert {text: await found(url, text) for text in texts} == texts
    assert [await found(url, each) for each in ("cafe", "bar", "foobar")] == [50, 50, 50]
    assert (await value(url, OUTDATED), await value(url, AGREE)) == (0, 550)
    await downgrade(url, "0017")
    await run(url, "select exai.index_messages_v1(10000)")
    await upgrade(url)
    assert {text: await found(url, text) for text in texts} == texts
