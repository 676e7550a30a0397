"""The database part of Supabase's Realtime, from Realtime's own migrations, on a server with wal2json.

`make test-supabase` brings the migrations of one release to `.venv/supabase/realtime`. Each statement of theirs is run;
those that need tables which Ecto creates fail and are passed over. Only `realtime.messages` is created here, as the
migrations leave it. Invariant: `EVENTS` is what the server of Realtime sends to subscribers.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote

import asyncpg

from exai.db.driver.pool import OneTrip
from exai.embedded.launcher import LaunchOptions, open_servers
from tests.support.daemon import ROOT
from tests.support.migrations import run, session, value
from tests.support.supabase import make_supabase

MIGRATIONS: Final = ROOT / ".venv" / "supabase" / "realtime"
DATABASE: Final = "project"
SLOT: Final = "supabase_realtime_replication_slot"

PROJECT_ROLES: Final = (
    # Supabase's `postgres` is no superuser, and owns what a project creates.
    "create role postgres login createdb createrole bypassrls",
    "create role dashboard_user",
    "grant anon, authenticated, service_role to postgres",
)
MESSAGES: Final = (
    "drop table if exists realtime.messages cascade",
    "create table realtime.messages (topic text not null, extension text not null, payload jsonb, event text,"
    " private boolean default false, updated_at timestamp not null default now(),"
    " inserted_at timestamp not null default now(), id uuid not null default gen_random_uuid(),"
    " binary_payload bytea, primary key (id, inserted_at)) partition by range (inserted_at)",
    # Realtime's server creates one for each day.
    "create table realtime.messages_all_days partition of realtime.messages"
    " for values from ('2000-01-01') to ('3000-01-01')",
    "alter table realtime.messages enable row level security",
    "alter table realtime.messages owner to supabase_realtime_admin",
    "grant select, insert, update on realtime.messages to postgres, anon, authenticated, service_role",
)
FUNCTIONS: Final = (
    "realtime.apply_rls(jsonb,integer)",
    "realtime.list_changes(name,name,integer,integer)",
    "realtime.send(jsonb,text,text,boolean)",
    "realtime.topic()",
)
SUBSCRIBE: Final = """
insert into realtime.subscription (subscription_id, entity, filters, claims, action_filter, selected_columns)
select gen_random_uuid(), format('%I.%I', schemaname, tablename)::regclass, '{}', $1::jsonb, '*', null
  from pg_publication_tables where pubname = 'supabase_realtime'
"""
EVENTS: Final = f"""
select s.claims ->> 'sub' as sub, c.wal ->> 'table' as table, c.wal ->> 'type' as type,
       (c.wal -> 'record')::text as record, (c.wal -> 'old_record')::text as old_record, c.errors
  from realtime.list_changes('supabase_realtime', '{SLOT}', 1000, 1048576) c
  join realtime.subscription s on s.subscription_id = any (c.subscription_ids)
 where c.wal is not null
"""


def server_with_wal2json() -> Path | None:
    """Return the directory of the programs of an installed Postgres that has the extension wal2json."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/lib/wal2json.so"))
    return found[-1].parent.parent / "bin" if found else None


def statements(directory: Path) -> Iterator[str]:
    """Yield the SQL that the migrations execute on the way up, in their order."""
    for file in sorted(directory.glob("*.ex")):
        upward, _, _ = file.read_text("utf-8").partition("def down")
        for match in re.finditer(r'\bexecute\(?\s*(?:"""(.*?)"""|"((?:[^"\\]|\\.)*)")', upward, re.DOTALL):
            statement = re.sub(r"\\(.)", r"\1", match[1] or match[2])
            if re.sub(r"--.*", "", statement).strip():
                yield statement


@asynccontextmanager
async def project(migrations: Path, pg_bin: Path) -> AsyncIterator[tuple[str, str]]:
    """Run a server with a project's database, before EXAI is installed.

    Yields the addresses of the database for a superuser, as Realtime has, and for the role `postgres`.
    """
    with tempfile.TemporaryDirectory(prefix="exai-test-") as directory:
        options = LaunchOptions(durable=False, valkey=False, pg_bin=pg_bin)
        async with open_servers(Path(directory) / "data", options) as servers:
            assert servers.postgres is not None
            url = servers.postgres.url
            await run(url, "alter system set wal_level = logical", f"create database {DATABASE}")
            if await value(url, "select exists (select from pg_settings where name = 'output_plugin_libraries')"):
                await run(url, "alter system set output_plugin_libraries = 'wal2json'")
            await servers.postgres.stop()
            await servers.postgres.start()
            host = quote(str(servers.postgres.socket_dir), safe="/")
            superuser, owner = (f"postgresql://{role}@/{DATABASE}?host={host}" for role in ("exai", "postgres"))
            async with session(superuser) as sql:
                await make_supabase(sql)
                for statement in (*PROJECT_ROLES, f"alter database {DATABASE} owner to postgres"):
                    await sql.execute(statement)
                await sql.execute("alter schema public owner to postgres")
                await sql.execute("alter publication supabase_realtime owner to postgres")
                await install(sql, migrations)
            yield superuser, owner


async def install(sql: OneTrip, migrations: Path) -> None:
    """Run Realtime's migrations and see that they made what is tested."""
    await sql.execute("create schema realtime")
    for statement in statements(migrations):
        with suppress(asyncpg.PostgresError):
            await sql.execute(statement)
    for statement in MESSAGES:
        await sql.execute(statement)
    await sql.execute("grant usage on schema realtime to postgres, anon, authenticated, service_role")
    for function in FUNCTIONS:
        assert await sql.fetchval("select to_regprocedure($1::text) is not null", function), function
    await sql.execute(f"select pg_create_logical_replication_slot('{SLOT}', 'wal2json')")


async def subscribe(sql: OneTrip, **claims: str) -> None:
    """Subscribe to every published table, as Realtime does for a client with these claims."""
    await sql.execute(SUBSCRIBE, json.dumps(claims))
