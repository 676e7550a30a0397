"""Supabase's roles and Realtime: grant and connect them, and examine them for `exai doctor --supabase`.

Invariant: `examine` changes nothing, and each finding is the result of a statement just executed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from asyncpg.exceptions import LockNotAvailableError, PostgresError

from exai.db.driver.address import parse_address
from exai.db.driver.pool import OneTrip, connect
from exai.db.driver.translate import DEPENDENCY
from exai.db.migrations.revision import found_revision
from exai.errors import DatabaseBusy, DatabaseError, SchemaMismatch
from exai.models import Finding
from exai.program import program

CONNECT_LIMIT_S: Final = 10.0
FIRST_REVISION: Final = "0007"
TRIES: Final = 5
PAUSE_S: Final = 0.5
GRANT: Final = "select exai.grant_access_v1($1::boolean, $2::boolean)::text[]"
ANNOUNCE: Final = "select exai.announce_v1($1::boolean)::text[]"

ROLES: Final = """
select array(select r.rolname::text from pg_catalog.pg_roles r
              where r.rolname in ('anon', 'authenticated', 'service_role', 'exai_app') order by 1)::text[]"""
STANDING: Final = """
select r.rolname::text as name, r.rolsuper or r.rolbypassrls as passes from pg_catalog.pg_roles r
 where r.rolname = current_user"""
UNSECURED: Final = """
select array(select pg_catalog.concat(n.nspname, '.', c.relname)::text
               from pg_catalog.pg_class c
               join pg_catalog.pg_namespace n on n.oid = c.relnamespace
              where c.relkind in ('r', 'p') and not c.relrowsecurity
                and (n.nspname in ('exai', 'monitoring') or (n.nspname = 'public' and c.relname = any($1::text[])))
              order by 1)::text[]"""
EXCESS: Final = """
select array(select pg_catalog.concat(r.rolname, ' on ', n.nspname, '.', c.relname)::text
               from pg_catalog.pg_class c
               join pg_catalog.pg_namespace n on n.oid = c.relnamespace
              cross join pg_catalog.pg_roles r
              where c.relkind in ('r', 'p') and r.rolname = $2::text
                and (n.nspname in ('exai', 'monitoring') or (n.nspname = 'public' and c.relname = any($1::text[])))
                and pg_catalog.has_table_privilege(r.oid, c.oid, $3::text)
              order by 1)::text[]"""
MISSING: Final = """
select array(select t.name from pg_catalog.unnest($1::text[]) t(name)
              where not pg_catalog.has_table_privilege('authenticated', pg_catalog.concat('public.', t.name), 'select')
                 or not exists (select from pg_catalog.pg_policies p
                                 where p.schemaname = 'public' and p.tablename = t.name and p.cmd in ('SELECT', 'ALL')
                                   and 'authenticated' = any(p.roles)))::text[]"""
LIMITS: Final = """
select (pg_catalog.current_setting('max_connections')::int
        - pg_catalog.current_setting('superuser_reserved_connections')::int)::int as allowed,
       (select pg_catalog.count(*) from pg_catalog.pg_stat_activity a
         where a.backend_type = 'client backend' and a.pid <> pg_catalog.pg_backend_pid())::int as others"""
PUBLISHED: Final = """
select p.puballtables::boolean as all_tables,
       array(select t.tablename::text from pg_catalog.pg_publication_tables t
              where t.pubname = p.pubname and t.schemaname = 'public')::text[] as tables
  from pg_catalog.pg_publication p where p.pubname = 'supabase_realtime'"""
BROADCAST: Final = """
select (pg_catalog.to_regprocedure('realtime.send(jsonb,text,text,boolean)') is not null)::boolean as offered,
       (exists (select from pg_catalog.pg_trigger t where t.tgrelid = 'public.conversations'::regclass
                   and t.tgname = 'exai_announce'))::boolean as connected"""
ANONYMOUS: Final = """
select (not exists (select from pg_catalog.pg_policies p where p.schemaname = 'public' and p.tablename = 'requests'
                       and p.policyname = 'exai_named'))::boolean"""

OPEN_TABLES: Final = ["conversations", "messages", "turns", "files", "conversation_files", "requests"]
PUBLISHED_TABLES: Final = ("conversations", "messages", "requests")
CURE: Final = f"Run `{program()} supabase grant`"


@dataclass(frozen=True, slots=True)
class Granted:
    """The roles that received their rights, and the parts of Realtime that are connected."""

    roles: Sequence[str]
    realtime: Sequence[str]


async def grant(url: str, *, anonymous: bool, adopted: bool, realtime: bool) -> Granted:
    """Give the roles that exist their rights, and connect Realtime, in one transaction; can be repeated.

    Raises `DatabaseError`, `SchemaMismatch` if the database is older than the function.
    """
    connection = await connect(parse_address(url), timeout_s=CONNECT_LIMIT_S)
    try:
        if await found_revision(connection) < FIRST_REVISION:
            raise SchemaMismatch(
                DEPENDENCY, f"the database is older than {FIRST_REVISION}", f"Run `{program()} migrate`"
            )
        for attempt in range(1, TRIES + 1):
            try:
                async with connection.transaction():
                    roles = await connection.fetchval(GRANT, anonymous, adopted)
                    connected = await connection.fetchval(ANNOUNCE, realtime)
            except LockNotAvailableError as error:
                if attempt == TRIES:
                    raise DatabaseBusy(DEPENDENCY, "a table was in use for too long", "Run it again") from error
                await asyncio.sleep(PAUSE_S)
            else:
                return Granted(roles, connected)
    except PostgresError as error:
        raise DatabaseError(DEPENDENCY, str(error), "Run it as the role that migrates the database") from error
    finally:
        connection.terminate()
    raise AssertionError("the last attempt returns or raises")


async def examine(url: str, *, anonymous: bool) -> list[Finding]:
    """Return findings on roles, grants, policies and Realtime. Raises `DatabaseError`."""
    connection = await connect(parse_address(url), timeout_s=CONNECT_LIMIT_S)
    try:
        if await found_revision(connection) < FIRST_REVISION:
            return [Finding("supabase", "fail", "the database is not at this release", f"Run `{program()} migrate`")]
        roles = await connection.fetchval(ROLES)
        return [
            await _standing(connection, roles),
            *await _grants(connection, roles),
            *await _anonymous(connection, roles, wanted=anonymous),
            *await _realtime(connection),
        ]
    finally:
        connection.terminate()


async def read_limits(url: str) -> tuple[int, int]:
    """Return the most connections that the server gives to this role, and how many others are open."""
    connection = await connect(parse_address(url), timeout_s=CONNECT_LIMIT_S)
    try:
        row = await connection.fetchrow(LIMITS)
        assert row is not None  # noqa: S101 - a select without a table always has one row
        return row["allowed"], row["others"]
    finally:
        connection.terminate()


async def _standing(connection: OneTrip, roles: Sequence[str]) -> Finding:
    row = await connection.fetchrow(STANDING)
    name, passes = (row["name"], row["passes"]) if row is not None else ("?", False)
    if not passes:
        return Finding("service role", "ok", f"{name}, without BYPASSRLS")
    cure = (
        "To give the service less: create role exai_app login password '...', run "
        f"`{program()} supabase grant`, and use that role in EXAI_DATABASE__URL"
    )
    known = "; exai_app exists" if "exai_app" in roles else ""
    return Finding("service role", "ok", f"{name} passes by row level security{known}. {cure}")


async def _grants(connection: OneTrip, roles: Sequence[str]) -> list[Finding]:
    api = [role for role in roles if role != "exai_app"]
    if not api:
        return [Finding("api roles", "off", "anon, authenticated and service_role do not exist: this is not Supabase")]
    found = []
    if unsecured := await connection.fetchval(UNSECURED, OPEN_TABLES):
        found.append(Finding("row security", "fail", f"off for {_some(unsecured)}", f"{CURE} --adopted"))
    writes = "insert, update, delete, truncate, references, trigger"
    if excess := await connection.fetchval(EXCESS, OPEN_TABLES, "anon", f"select, {writes}"):
        found.append(Finding("grants", "fail", f"more than needed: {_some(excess)}", f"{CURE} --adopted"))
    if excess := await connection.fetchval(EXCESS, OPEN_TABLES, "authenticated", writes):
        found.append(Finding("grants", "fail", f"more than needed: {_some(excess)}", f"{CURE} --adopted"))
    if "authenticated" in roles and (missing := await connection.fetchval(MISSING, OPEN_TABLES)):
        problem = f"signed-in users cannot read their rows of {_some(missing)}"
        found.append(Finding("policies", "warn", problem, CURE))
    return found or [Finding("grants", "ok", f"{', '.join(api)} have the rights they should have")]


async def _anonymous(connection: OneTrip, roles: Sequence[str], *, wanted: bool) -> list[Finding]:
    if "authenticated" not in roles or await connection.fetchval(ANONYMOUS) == wanted:
        return []
    words = ("are refused by the policies", "are admitted by EXAI") if wanted else (
        "are admitted by the policies", "are refused by EXAI")  # fmt: skip
    return [Finding("anonymous users", "warn", f"{words[0]} and {words[1]} (EXAI_SERVER__JWT__ALLOW_ANONYMOUS)", CURE)]


async def _realtime(connection: OneTrip) -> list[Finding]:
    found = []
    row: Any = await connection.fetchrow(PUBLISHED)
    if row is None:
        found.append(Finding("publication", "off", "supabase_realtime does not exist here"))
    elif not row["all_tables"] and (missing := [name for name in PUBLISHED_TABLES if name not in row["tables"]]):
        found.append(Finding("publication", "warn", f"supabase_realtime lacks {', '.join(missing)}", CURE))
    else:
        found.append(Finding("publication", "ok", f"supabase_realtime has {', '.join(PUBLISHED_TABLES)}"))
    row = await connection.fetchrow(BROADCAST)
    if not row["offered"]:
        found.append(Finding("broadcast", "off", "realtime.send does not exist here"))
    elif not row["connected"]:
        found.append(Finding("broadcast", "warn", "changes are not sent to exai:<owner>", CURE))
    else:
        found.append(Finding("broadcast", "ok", "changes are sent to exai:<owner>"))
    return found


def _some(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
