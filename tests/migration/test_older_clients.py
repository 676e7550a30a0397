"""Older clients continue during and after the adoption of their database; no write is rejected."""

from __future__ import annotations

import asyncio

from alembic.script import ScriptDirectory

from exai.db.conversations import ConversationRepository
from exai.db.migrations.migrate import migration_config, upgrade
from tests.support.database import appending, contents_of, opened
from tests.support.migrations import named, run, session, value
from tests.support.older import LIKE_SUPABASE, A
from tests.support.older_parts import COMBINATIONS, make, rows_of

NOTHING = COMBINATIONS["nothing"]
TABLES = ("conversations", "messages", "files", "conversation_files")


async def test_older_clients_go_on_meanwhile(empty_postgres_url: str) -> None:
    """No client is refused, and the rows that it writes are numbered with the others."""
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


ODD = (
    "insert into conversations (id, continuation_id, metadata, mark) values ('{id}', 'name12', '[1]', '{at}')",
    "insert into messages (conversation_id, role, content, mark) values ('{id}', 'AI', null, '{at}')",
    "insert into messages (conversation_id, role, content, mark) values ('{nobody}', 'user', 'lost', '{at}')",
    "insert into messages (conversation_id, role, content, mark) values (null, null, 'nowhere', '{at}')",
    "insert into conversation_files select id, '{nobody}', '{at}' from conversations where mark = 'c12'",
    "insert into conversation_files select l.conversation_id, l.file_id, '{at}' from conversation_files l"
    " join conversations c on c.id = l.conversation_id where c.mark = 'c1' limit 1",
)
"""What nothing has kept the clients of such a database from doing so far."""


async def test_older_clients_may_break_every_rule_until_all_are_there(empty_postgres_url: str) -> None:
    """Between any two steps no client is refused, and its rows are kept as those from before."""
    url = empty_postgres_url
    await make(url, NOTHING)
    odd = [named("expand_schema"), named("backfill_older_rows")]
    for n, revision in enumerate(odd):
        await upgrade(url, revision)
        ids = {"id": f"00000000-0000-0000-0001-{n:012d}", "nobody": f"00000000-0000-0000-0002-{n:012d}"}
        await run(url, *(statement.format(at=revision, **ids) for statement in ODD))
    await upgrade(url)
    for revision in odd:
        kept = [await value(url, f"select count(*) from {table} where mark = $1::text", revision) for table in TABLES]
        aside = await value(url, "select count(*) from exai.quarantine where row ->> 'mark' = $1::text", revision)
        assert (kept, aside) == ([1, 3, 0, 0], 2)
        renamed = await value(
            url, "select metadata ->> 'duplicate_of' from conversations where mark = $1::text", revision
        )
        assert renamed == "name12"
        roles = await value(
            url, "select array_agg(role || content order by seq, role) from messages where mark = $1::text", revision
        )
        assert set(roles) == {"assistant", "userlost", "usernowhere"}


async def test_a_batch_waits_for_no_lock(empty_postgres_url: str) -> None:
    """It holds locks that others need, and the holder of the row may wait for one of them."""
    url = empty_postgres_url
    await run(url, LIKE_SUPABASE)
    await upgrade(url, named("expand_schema"))
    module = ScriptDirectory.from_config(migration_config()).get_revision(named("backfill_older_rows")).module
    await run(url, module.NUMBER.format(time="created_at", created="created_at", tie="m.id"))
    async with session(url) as batch, session(url) as other:
        await batch.execute("set lock_timeout = '1ms'")
        held = other.transaction()
        await held.start()
        await other.execute("update messages set content = content where content = 'a2'")
        await other.execute("update conversations set title = 'held' where continuation_id = 'b'")
        start, seen, done = await batch.fetchrow(module.NEXT, module.FIRST, True)
        assert (seen, done) == (2, 1)
        assert (await batch.fetchrow(module.NEXT, start, False))["o_seen"] == 0
        numbered = "select array_agg(continuation_id) from conversations where next_seq is not null"
        assert await value(url, numbered) == ["c"]
        await held.commit()
        assert (await batch.fetchrow(module.NEXT, module.FIRST, True))["o_done"] == 6


async def test_older_clients_roles_and_contents_are_made_to_fit_for_good(empty_postgres_url: str) -> None:
    """Their programs go on for a while after ours has started."""
    url = empty_postgres_url
    await make(url, NOTHING)
    await upgrade(url)
    one = "select id from conversations where mark = 'c1'"
    await run(
        url,
        f"insert into messages (conversation_id, role, content, mark) values (({one}), 'AI', null, 'new')",
        "update messages set role = 'Human' where mark = 'm50'",
        "update conversations set continuation_id = '', metadata = '[]' where mark = 'c1'",
    )
    async with session(url) as connection:
        rows = {row["mark"]: row for row in await rows_of(connection, "messages")}
        assert (rows["new"]["role"], rows["new"]["content"]) == ("assistant", "")
        assert rows["new"]["metadata"]["adopted"] == {"role": "AI", "content": None}
        assert (rows["m50"]["role"], rows["m50"]["metadata"]["adopted"]["role"]) == ("user", "Human")
        changed = await connection.fetchrow(
            "select id::text, continuation_id, metadata from conversations where mark = 'c1'"
        )
        assert changed["continuation_id"] == changed["id"]
        assert changed["metadata"] == '{"adopted": {"metadata": []}}'


async def test_older_clients_go_on_afterwards(empty_postgres_url: str) -> None:
    """They write and read as before."""
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
