"""EXAI calls nothing that another role creates in schema public (CVE-2018-1058).

Up to Postgres 14, and in databases upgraded from there, every role may create there. A function or operator whose
argument types match exactly is preferred to a polymorphic one of pg_catalog, and would run with EXAI's rights.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Final

import pytest
from asyncpg.exceptions import PostgresError, RaiseError

from exai.db.driver.pool import OneTrip
from exai.db.driver.statements import load_statements
from exai.db.migrations.migrate import upgrade
from tests.support.database import opened
from tests.support.everything import use
from tests.support.migrations import run, session, value

OURS: Final = """
select p.oid::regprocedure::text as name, p.prosrc as body,
       (select substr(c, 13) from unnest(p.proconfig) c where c like 'search_path=%') as path
  from pg_proc p
 where p.pronamespace in ('exai'::regnamespace, 'monitoring'::regnamespace)
    or p.oid = to_regprocedure('public.cleanup_orphaned_files(interval, integer)')
"""
WRITES: Final = re.compile(r"\b(?:insert into|update|delete from)\s+public\.(?!turns\b)", re.IGNORECASE)
CALL: Final = re.compile(r"""(?<![\w."])([a-z_][a-z0-9_]*)\s*\(""")
UNTYPED_KEY: Final = re.compile(r"(?:->>|->|#>>|#>|(?<=\s)\?[|&]?)\s*'[^']*'(?!::)")
SYNTAX: Final = frozenset(
    {"extract", "substring", "position", "overlay", "trim", "left", "right", "coalesce", "xmlelement"}
)
"""Names that the grammar itself gives a meaning in pg_catalog."""

GRAMMAR: Final = SYNTAX - {"left", "right"}

POLYMORPHIC: Final = """
select p.proname::text as name, p.prokind = 'a' as is_aggregate, p.proretset as returns_set,
       p.proargtypes::regtype[]::text[] as types, o.oprname::text as operator
  from pg_proc p
  left join pg_operator o on o.oprcode = p.oid
 where p.pronamespace = 'pg_catalog'::regnamespace and p.pronargs between 1 and 3 and p.prokind in ('f', 'a')
   and p.proname !~ '(_in|_out|_recv|_send|_larger|_smaller|_transfn|_finalfn)$'
   and p.proargtypes::regtype[]::text[]
       && array['anyelement', 'anyarray', 'anynonarray', '"any"', 'anycompatible', 'anycompatiblearray',
                'anycompatiblenonarray']
"""
ELEMENTS: Final = ("text", "bigint", "integer", "uuid", "jsonb", "timestamp with time zone", "boolean", "json")
UNTYPED: Final = ("->", "->>", "?", "-", "#>", "#>>", "@>")
BODY: Final = "language plpgsql as $$ begin raise exception 'a hostile function was called'; end $$"


SAFE: Final = "pg_catalog, pg_temp"
AS_USUAL: Final = '"$user", public, extensions, pg_temp'
"""Triggers that others have on the tables run inside a function that writes to them, and find their names here."""


async def functions_of(connection: OneTrip) -> list[tuple[str, str, str]]:
    return [(row["name"], row["body"], row["path"]) for row in await connection.fetch(OURS)]


def unqualified(text: str, builtin: Iterable[str]) -> list[str]:
    """Calls of built-in functions without a schema, and JSON operators whose key has no type."""
    text = re.sub(r"--[^\n]*", "", text)
    names = set(builtin) - GRAMMAR
    found = [name for name in CALL.findall(text) if name in names]
    # With several arguments unnest is grammar, too, and always the one of pg_catalog.
    several = len(re.findall(r"(?<![\w.])unnest\([^()]*(?:\([^()]*\)[^()]*)*,", text))
    for _ in range(several):
        found.remove("unnest")
    return found + UNTYPED_KEY.findall(text)


async def builtin_functions(connection: OneTrip) -> set[str]:
    rows = await connection.fetch("select distinct proname::text as n from pg_proc where pronamespace = 11")
    # Words that begin a list of columns or values, not a call.
    return {row["n"] for row in rows} - {"values", "any", "all", "char", "numeric", "interval"}


async def test_every_function_has_a_fixed_search_path(postgres_url: str) -> None:
    """With one that contains other schemas, it names everything with its schema."""
    async with session(postgres_url) as connection:
        builtin = await builtin_functions(connection)
        functions = await functions_of(connection)
    assert len(functions) > 30
    assert {name: path for name, _, path in functions if path not in (SAFE, AS_USUAL)} == {}
    assert {
        name: found for name, body, path in functions if path != SAFE and (found := unqualified(body, builtin))
    } == {}


async def test_statements_name_everything_with_its_schema(postgres_url: str) -> None:
    """Behind a pooler no session can be given a search_path."""
    async with session(postgres_url) as connection:
        builtin = await builtin_functions(connection)
    statements = load_statements().values()
    assert {each.name: found for each in statements if (found := unqualified(each.text, builtin))} == {}


async def test_triggers_of_others_find_their_tables(postgres_url: str) -> None:
    """They run inside the function that writes, and may name tables without a schema."""
    async with session(postgres_url) as connection:
        functions = await functions_of(connection)
        rows = await connection.fetch(
            "select p.oid::regprocedure::text as n from pg_proc p where p.prorettype = 'trigger'::regtype"
        )
    triggers = {row["n"] for row in rows}
    restored = {name for name, _, _ in functions if "recover_conversation_v1" in name or "index_messages" in name}
    writers = {name for name, body, path in functions if path == SAFE and WRITES.search(body)}
    assert writers - triggers - restored == set()


async def make_hostile(connection: OneTrip, role: str) -> int:
    """Let a role without other rights create functions that shadow polymorphic ones for our types."""
    await connection.execute("grant create on schema public to public")
    await connection.execute(f"create role {role}")
    await connection.execute(f"grant {role} to current_user")
    await connection.execute(f"set role {role}")
    made = 0
    try:
        for row in await connection.fetch(POLYMORPHIC):
            for element in ELEMENTS:
                types = [specialised(each, element) for each in row["types"]]
                made += await attempt(
                    connection, function(row["name"], types, "setof text" if row["returns_set"] else "text")
                )
                if row["operator"] and len(types) == 2 and not row["returns_set"]:
                    await attempt(connection, operator(row["operator"], *types, row["name"]))
        for name in UNTYPED:
            await attempt(connection, f"create function public.untyped(jsonb, jsonb) returns boolean {BODY}")
            made += await attempt(connection, operator(name, "jsonb", "jsonb", "untyped"))
        for number in range(1, 30):
            for name in ("json_build_object", "jsonb_build_object", "json_build_array", "concat_ws", "format"):
                made += await attempt(connection, function(name, ["text"] * number, "json"))
        made += await attempt(connection, function("make_interval", ["secs double precision"], "interval"))
        for table in ("conversations", "messages", "turns"):
            row = f"public.{table}"
            await attempt(connection, f"create function public.same({row}, {row}) returns boolean {BODY}")
            await attempt(connection, operator("=", row, row, "same"))
    finally:
        await connection.execute("reset role")
    return made


def specialised(type_: str, element: str) -> str:
    arrays = {"anyarray", "anycompatiblearray"}
    elements = {"anyelement", "anynonarray", "anycompatible", "anycompatiblenonarray", '"any"'}
    return f"{element}[]" if type_ in arrays else element if type_ in elements else type_


def function(name: str, types: list[str], returned: str) -> str:
    return f'create function public."{name}"({", ".join(types)}) returns {returned} {BODY}'


def operator(name: str, left: str, right: str, function: str) -> str:
    return f'create operator public.{name} (leftarg = {left}, rightarg = {right}, function = public."{function}")'


async def attempt(connection: OneTrip, statement: str) -> int:
    """Not every combination makes sense."""
    try:
        await connection.execute(statement)
    except PostgresError:
        return 0
    return 1


@asynccontextmanager
async def hostile(url: str) -> AsyncIterator[None]:
    """A database in whose schema public another role has put all that."""
    role = f"hostile_{uuid.uuid4().hex}"
    async with session(url) as connection:
        assert await make_hostile(connection, role) > 300
        with pytest.raises(RaiseError, match="hostile"):
            await connection.fetchval("select cardinality(array['a', 'b'])")
        with pytest.raises(RaiseError, match="hostile"):
            await connection.fetchval("select '{}'::jsonb ->> '\"a\"'")
    try:
        yield
    finally:
        async with session(url) as connection:
            await connection.execute(f"drop owned by {role} cascade")
            await connection.execute(f"drop role {role}")


@pytest.fixture
async def hostile_url(postgres_url: str) -> AsyncIterator[str]:
    async with hostile(postgres_url):
        yield postgres_url


async def test_no_operation_calls_functions_of_other_roles(hostile_url: str) -> None:
    """Each of these functions raises an error with a known text."""
    async with opened(hostile_url) as database:
        await use(database)


async def test_migrations_call_no_functions_of_other_roles(empty_postgres_url: str) -> None:
    """From an empty database and from one with tables of an older system."""
    async with hostile(empty_postgres_url):
        await upgrade(empty_postgres_url)
        async with opened(empty_postgres_url) as database:
            await use(database)


async def test_an_older_database_is_adopted_beside_hostile_functions(empty_postgres_url: str) -> None:
    """Its rows are numbered and made to fit by statements that name everything with its schema."""
    url = empty_postgres_url
    await run(
        url,
        "create table public.conversations (id uuid primary key default gen_random_uuid(), continuation_id text,"
        " metadata jsonb, created_at timestamptz, updated_at timestamptz)",
        "create table public.messages (id uuid primary key default gen_random_uuid(), conversation_id uuid, role text,"
        " content text, metadata jsonb, timestamp timestamp)",
        "create table public.files (id uuid primary key, storage_path text)",
        "create table public.conversation_files (conversation_id uuid, file_id uuid)",
        "insert into public.conversations (continuation_id, metadata) select 'name', '{}' from generate_series(1, 2)",
        "insert into public.messages (conversation_id, role, content, metadata, timestamp)"
        " select c.id, 'bot', 'words', '[]', now()::timestamp from public.conversations c",
        "insert into public.messages (conversation_id, role, content) values (null, 'user', 'lost')",
        "insert into public.messages (conversation_id, role, content) values (gen_random_uuid(), 'user', 'orphan')",
        "insert into public.conversation_files values (gen_random_uuid(), gen_random_uuid())",
    )
    async with hostile(url):
        await upgrade(url)
        async with opened(url) as database:
            await use(database)
    assert await value(url, "select count(*) from public.messages where seq is null") == 0
