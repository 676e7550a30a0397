"""What each role may do with each object, as a client of Supabase's API and as the service without special rights.

The matrix is made from the catalogs, so that a new table or function is in it without being named.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import asyncpg
import pytest

from exai.db.conversations import ConversationRepository
from exai.db.driver.pool import OneTrip
from exai.db.history import HistoryRepository
from exai.db.lifecycle import CurationRepository
from exai.db.migrations.migrate import upgrade
from exai.models import ContinuationId, ConversationId, ConversationKey, Owner
from tests.conftest import fresh
from tests.support.backend import Backend
from tests.support.database import appending, new_id, once, opened
from tests.support.everything import use
from tests.support.migrations import run, session, value
from tests.support.supabase import API_ROLES, APP_ROLE, ROLES, acting, make_supabase

A, B = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"

TABLES: Final = """
select n.nspname || '.' || c.relname as name, c.relkind::text as kind, c.relrowsecurity as secured
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
 where n.nspname in ('public', 'exai', 'monitoring') and c.relkind in ('r', 'p', 'v', 'm', 'f')
"""
TABLE_RIGHTS: Final = """
select n.nspname || '.' || c.relname as name, v.verb,
       has_table_privilege($1::text, c.oid, v.verb) as whole,
       case when v.verb in ('select', 'insert', 'update', 'references')
            then array(select a.attname::text from pg_attribute a
                        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
                          and has_column_privilege($1::text, c.oid, a.attnum, v.verb)
                        order by a.attnum) end as columns
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
 cross join unnest(array['select', 'insert', 'update', 'delete', 'truncate', 'references', 'trigger']
                   || case when current_setting('server_version_num')::int >= 170000 then 'maintain' end) v(verb)
 where n.nspname in ('public', 'exai', 'monitoring') and c.relkind in ('r', 'p', 'v', 'm', 'f') and v.verb is not null
"""
FUNCTION_RIGHTS: Final = """
select n.nspname || '.' || f.proname as name from pg_proc f join pg_namespace n on n.oid = f.pronamespace
 where n.nspname in ('public', 'exai', 'monitoring') and has_function_privilege($1::text, f.oid, 'execute')
"""
FUNCTIONS: Final = """
select n.nspname || '.' || f.proname as name from pg_proc f join pg_namespace n on n.oid = f.pronamespace
 where n.nspname in ('public', 'exai', 'monitoring')
"""
SEQUENCE_RIGHTS: Final = """
select n.nspname || '.' || c.relname as name from pg_class c join pg_namespace n on n.oid = c.relnamespace
 where n.nspname in ('public', 'exai', 'monitoring')
   and case when c.relkind = 'S' then has_sequence_privilege($1::text, c.oid, 'usage, select, update') end
"""
SCHEMA_RIGHTS: Final = """
select n.nspname::text as name, has_schema_privilege($1::text, n.oid, 'create') as creates from pg_namespace n
 where n.nspname in ('exai', 'monitoring') and has_schema_privilege($1::text, n.oid, 'usage, create')
"""
OPEN: Final = [
    f"public.{name}" for name in ("conversation_files", "conversations", "files", "messages", "requests", "turns")
]
WRITABLE: Final = {"insert": ["id", "tool", "arguments", "deadline_at"], "update": ["state", "read_at"]}
PARTITION: Final = re.compile(r"monitoring\.metrics_raw_\w+")


async def prepare(url: str) -> None:
    async with session(url) as connection:
        await make_supabase(connection)
    await upgrade(url)


@pytest.fixture(scope="module")
def by_superuser(backend: Backend) -> None:
    """Skip where tests have less rights."""
    for url in fresh(backend.databases, migrated=False):
        if not backend.run(value(url, "select rolsuper from pg_roles where rolname = current_user")):
            pytest.skip("only a superuser can act as other roles")


@pytest.fixture
def supabase_url(backend: Backend, by_superuser: None) -> Iterator[str]:
    """A database as Supabase makes it, with EXAI in it."""
    yield from fresh(backend.databases, migrated=False, prepare=prepare)


@pytest.fixture
async def sql(supabase_url: str) -> AsyncIterator[OneTrip]:
    async with session(supabase_url) as connection:
        yield connection


async def rights(sql: OneTrip, role: str) -> dict[str, dict[str, Any]]:
    """Verbs by table: True for the whole table, or the columns."""
    found: dict[str, dict[str, Any]] = {}
    for row in await sql.fetch(TABLE_RIGHTS, role):
        if row["whole"] or row["columns"]:
            found.setdefault(row["name"], {})[row["verb"]] = True if row["whole"] else row["columns"]
    return found


async def test_every_table_has_row_level_security(sql: OneTrip) -> None:
    """The table of the revision, and partitions that are made later, too."""
    await sql.execute("select monitoring.create_partitions(20)")
    tables = await sql.fetch(TABLES)
    assert len(tables) > 25
    assert {row["name"] for row in tables if not row["secured"]} == set()
    assert {row["kind"] for row in tables} == {"r", "p"}


async def test_matrix_of_clients(sql: OneTrip) -> None:
    """Default privileges had granted them every new table and function."""
    await sql.execute("select monitoring.create_partitions(20)")
    assert await rights(sql, "anon") == {}
    expected: dict[str, dict[str, Any]] = {name: {"select": True} for name in OPEN}
    expected["public.requests"] |= WRITABLE
    assert await rights(sql, "authenticated") == expected


async def test_matrix_of_the_service_role(sql: OneTrip) -> None:
    """It passes by row level security, so it must not be able to write or truncate."""
    expected: dict[str, dict[str, Any]] = {name: {"select": True} for name in OPEN}
    expected["monitoring.metrics_raw"] = {"select": True, "insert": True}
    expected["monitoring.metrics_processing_log"] = {"select": True, "insert": True, "update": True}
    read = ("metrics_1min", "metrics_1hour", "erased_owners")
    expected |= {f"monitoring.{name}": {"select": True} for name in read}
    assert await rights(sql, "service_role") == expected


async def test_matrix_of_the_service(sql: OneTrip) -> None:
    """Rows of every table, but no definition."""
    tables = {row["name"] for row in await sql.fetch(TABLES)} - {"exai.alembic_version"}
    every = dict.fromkeys(("select", "insert", "update", "delete"), True)
    found = await rights(sql, APP_ROLE)
    assert found.pop("exai.alembic_version") == {"select": True}
    assert found == dict.fromkeys(tables, every)


async def test_matrix_of_functions(sql: OneTrip) -> None:
    """Every new function would be executable by everybody."""
    every = {row["name"] for row in await sql.fetch(FUNCTIONS)}
    monitoring = {name for name in every if name.startswith("monitoring.")}
    found = {role: {row["name"] for row in await sql.fetch(FUNCTION_RIGHTS, role)} for role in (*API_ROLES, APP_ROLE)}
    assert found == {
        "anon": set(),
        "authenticated": {"public.exai_page", "exai.shared_page_v1"},
        "service_role": monitoring | {"public.cleanup_orphaned_files"},
        APP_ROLE: every - {"exai.grant_access_v1", "exai.announce_v1"},
    }


async def test_matrix_of_schemas_and_sequences(sql: OneTrip) -> None:
    """No role may create anything."""
    found = {role: [tuple(row) for row in await sql.fetch(SCHEMA_RIGHTS, role)] for role in (*API_ROLES, APP_ROLE)}
    assert found == {
        "anon": [],
        "authenticated": [("exai", False)],
        "service_role": [("monitoring", False)],
        APP_ROLE: [("exai", False), ("monitoring", False)],
    }
    sequences = {role: {row["name"] for row in await sql.fetch(SEQUENCE_RIGHTS, role)} for role in API_ROLES}
    assert sequences["anon"] == sequences["authenticated"] == set()
    assert all(name.startswith("monitoring.") for name in sequences["service_role"])


async def test_functions_that_clients_may_call_are_invokers(sql: OneTrip) -> None:
    """What a client calls in the API's schema runs with its own rights."""
    assert await sql.fetchval("select not prosecdef from pg_proc where proname = 'exai_page'")


async def test_granting_again_changes_nothing(supabase_url: str) -> None:
    """Not even the policies, whose creation would lock the tables."""
    everything = "select string_agg(oid::text || polname || polrelid::text, ',' order by oid) from pg_policy"
    before = await value(supabase_url, everything)
    granted = await value(supabase_url, "select exai.grant_access_v1()")
    assert granted == ["anon", "authenticated", APP_ROLE, "service_role"]
    assert await value(supabase_url, everything) == before


async def test_roles_that_appear_later_are_granted_the_same(postgres_url: str, sql: OneTrip) -> None:
    """The migration of a plain database found no roles."""
    await run(postgres_url, *ROLES)
    await run(postgres_url, "select exai.grant_access_v1()")
    async with session(postgres_url) as later:
        for role in (*API_ROLES, APP_ROLE):
            assert await rights(later, role) == await rights(sql, role)


async def store(url: str, owner: str, *texts: str) -> str:
    async with opened(url) as database:
        appended = await ConversationRepository(database).append(appending(None, *texts, owner=Owner(owner)))
    assert appended.commit is not None
    return appended.commit.conversation.continuation_id


async def test_a_client_reads_its_own_rows(supabase_url: str, sql: OneTrip) -> None:
    """And of others neither rows nor their number."""
    mine, theirs = await store(supabase_url, A, "one", "two"), await store(supabase_url, B, "three")
    for owner, name, count in ((A, mine, 2), (B, theirs, 1)):
        async with acting(sql, "authenticated", sub=owner):
            assert [row[0] for row in await sql.fetch("select continuation_id from conversations")] == [name]
            assert await sql.fetchval("select count(*) from messages") == count
            assert await sql.fetchval("select count(*) from turns") == 1
            assert len(await sql.fetch("select * from exai_page($1::text)", name)) == count
            assert await sql.fetch("select * from exai_page($1::text)", theirs if owner == A else mine) == []
            assert await sql.fetchval("select count(*) from requests") == 0
    async with acting(sql, "authenticated"):
        assert await sql.fetchval("select count(*) from conversations") == 0


async def test_a_local_owner_is_no_user_s_subject(supabase_url: str, sql: OneTrip) -> None:
    """An issuer of other tokens than Supabase's may let its users choose their subject."""
    await store(supabase_url, "local", "one")
    async with acting(sql, "authenticated", sub="local"):
        assert await sql.fetchval("select count(*) from messages") == 0


async def test_a_deleted_conversation_is_not_read(supabase_url: str, sql: OneTrip) -> None:
    """It can be restored, but until then it is gone."""
    name = await store(supabase_url, A, "one")
    await run(supabase_url, "update conversations set deleted_at = now()")
    async with acting(sql, "authenticated", sub=A):
        for table in ("conversations", "messages", "turns"):
            assert await sql.fetchval(f"select count(*) from {table}") == 0
        assert await sql.fetch("select * from exai_page($1::text)", name) == []


async def test_a_page_continues_into_the_conversations_that_were_forked(supabase_url: str, sql: OneTrip) -> None:
    """Also after the original was deleted, of which nothing else can be read."""
    name = await store(supabase_url, A, *"abcde")
    async with opened(supabase_url) as database:
        key = ConversationKey(Owner(A), ContinuationId(name))
        made = await CurationRepository(database).fork(
            key, once(), new_conversation_id=ConversationId(new_id()), at_seq=3
        )
        assert made.commit is not None
        fork = made.commit.conversation.continuation_id
        await ConversationRepository(database).append(appending(fork, "x", "y", owner=Owner(A)))
    query = "select array_agg(content order by seq desc) from exai_page($1::text, $2::bigint, $3::int)"
    for _ in range(2):
        async with acting(sql, "authenticated", sub=A):
            assert await sql.fetchval(query, fork, None, 50) == ["y", "x", "c", "b", "a"]
            assert await sql.fetchval(query, fork, 5, 3) == ["x", "c", "b"]
            assert await sql.fetchval(query, fork, 2, 3) == ["a"]
        async with acting(sql, "authenticated", sub=B):
            assert await sql.fetchval(query, fork, None, 50) is None
        await run(supabase_url, "update conversations set deleted_at = now() where parent_id is null")
    async with acting(sql, "authenticated", sub=A):
        assert await sql.fetchval("select count(*) from messages") == 2
        # The helper is not part of the API; it answers the owner only.
        assert len(await sql.fetch("select * from exai.shared_page_v1(gen_random_uuid(), 10, 10)")) == 0


ASK = "insert into requests (id, tool, arguments) values ($1::uuid, 'chat', '{\"prompt\": \"hi\"}')"


async def test_a_client_asks_once_cancels_and_reads(supabase_url: str, sql: OneTrip) -> None:
    """With an id of its own it can send the request again."""
    request = new_id()
    async with acting(sql, "authenticated", sub=A):
        for _ in range(2):
            await sql.execute(f"{ASK} on conflict do nothing", request)
        assert [tuple(row) for row in await sql.fetch("select owner, state from requests")] == [(A, "queued")]
    async with acting(sql, "authenticated", sub=B):
        assert await sql.execute("update requests set state = 'cancelled'") == "UPDATE 0"
    async with acting(sql, "authenticated", sub=A):
        assert await sql.execute("update requests set state = 'cancelled'") == "UPDATE 1"
        assert await sql.execute("update requests set read_at = now()") == "UPDATE 1"


@pytest.mark.parametrize(
    ("state", "change", "error"),
    [
        ("queued", "state = 'done'", asyncpg.CheckViolationError),
        ("running", "state = 'failed'", asyncpg.CheckViolationError),
        ("queued", "state = 'running'", asyncpg.InsufficientPrivilegeError),
        ("done", "state = 'queued'", asyncpg.InsufficientPrivilegeError),
        ("done", "state = 'cancelled'", asyncpg.CheckViolationError),
        ("cancelled", "state = 'done'", asyncpg.CheckViolationError),
        ("cancelled", "state = 'queued'", asyncpg.InsufficientPrivilegeError),
        ("queued", "read_at = now()", asyncpg.InsufficientPrivilegeError),
        ("running", "answer = 'mine'", asyncpg.InsufficientPrivilegeError),
        ("running", f"owner = '{B}'", asyncpg.InsufficientPrivilegeError),
        ("running", "finished_at = now(), state = 'done'", asyncpg.InsufficientPrivilegeError),
    ],
)
async def test_a_client_can_do_nothing_else_to_a_request(
    supabase_url: str, sql: OneTrip, state: str, change: str, error: type[Exception]
) -> None:
    """Column grants, the policy and a constraint together."""
    await sql.execute(
        "insert into requests (owner, tool, state, claimed_by, lease_until, finished_at)"
        " values ($1::text, 'chat', $2::text, gen_random_uuid(), now(), case when $2::text = 'done' then now() end)",
        A, state,
    )  # fmt: skip
    with pytest.raises(error):
        async with acting(sql, "authenticated", sub=A):
            await sql.execute(f"update requests set {change}")


@pytest.mark.parametrize(
    "statement",
    [
        f"insert into requests (owner, tool) values ('{B}', 'chat')",
        "insert into requests (tool, state) values ('chat', 'done')",
        "insert into requests (tool, answer) values ('chat', 'x')",
        "delete from requests",
        "truncate requests",
        "insert into messages (conversation_id, role, content) values (gen_random_uuid(), 'user', 'x')",
        "update conversations set title = 'x'",
        "select * from monitoring.metrics_raw",
        "select * from exai.contents",
        "select exai.grant_access_v1()",
        "select exai.begin_turn_v1(null)",
        "select cleanup_orphaned_files()",
        "create table exai.mine (a int)",
    ],
)
@pytest.mark.parametrize("role", ["authenticated", "anon"])
async def test_a_client_is_refused(sql: OneTrip, role: str, statement: str) -> None:
    """`anon` as well."""
    with pytest.raises((asyncpg.InsufficientPrivilegeError, asyncpg.UndefinedFunctionError)):
        async with acting(sql, role, sub=A):
            await sql.execute(statement)


async def test_anonymous_users_are_admitted_by_a_setting(supabase_url: str, sql: OneTrip) -> None:
    """Their tokens have the role of signed-in users."""
    await store(supabase_url, A, "one")
    count = "select count(*) from messages"

    async def seen() -> int:
        async with acting(sql, "authenticated", sub=A, is_anonymous=True):
            return await sql.fetchval(count)

    assert await seen() == 0
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with acting(sql, "authenticated", sub=A, is_anonymous=True):
            await sql.execute(ASK, new_id())
    for given, expected in (("true", 1), ("null", 1), ("false", 0), ("null", 0)):
        await sql.execute(f"select exai.grant_access_v1({given})")
        assert await seen() == expected
    async with acting(sql, "authenticated", sub=A, is_anonymous=False):
        assert await sql.fetchval(count) == 1


async def test_one_owner_cannot_fill_the_queue(sql: OneTrip) -> None:
    """A thousand wait at most; other owners are not affected."""
    many = "insert into requests (tool) select 'chat' from generate_series(1, $1::int)"
    async with acting(sql, "authenticated", sub=A):
        await sql.execute(many, 1000)
    with pytest.raises(asyncpg.ProgramLimitExceededError, match="more than 1000 requests are waiting"):
        async with acting(sql, "authenticated", sub=A):
            await sql.execute(many, 1)
    async with acting(sql, "authenticated", sub=B):
        await sql.execute(many, 1)


async def test_the_service_runs_as_a_role_without_special_rights(supabase_url: str) -> None:
    """Every statement, and the upkeep of the metrics, whose functions create and drop partitions."""
    plain = re.sub(r"://[^@/]*@", f"://{APP_ROLE}:{APP_ROLE}@", supabase_url)
    try:
        assert await value(plain, "select current_user") == APP_ROLE
    except Exception:
        pytest.skip("this server refuses other users")
    async with opened(plain) as database:
        await use(database)
        history = HistoryRepository(database)
        await history.create_partitions()
        await history.apply_retention()
        assert (await database.fetch("revision"))[0]["revision"]
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await run(plain, "create table public.mine (a int)")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await run(plain, "truncate public.messages")
    assert not await value(plain, "select rolbypassrls from pg_roles where rolname = current_user")


async def test_the_policy_of_messages_is_one_look_at_the_owner_s_conversations(supabase_url: str, sql: OneTrip) -> None:
    """A correlated `exists` would look up the conversation of every message of all owners."""
    await store(supabase_url, A, "one")
    async with acting(sql, "authenticated", sub=A):
        plan = "\n".join(row[0] for row in await sql.fetch("explain select count(*) from messages"))
    assert "hashed SubPlan" in plan or "ANY" in plan or "Nested Loop" in plan, plan
    assert plan.count("InitPlan") >= 1
