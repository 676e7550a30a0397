"""The older system's database is adopted in place, with any of its parts: no row is lost.

A million messages are taken over in test_adoption_at_scale.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from alembic.util import CommandError
from pydantic import SecretStr

from exai.app import open_app
from exai.conversations import AppendRequest, ChatRequest
from exai.db.conversations import ConversationRepository
from exai.db.driver.pool import OneTrip
from exai.db.lifecycle import CurationRepository
from exai.db.migrations.migrate import upgrade
from exai.db.turns import TurnRepository
from exai.errors import SchemaMismatch
from exai.models import LOCAL_OWNER, ContinuationId, ConversationKey, NewMessage
from exai.settings.load import CacheSettings, DatabaseSettings, ProviderSettings, ProvidersSettings, Settings
from tests.support.database import appending, beginning, contents_of, ending, once, opened
from tests.support.migrations import as_role, create_role, downgrade, revisions, run, session, value
from tests.support.older import LIKE_SUPABASE, OLDER, A, Older
from tests.support.older_parts import COMBINATIONS, Parts, check_nothing_is_lost, look, make
from tests.support.provider_server import ProviderServer, kimi_answer

TABLES = ("conversations", "messages", "files", "conversation_files")
EVERYTHING = COMBINATIONS["everything"]
NOTHING = COMBINATIONS["nothing"]
MOST_ROWS_AT_ONCE = 2_000


@pytest.fixture(params=list(OLDER))
def older(request: pytest.FixtureRequest) -> Older:
    return OLDER[request.param]


@pytest.fixture(params=list(COMBINATIONS))
def parts(request: pytest.FixtureRequest) -> Parts:
    return COMBINATIONS[request.param]


@pytest.fixture
async def provider() -> AsyncIterator[ProviderServer]:
    async with ProviderServer() as server:
        yield server


async def all_rows(url: str) -> dict[str, list[str]]:
    """Everything there is, with the transaction that wrote each row."""
    async with session(url) as connection:
        names = await connection.fetch(
            "select c.oid::regclass::text from pg_class c join pg_namespace n on n.oid = c.relnamespace"
            " where n.nspname in ('public', 'exai', 'monitoring') and c.relkind = 'r' order by 1"
        )
        return {
            name: [
                row[0] for row in await connection.fetch(f"select t.xmin || ' ' || t::text from {name} t order by 1")
            ]
            for (name,) in names
        }


async def test_nothing_is_lost_and_a_second_run_changes_nothing(
    empty_postgres_url: str, postgres_url: str, parts: Parts
) -> None:
    """Each row and value, compared one by one; then every row of every table with the transaction that wrote it."""
    url = empty_postgres_url
    await make(url, parts)
    before = await look(url)
    await upgrade(url)
    await check_nothing_is_lost(url, before, parts)
    await check_tables_are_like_new_ones(url, postgres_url)
    if parts.metrics != "none":
        assert await value(url, "select count(*) from monitoring.metrics_raw") == 50
    if parts.indexes:
        assert await value(url, "select count(*) from pg_indexes where indexname = 'idx_messages_created_at'") == 1
    recent = "select count(*) from conversations where updated_at > now() - interval '1 hour'"
    assert await value(url, recent) == 0
    rows = await all_rows(url)
    await upgrade(url)
    assert await all_rows(url) == rows


COLUMNS = """
select column_name, data_type, is_nullable, coalesce(column_default, '') from information_schema.columns
 where table_schema = 'public' and table_name = $1::text
"""
CONSTRAINTS = """
select pg_get_constraintdef(k.oid) from pg_constraint k
 where k.conrelid = ('public.' || $1::text)::regclass and k.contype in ('p', 'u', 'f', 'c')
"""
INDEXES = "select indexdef from pg_indexes where schemaname = 'public' and tablename = $1::text"


async def check_tables_are_like_new_ones(url: str, new_url: str) -> None:
    """Columns, rules, keys and indexes; an older key stays beside ours."""
    async with session(new_url) as new, session(url) as adopted:
        for table in TABLES:
            for query in (COLUMNS, CONSTRAINTS, INDEXES):
                wanted = {as_unique(tuple(row)) for row in await new.fetch(query, table)}
                found = {as_unique(tuple(row)) for row in await adopted.fetch(query, table)}
                assert wanted <= found, (table, wanted - found)
        unproved = "select string_agg(conname, ', ') from pg_constraint where not convalidated"
        assert await adopted.fetchval(unproved) is None
        without_key = (
            "select string_agg(c.relname, ', ') from pg_class c where c.relnamespace = 'public'::regnamespace"
            " and c.relkind = 'r' and not exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary)"
        )
        assert await adopted.fetchval(without_key) is None


def as_unique(row: tuple[str, ...]) -> tuple[str, ...]:
    """The unique keys, without their names."""
    row = tuple(text.replace("PRIMARY KEY", "UNIQUE") for text in row)
    return tuple(re.sub(r"INDEX \S+ ON", "INDEX ON", text) for text in row)


async def test_every_row_survives_in_order_and_the_service_works_on_it(empty_postgres_url: str, older: Older) -> None:
    """By time, then by id; what no key could hold is kept as JSON. Appends, turns, deletion, as on new tables."""
    url = empty_postgres_url
    await run(url, older.sql)
    messages = sorted(text for texts in older.conversations.values() for text in texts)
    await upgrade(url)
    assert await value(url, "select coalesce(array_agg(content order by content), '{}') from messages") == messages
    assert await value(url, "select count(*) from conversation_files") == older.links
    assert await value(url, "select count(*) from exai.quarantine") == older.quarantined
    async with opened(url) as database:
        repository, curation = ConversationRepository(database), CurationRepository(database)
        turns = TurnRepository(database)
        listed = await repository.list_conversations(LOCAL_OWNER)
        assert {each.continuation_id for each in listed.conversations} == set(older.conversations)
        for name, contents in older.conversations.items():
            assert await contents_of(repository, name) == contents
            result = await repository.append(appending(name, "new"))
            assert (result.status, result.first_seq) == ("appended", len(contents) + 1)
            begun = await turns.begin(beginning(name, "question"))
            assert [message.content for message in begun.history] == [*contents, "new"]
            finished = await turns.finish(ending(begun.turn_id, "answer"))
            assert finished.status == "finished"
            gone = await curation.mark_deleted(ConversationKey(LOCAL_OWNER, ContinuationId(name)), once(), deleted=True)
            assert gone.status == "changed"
        await run(url, "update conversations set deleted_at = now() - interval '9 days' where deleted_at is not null")
        while await curation.purge():
            pass
        assert await value(url, "select count(*) from messages") == 0
        assert (await repository.append(appending(None, "one"))).status == "appended"


async def test_the_service_goes_on_with_an_adopted_conversation(
    empty_postgres_url: str, redis_url: str, tmp_path: Path, provider: ProviderServer
) -> None:
    """Reads it, asks a model with its history, appends to it, lists it: through the application, cache and all."""
    url = empty_postgres_url
    await make(url, COMBINATIONS["counted"])
    await upgrade(url)
    settings = Settings(
        database=DatabaseSettings(url=SecretStr(url), pool_size=2),
        cache=CacheSettings(url=SecretStr(redis_url)),
        providers=ProvidersSettings(kimi=ProviderSettings(api_key=SecretStr("sk-test"), base_url=provider.base_url)),
        data_dir=tmp_path,
    )
    name = ContinuationId("name12")
    async with open_app(settings) as app:
        page = await app.conversations.read(LOCAL_OWNER, name)
        count = page.conversation.last_seq
        assert count == 160
        assert [message.seq for message in page.messages] == list(range(count - len(page.messages) + 1, count + 1))
        provider.script(kimi_answer("Hello again"))
        answer = await app.chat.run(ChatRequest(LOCAL_OWNER, "Do you remember?", continuation_id=name))
        assert (answer.content, answer.seq) == ("Hello again", count + 2)
        asked = provider.chats[-1].body["messages"]
        assert len(asked) > 100
        assert asked[-1]["content"] == "Do you remember?"
        assert asked[-2]["content"] == page.messages[-1].content
        added = await app.conversations.append(AppendRequest(LOCAL_OWNER, [NewMessage("user", "Thanks")], name))
        assert added.last_seq == count + 3
        newest = (await app.conversations.read(LOCAL_OWNER, name)).messages[-3:]
        assert [message.content for message in newest] == ["Do you remember?", "Hello again", "Thanks"]
        listed = await app.conversations.list(LOCAL_OWNER, limit=5)
        assert listed.conversations[0].continuation_id == name


async def test_rows_are_written_in_batches_of_a_bounded_size(empty_postgres_url: str) -> None:
    """A conversation of any length is locked for two thousand rows at a time."""
    url = empty_postgres_url
    await make(url, NOTHING)
    await run(
        url,
        "insert into messages (conversation_id, role, content, \"timestamp\") select id, 'user', n::text,"
        " '2024-01-01'::timestamptz + n * interval '1 second'"
        " from conversations cross join generate_series(1, 9000) n where mark = 'c2'",
    )
    await upgrade(url)
    most = "select max(n) from (select count(*) n from messages group by xmin::text) x"
    assert await value(url, most) <= MOST_ROWS_AT_ONCE
    batches = (
        "select count(distinct m.xmin::text) from messages m join conversations c on c.id = m.conversation_id"
        " where c.mark = 'c2'"
    )
    assert await value(url, batches) >= 5
    ordered = "select bool_and(seq = content::int) from messages where mark is null"
    assert await value(url, ordered)


STAGES = (
    "select to_regclass('exai.adopted_tables') is not null",
    "select count(*) > 0 from messages where seq is not null",
    "select count(*) = 0 from messages where seq is null",
    "select count(*) > 0 from exai.quarantine",
    "select count(*) > 0 from pg_constraint where conname = 'messages_role_check'",
    "select to_regclass('public.messages_created_idx') is not null",
    "select to_regclass('monitoring.metrics_raw_adopted_key') is not null",
)
"""How far it has come; each is seen at most once, since what is done stays done."""


async def test_broken_off_at_any_stage_it_is_simply_run_again(empty_postgres_url: str) -> None:
    """Its connections are cut as soon as each stage is seen."""
    url = empty_postgres_url
    parts = COMBINATIONS["counted"]
    await make(url, parts)
    before = await look(url)
    cuts = 0
    async with session(url) as observer:
        for stage in STAGES:
            running = asyncio.create_task(upgrade(url))
            while not running.done() and not await reached(observer, stage):
                await asyncio.sleep(0)
            cuts += await observer.fetchval(
                "select count(pg_terminate_backend(pid)) from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'"
            )
            with contextlib.suppress(Exception):
                await running
    await upgrade(url)
    assert cuts >= 2 * 3
    await check_nothing_is_lost(url, before, parts)
    assert await value(url, "select count(*) from pg_index where not indisvalid") == 0
    assert await value(url, "select count(*) from monitoring.metrics_raw") == 50


async def reached(observer: OneTrip, watermark: str) -> bool:
    try:
        return bool(await observer.fetchval(watermark))
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError, asyncpg.InvalidSchemaNameError):
        return False


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


async def test_roles_of_the_interface_keep_their_older_rights(empty_postgres_url: str) -> None:
    """Default privileges granted them every new table and function; of those they get what they should have."""
    url = empty_postgres_url
    await make(url, EVERYTHING)
    await upgrade(url)
    async with session(url) as connection:
        tables = await connection.fetch(
            "select distinct table_schema || '.' || table_name from information_schema.role_table_grants"
            " where grantee in ('anon', 'authenticated') and table_schema in ('public', 'exai', 'monitoring')"
        )
        assert {row[0] for row in tables} == {f"public.{table}" for table in (*TABLES, "requests", "turns")}
        functions = await connection.fetchval(
            "select string_agg(p.oid::regprocedure::text, ', ') from pg_proc p where p.pronamespace in"
            " (select oid from pg_namespace where nspname in ('public', 'exai', 'monitoring'))"
            " and p.proname not in ('touch', 'exai_page', 'shared_page_v1')"
            " and (has_function_privilege('anon', p.oid, 'execute')"
            "      or has_function_privilege('authenticated', p.oid, 'execute'))"
        )
        assert functions is None
        assert await connection.fetchval(
            "select has_function_privilege('service_role', 'public.cleanup_orphaned_files(interval, int)', 'execute')"
        )
        secured = (
            "select bool_and(relrowsecurity) from pg_class"
            " where relnamespace = 'public'::regnamespace and relkind = 'r'"
        )
        assert await connection.fetchval(secured)
        published = "select array_agg(tablename::text) from pg_publication_tables"
        assert sorted(await connection.fetchval(published)) == sorted((*TABLES, "requests"))


async def test_published_tables_take_changes_without_sending_whole_rows_in_the_end(empty_postgres_url: str) -> None:
    """Without a key they took none at all; that they get one is enough afterwards."""
    url = empty_postgres_url
    await make(url, COMBINATIONS["published without keys"])
    await upgrade(url)
    identities = "select array_agg(relreplident::text) from pg_class where relname = any($1::text[])"
    assert set(await value(url, identities, list(TABLES))) == {"d"}
    await run(
        url, "update messages set content = 'x' where mark = 'm1'", "delete from conversation_files where mark = 'c1f1'"
    )


async def test_rows_that_are_hidden_from_the_migration_are_not_taken_for_none(empty_postgres_url: str) -> None:
    """Numbering the visible rows only would lose the others silently."""
    url = empty_postgres_url
    await make(url, NOTHING)
    await run(
        url,
        *create_role("exai_hidden"),
        "grant all on schema public to exai_hidden",
        *(f"alter table {table} owner to exai_hidden" for table in TABLES),
        "alter table messages enable row level security",
        "alter table messages force row level security",
    )
    database = await value(url, "select current_database()")
    await run(url, f'grant all on database "{database}" to exai_hidden')
    hidden = as_role(url, "exai_hidden")
    with pytest.raises(SchemaMismatch, match=r"row level security hides rows of public\.messages"):
        await upgrade(hidden)
    await run(url, "alter table messages no force row level security")
    await upgrade(hidden)
    assert await value(url, "select count(*) from messages where seq is null") == 0


@pytest.mark.parametrize(
    ("sql", "part"),
    [
        ("create table conversations (id bigint primary key, continuation_id text)", "conversations.id is bigint"),
        ("create table conversations (name text)", "no column id"),
        ("create table messages (conversation_id text, role text, content text)", "conversation_id is text"),
        ("create table messages (id uuid, body text)", "no column conversation_id, role, content"),
        (
            "create table conversations (id uuid, continuation_id text);"
            f" insert into conversations select '{A}', n::text from generate_series(1, 2) n",
            "rows without an id or with the same one",
        ),
        ("create table turns (x int)", "public.turns is there already"),
        ("create table messages (conversation_id uuid, role text, content text, metadata json)", "metadata is json"),
    ],
)
async def test_tables_that_cannot_be_adopted_are_refused_unchanged(
    empty_postgres_url: str, sql: str, part: str
) -> None:
    """The error names the obstacle."""
    url = empty_postgres_url
    await run(url, sql)
    with pytest.raises(SchemaMismatch, match=part):
        await upgrade(url)
    assert await value(url, "select count(*) from information_schema.tables where table_schema = 'public'") == 1


async def test_an_adopted_database_does_not_go_back(empty_postgres_url: str) -> None:
    """The added columns could be removed only with the rows written since."""
    url = empty_postgres_url
    await run(url, LIKE_SUPABASE)
    await upgrade(url)
    with pytest.raises(CommandError, match="before EXAI"):
        await downgrade(url, "base")
    await upgrade(url)
    assert await value(url, "select version_num from exai.alembic_version") == revisions()[-1]
