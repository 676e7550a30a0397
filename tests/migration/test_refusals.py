"""A migration that cannot complete is refused before any change; each obstacle is named with its cure."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest

from exai.db.migrations.migrate import upgrade
from exai.errors import DatabaseError, DatabaseUnavailable, ExaiError, SchemaMismatch
from tests.support.migrations import as_role, create_role, run, session, value
from tests.support.password_postgres import password_postgres
from tests.support.schema_text import schema_text

OLDER = (
    "create table public.conversations (id uuid primary key default gen_random_uuid(), continuation_id varchar(255),"
    " title varchar(200), metadata jsonb, created_at timestamp, updated_at timestamp)",
    "create table public.messages (id uuid primary key default gen_random_uuid(),"
    " conversation_id uuid references public.conversations (id), role varchar(20) not null, content text not null,"
    " metadata jsonb, created_at timestamp default now())",
    "create index idx_messages_role on public.messages (role, created_at)",
    "insert into public.conversations (continuation_id) values ('one')",
)
IN_THE_WAY = {
    "a view": (
        ("create view public.roles as select role, count(*) from public.messages group by role",),
        ("view public.roles", "public.messages.role", "create it again"),
    ),
    "a materialized view": (
        ("create materialized view public.titles as select title from public.conversations",),
        ("materialized view public.titles", "public.conversations.title"),
    ),
    "a policy": (
        ("create policy only_users on public.messages using (role = 'user')",),
        ("policy only_users", "public.messages.role"),
    ),
    "a generated column beside": (
        ("alter table public.messages add column shout text generated always as (upper(role)) stored",),
        ("column shout", "public.messages.role"),
    ),
    "a generated column of ours": (
        (
            "alter table public.messages drop column metadata",
            "alter table public.messages add column metadata jsonb generated always as ('{}') stored",
        ),
        ("public.messages.metadata is a generated column",),
    ),
    "a trigger on a column": (
        (
            "create function public.noted() returns trigger language plpgsql as $$ begin return new; end $$",
            "create trigger noted before update of role on public.messages"
            " for each row execute function public.noted()",
        ),
        ("trigger noted", "public.messages.role"),
    ),
    "a trigger that refuses updates": (
        (
            "create function public.nope() returns trigger language plpgsql as"
            " $$ begin raise exception 'append only'; end $$",
            "create trigger nope before update or delete on public.conversations"
            " for each row execute function public.nope()",
        ),
        ("a trigger on public.conversations refuses updates (append only)", "disable it"),
    ),
    "a constraint trigger that refuses updates at the end": (
        (
            "create function public.nope() returns trigger language plpgsql as"
            " $$ begin raise exception 'append only'; end $$",
            "create constraint trigger nope after update on public.conversations deferrable initially deferred"
            " for each row execute function public.nope()",
        ),
        ("a trigger on public.conversations refuses updates (append only)",),
    ),
    "a trigger that suppresses updates": (
        (
            "create function public.skip() returns trigger language plpgsql as $$ begin return null; end $$",
            "create trigger skip before update on public.conversations for each row execute function public.skip()",
        ),
        ("a trigger on public.conversations suppresses updates", "let it pass updates"),
    ),
    "a rule": (
        ("create rule quiet as on delete to public.messages do instead nothing",),
        ("rule quiet on public.messages",),
    ),
    "a partitioned table": (
        (
            "drop table public.messages",
            "create table public.messages (conversation_id uuid, role text, content text) partition by hash (role)",
        ),
        ("public.messages is a partitioned table", "rename it"),
    ),
    "a view of that name": (
        ("create view public.files as select 1 as id",),
        ("public.files is a view", "rename it"),
    ),
    "a foreign table": (
        (
            "create foreign data wrapper elsewhere",
            "create server elsewhere foreign data wrapper elsewhere",
            "create foreign table public.files (id uuid) server elsewhere",
        ),
        ("public.files is a foreign table",),
    ),
    "inheritance": (
        ("create table public.old_messages () inherits (public.messages)",),
        ("public.messages takes part in inheritance",),
    ),
    "an unlogged table": (
        ("create unlogged table public.files (id uuid primary key)",),
        ("public.files is not a permanent table", "set logged"),
    ),
    "a domain type": (
        (
            "create domain public.role_name as text",
            "alter table public.messages alter column role type public.role_name",
        ),
        ("public.messages.role is public.role_name", "has to be text"),
    ),
    "a missing column": (
        ("alter table public.messages drop column content",),
        ("public.messages has no column content",),
    ),
    "a table of ours": (("create table public.turns (n integer)",), ("public.turns is there already",)),
    "another table of ours": (("create table public.requests (n integer)",), ("public.requests is there already",)),
    "a typed table": (
        (
            "create type public.link as (conversation_id uuid, file_id uuid)",
            "create table public.conversation_files of public.link",
        ),
        ("public.conversation_files is a typed table", "not of"),
    ),
    "ids that are no key": (
        (
            "create table public.files (id uuid, storage_path text)",
            "insert into public.files select '00000000-0000-0000-0000-000000000001', 'x' from generate_series(1, 2)",
        ),
        ("public.files has rows without an id or with the same one",),
    ),
    "digests that are no key": (
        (
            "create table public.files (id uuid primary key default gen_random_uuid(), sha256 text)",
            "insert into public.files (sha256) select repeat('a', 64) from generate_series(1, 2)",
        ),
        ("public.files has rows with the same sha256", "set it to null"),
    ),
    "digests that are none": (
        (
            "create table public.files (id uuid primary key default gen_random_uuid(), sha256 text)",
            "insert into public.files (sha256) values ('XYZ')",
        ),
        ("one that is not 64 hexadecimal digits",),
    ),
    "several at once": (
        (
            "create view public.roles as select role from public.messages",
            "create table public.turns (n integer)",
            "create rule quiet as on delete to public.messages do instead nothing",
        ),
        ("view public.roles", "public.turns", "rule quiet"),
    ),
}


async def schema_of(url: str) -> str:
    async with session(url) as connection:
        return await schema_text(connection)


def refused_with(error: ExaiError, *words: str) -> None:
    text = str(error)
    assert "\n" not in text
    assert [word for word in words if word not in text] == [], text


@pytest.mark.parametrize("case", IN_THE_WAY)
async def test_an_older_table_that_cannot_be_taken_over_is_left_as_it_is(empty_postgres_url: str, case: str) -> None:
    """Also its indexes, and no schema of ours is made."""
    statements, words = IN_THE_WAY[case]
    await run(empty_postgres_url, *OLDER, *statements)
    before = await schema_of(empty_postgres_url)
    with pytest.raises(SchemaMismatch) as refusal:
        await upgrade(empty_postgres_url)
    refused_with(refusal.value, "nothing was changed", *words)
    assert await schema_of(empty_postgres_url) == before
    assert await value(empty_postgres_url, "select to_regnamespace('exai') is null")


async def test_what_is_not_in_the_way_is_no_reason(empty_postgres_url: str) -> None:
    """A view on a column that stays, a trigger on the whole table, a default, a policy on another column."""
    await run(
        empty_postgres_url,
        *OLDER,
        "create view public.contents as select content from public.messages",
        "create function public.noted() returns trigger language plpgsql as $$ begin return new; end $$",
        "create trigger noted before update on public.messages for each row execute function public.noted()",
        "create policy own on public.messages using (content <> '')",
        "alter table public.messages add column length integer generated always as (length(content)) stored",
    )
    await upgrade(empty_postgres_url)
    assert await value(empty_postgres_url, "select count(*) from public.contents") == 0


async def test_a_row_that_a_client_holds_is_no_trigger_that_refuses(empty_postgres_url: str) -> None:
    """Nor does looking for such triggers wait for the client."""
    await run(
        empty_postgres_url,
        *OLDER,
        "create function public.noted() returns trigger language plpgsql as $$ begin return new; end $$",
        "create trigger noted before update on public.conversations for each row execute function public.noted()",
        "create view public.titles as select title from public.conversations",
    )
    async with session(empty_postgres_url) as client:
        await client.execute("begin")
        await client.execute("select from public.conversations for update")
        with pytest.raises(SchemaMismatch) as refusal:
            await upgrade(empty_postgres_url)
        await client.execute("rollback")
    refused_with(refusal.value, "view public.titles")
    assert "a trigger on" not in str(refusal.value)


async def test_a_role_without_rights_is_refused_with_the_grants(empty_postgres_url: str) -> None:
    """No CREATE on the database, none in schema public; a table of another owner."""
    role = f"limited_{uuid.uuid4().hex}"
    database = urlsplit(empty_postgres_url).path[1:]
    await run(empty_postgres_url, *create_role(role), "revoke create on schema public from public")
    try:
        with pytest.raises(SchemaMismatch) as refusal:
            await upgrade(as_role(empty_postgres_url, role))
        refused_with(refusal.value, f'grant create on database "{database}"', "grant create on schema public")
        await run(
            empty_postgres_url,
            f'grant create on database "{database}" to {role}',
            f"grant create on schema public to {role}",
            *OLDER,
        )
        with pytest.raises(SchemaMismatch) as refusal:
            await upgrade(as_role(empty_postgres_url, role))
        refused_with(refusal.value, "public.messages belongs to", "change its owner")
    finally:
        await run(empty_postgres_url, f"drop owned by {role} cascade", f"drop role {role}")


async def test_rows_that_row_level_security_hides_are_no_reason_to_lose_them(empty_postgres_url: str) -> None:
    """The owner of a table whose policies are forced sees only some of its rows."""
    role = f"limited_{uuid.uuid4().hex}"
    database = urlsplit(empty_postgres_url).path[1:]
    await run(
        empty_postgres_url,
        *create_role(role),
        f'grant create on database "{database}" to {role}',
        f"grant create on schema public to {role}",
        *OLDER,
        *(f"alter table public.{table} owner to {role}" for table in ("conversations", "messages")),
        "alter table public.messages enable row level security",
        "alter table public.messages force row level security",
    )
    try:
        with pytest.raises(SchemaMismatch) as refusal:
            await upgrade(as_role(empty_postgres_url, role))
        refused_with(refusal.value, "nothing was changed", "row level security hides rows of public.messages")
        assert await value(empty_postgres_url, "select to_regnamespace('exai') is null")
    finally:
        await run(empty_postgres_url, f"drop owned by {role} cascade", f"drop role {role}")


async def test_a_read_only_database_is_refused_with_the_cure(empty_postgres_url: str) -> None:
    """As Supabase makes it when the disk is full."""
    database = urlsplit(empty_postgres_url).path[1:]
    await run(empty_postgres_url, f'alter database "{database}" set default_transaction_read_only = on')
    with pytest.raises(SchemaMismatch) as refusal:
        await upgrade(empty_postgres_url)
    refused_with(refusal.value, "only takes reads", "free space")


async def test_an_encoding_that_cannot_hold_every_text_is_refused(empty_postgres_url: str) -> None:
    """It would fail at the first message in another script."""
    name = f"latin_{uuid.uuid4().hex}"
    await run(
        empty_postgres_url,
        f"create database {name} template template0 encoding 'LATIN1' lc_collate 'C' lc_ctype 'C'",
    )
    url = urlunsplit(urlsplit(empty_postgres_url)._replace(path=f"/{name}"))
    try:
        with pytest.raises(SchemaMismatch) as refusal:
            await upgrade(url)
        refused_with(refusal.value, "LATIN1", "UTF8")
    finally:
        await run(empty_postgres_url, f"drop database {name} with (force)")


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
async def test_a_default_isolation_level_of_the_database_changes_nothing(empty_postgres_url: str, level: str) -> None:
    """In a transaction that keeps its snapshot the lock would be waited for by the concurrent build of an index."""
    database = urlsplit(empty_postgres_url).path[1:]
    setting = f"default_transaction_isolation = '{level}'"
    await run(empty_postgres_url, f'alter database "{database}" set {setting}', *OLDER)
    async with asyncio.timeout(120):
        await upgrade(empty_postgres_url)


SETTINGS = (
    "statement_timeout = '1s'",
    "lock_timeout = '1ms'",
    "idle_in_transaction_session_timeout = '50ms'",
    "standard_conforming_strings = off",
    "bytea_output = escape",
    "\"DateStyle\" = 'German'",
    "\"IntervalStyle\" = 'sql_standard'",
    "\"TimeZone\" = 'Asia/Kolkata'",
    "client_encoding = 'LATIN1'",
    "search_path = ''",
    "row_security = off",
)


async def test_settings_of_the_database_change_nothing(empty_postgres_url: str) -> None:
    """Limits on statements and locks, the syntax of strings, the form of times, the path of names."""
    database = urlsplit(empty_postgres_url).path[1:]
    await run(
        empty_postgres_url,
        *OLDER,
        "insert into public.messages (conversation_id, role, content)"
        " select id, 'ai', 'back\\slash' from public.conversations",
        *(f'alter database "{database}" set {setting}' for setting in SETTINGS),
    )
    await upgrade(empty_postgres_url)
    assert (
        await value(empty_postgres_url, "select role || ' ' || content from public.messages") == "assistant back\\slash"
    )


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://nobody@127.0.0.1:1/x", "no connection"),
        ("postgresql://nobody@no-such-host.invalid/x", "no connection"),
        (f"postgresql://nobody@{'x' * 70}.invalid/x", "connect"),
        ("postgresql://nobody@127.0.0.1:1/x?sslmode=verify-full&sslrootcert=/no/such/file", "connect"),
    ],
)
async def test_an_address_that_leads_nowhere_is_one_line(url: str, words: str) -> None:
    """Unknown host, closed port, a name that is none, a certificate that is missing."""
    with pytest.raises(ExaiError) as refusal:
        await upgrade(url)
    refused_with(refusal.value, words)


async def test_ordinary_refusals_of_the_server_are_one_line(empty_postgres_url: str, tmp_path: Path) -> None:
    """A database that does not exist, a wrong password, TLS that the server does not support."""
    parts = urlsplit(empty_postgres_url)
    with pytest.raises(DatabaseUnavailable) as refusal:
        await upgrade(urlunsplit(parts._replace(path="/no_such_database")))
    refused_with(refusal.value, "3D000")
    async with password_postgres(tmp_path) as url:
        with pytest.raises(DatabaseUnavailable) as refusal:
            await upgrade(url("wrong"))
        refused_with(refusal.value, "28P01")


async def test_a_failure_in_the_middle_is_the_servers_message_on_one_line(empty_postgres_url: str) -> None:
    """An error that occurs during the migration."""
    await run(
        empty_postgres_url,
        "create function public.no() returns event_trigger language plpgsql as"
        " $$ begin raise exception 'not on\nFridays' using hint = 'wait'; end $$",
        "create event trigger no on ddl_command_start when tag in ('CREATE INDEX') execute function public.no()",
    )
    with pytest.raises(DatabaseError) as refusal:
        await upgrade(empty_postgres_url)
    refused_with(refusal.value, "not on Fridays", "wait")
