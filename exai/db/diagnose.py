"""Check Postgres for `exai doctor`: reachability, version, TLS, direct or pooled connection, schema, clock.

The statements are here and not in `sql/`, because the service would describe those on each of its connections.

Invariant: nothing is changed, and each finding is the result of a statement just executed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final, Literal

from exai.db.driver.address import Address, parse_address
from exai.db.driver.pool import OneTrip, connect
from exai.db.driver.statements import load_statements
from exai.db.driver.translate import MIGRATE, judge
from exai.db.driver.writability import obstacle_of
from exai.db.migrations.revision import expected_revision, found_revision
from exai.errors import DatabaseError, DatabaseUnavailable, ExaiError
from exai.models import Finding
from exai.settings.addresses import is_loopback
from exai.settings.load import DatabaseSettings

CONNECT_LIMIT_S: Final = 10.0
"""More than any look may take as a whole: the limit that counts is the caller's."""

OLDEST_VERSION: Final = 140_000
CLOCK_TOLERANCE: Final = timedelta(seconds=5)
POOLER_ROUNDS: Final = 4

PART: Final = "postgres"
MIGRATION_PART: Final = "migration address"
WAY_PART: Final = "postgres mode"

Way = Literal["direct", "pooler in session mode", "pooler in transaction mode"]

FACTS: Final = """
select pg_catalog.current_setting('server_version')::text as version,
       pg_catalog.current_setting('server_version_num')::int as version_number,
       pg_catalog.current_setting('max_connections')::int as max_connections,
       pg_catalog.pg_is_in_recovery()::bool as is_replica,
       pg_catalog.clock_timestamp()::timestamptz as now"""

BACKEND: Final = "select pg_catalog.pg_backend_pid()::int"


MAY_CREATE: Final = """
select pg_catalog.string_agg(r.rolname::text, ', ' order by r.rolname)::text
  from (select 'every role'::name as rolname
         where pg_catalog.has_schema_privilege('public', 'public', 'create')
        union all
        select r.rolname from pg_catalog.pg_roles r
         where not pg_catalog.has_schema_privilege('public', 'public', 'create')
           and pg_catalog.has_schema_privilege(r.oid, pg_catalog.to_regnamespace('public'), 'create')
           and not r.rolsuper and r.rolname not like 'pg\\_%' and r.rolname <> current_user
           and not pg_catalog.pg_has_role(r.oid, current_user, 'member')
           and r.oid <> (select n.nspowner from pg_catalog.pg_namespace n where n.nspname = 'public')) r"""
ISOLATION: Final = "select pg_catalog.current_setting('default_transaction_isolation')::text"

OPEN_TABLES: Final = """
select pg_catalog.string_agg(c.relname::text, ', ' order by c.relname)::text
  from pg_catalog.pg_class c
 where c.relnamespace = pg_catalog.to_regnamespace('public') and c.relkind in ('r', 'p') and not c.relrowsecurity
   and c.relname in ('conversations', 'messages', 'turns', 'files', 'conversation_files')
   and exists (select from pg_catalog.pg_roles r
                where r.rolname in ('anon', 'authenticated')
                  and pg_catalog.has_table_privilege(r.oid, c.oid, 'select, insert, update, delete'))"""


@dataclass(frozen=True, slots=True)
class _Facts:
    version: str
    version_number: int
    max_connections: int
    is_replica: bool
    ahead: timedelta
    latency_ms: float


async def diagnose(settings: DatabaseSettings, url: str, *, timeout_s: float = 5.0) -> list[Finding]:
    """Look at the database at `url` and at the migration address, if that is another, each within `timeout_s`."""
    looks = [_run_bounded(PART, timeout_s, partial(_look_at_service, settings, url))]
    if settings.migration_url is not None:
        migration_url = settings.migration_url.get_secret_value()
        looks.append(_run_bounded(MIGRATION_PART, timeout_s, partial(_look_at_migration, migration_url)))
    return [finding for found in await asyncio.gather(*looks) for finding in found]


async def may_create(url: str) -> list[Finding]:
    """Return findings about other roles that may create in public, for `exai migrate`. Raises `DatabaseError`."""
    async with AsyncExitStack() as stack:
        return await _creators(await _open(stack, parse_address(url)))


async def _run_bounded(
    part: str, timeout_s: float, look: Callable[[list[Finding], AsyncExitStack], Awaitable[None]]
) -> list[Finding]:
    """Return the findings of `look` up to its end, with one more for the error that ended it."""
    found: list[Finding] = []
    try:
        async with asyncio.timeout(timeout_s), AsyncExitStack() as stack:
            await look(found, stack)
    except TimeoutError:
        found.append(Finding(part, "fail", f"no answer within {timeout_s:g} s", "Check the address and the network"))
    except DatabaseUnavailable as error:
        found.append(Finding(part, "fail", f"{error.problem}{_because(error)}", _cure(error)))
    except DatabaseError as error:
        found.append(Finding(part, "fail", error.problem, error.cure))
    except ExaiError as error:
        found.append(Finding(part, "fail", str(error)))
    except Exception as error:
        verdict = judge(error, "waiting")
        if verdict is None:
            raise
        found.append(Finding(part, "fail", str(verdict.error)))
    return found


def _because(error: DatabaseUnavailable) -> str:
    """Return the operating system's error, if it caused the failure: it contains hosts and ports, never passwords."""
    cause = error.__cause__
    return f" ({cause.strerror or cause})" if isinstance(cause, OSError) and str(cause) else ""


def _cure(error: DatabaseUnavailable) -> str:
    refused_by_system = isinstance(error.__cause__, OSError)
    return "Check that it runs, and the host and port of its address" if refused_by_system else error.cure


async def _look_at_service(settings: DatabaseSettings, url: str, found: list[Finding], stack: AsyncExitStack) -> None:
    address = parse_address(url)
    connection = await _open(stack, address)
    facts = await _facts(connection)
    found.append(_server(address, facts))
    found.append(_tls(address, connection))
    way = await _way(stack, address, connection)
    found.append(_way_finding(way, settings, facts))
    found.append(_clock(facts))
    found.append(await _schema(connection))
    found += await _writing(connection)
    found += await _isolation(connection, way)
    found += await _access(connection)
    found += await _creators(connection)
    if settings.migration_url is None:
        found.append(_migration_finding("the same as the database", way))


async def _look_at_migration(url: str, found: list[Finding], stack: AsyncExitStack) -> None:
    address = parse_address(url, "EXAI_DATABASE__MIGRATION_URL")
    way = await _way(stack, address, await _open(stack, address))
    found.append(_migration_finding(address.shown, way))


def _migration_finding(where: str, way: Way) -> Finding:
    if way == "pooler in transaction mode":
        problem = f"{where}, {way}: building an index on a large table may run into a time limit"
        cure = "Set EXAI_DATABASE__MIGRATION_URL to the direct or session-mode address"
        return Finding(MIGRATION_PART, "warn", problem, cure)
    return Finding(MIGRATION_PART, "ok", f"{where}, {way}")


async def _open(stack: AsyncExitStack, address: Address) -> OneTrip:
    connection = await connect(address, timeout_s=CONNECT_LIMIT_S)
    # Terminated instead of closed: closing would wait for a server that may have stopped answering.
    stack.callback(connection.terminate)
    return connection


async def _facts(connection: OneTrip) -> _Facts:
    started = time.perf_counter()
    await connection.execute("select 1")
    latency_s = time.perf_counter() - started
    before = datetime.now(UTC)
    row = await connection.fetchrow(FACTS)
    between = before + (datetime.now(UTC) - before) / 2
    assert row is not None  # noqa: S101 - a select without a table always has one row
    return _Facts(
        version=row["version"],
        version_number=row["version_number"],
        max_connections=row["max_connections"],
        is_replica=row["is_replica"],
        ahead=row["now"] - between,
        latency_ms=latency_s * 1000,
    )


def _server(address: Address, facts: _Facts) -> Finding:
    seen = f"Postgres {facts.version} at {address.shown}, {facts.latency_ms:.1f} ms"
    if facts.version_number < OLDEST_VERSION:
        return Finding(PART, "fail", f"{seen}; EXAI needs 14 or newer", "Upgrade the server")
    if facts.is_replica:
        return Finding(PART, "fail", f"{seen}; it is a read replica", "Give the primary's address")
    return Finding(PART, "ok", seen)


def _tls(address: Address, connection: OneTrip) -> Finding:
    part = "postgres TLS"
    transport: Any = connection._transport  # the driver has no public word for it
    tls = transport.get_extra_info("ssl_object")
    if tls is not None:
        checked = address.tls.get("sslmode", "").startswith("verify-") or "sslrootcert" in address.tls
        return Finding(part, "ok", f"{tls.version()}{'' if checked else ', the server not verified'}")
    if all(host.startswith("/") or is_loopback(host) for host, _ in address.hosts):
        return Finding(part, "off", "not needed on this machine")
    return Finding(part, "warn", "not encrypted", "Add sslmode=require (or verify-full) to the address")


async def _way(stack: AsyncExitStack, address: Address, connection: OneTrip) -> Way:
    """Distinguish a direct connection, a pooler in session mode and one in transaction mode.

    A pooler reports a made-up backend id in its startup messages. In transaction mode two clients that alternate
    either share one server connection or move between several; in session mode neither happens.
    """
    if await connection.fetchval(BACKEND) == connection.get_server_pid():
        return "direct"
    other = await _open(stack, address)
    seen: tuple[set[int], set[int]] = (set(), set())
    for _ in range(POOLER_ROUNDS):
        for client, backends in zip((connection, other), seen, strict=True):
            backends.add(await client.fetchval(BACKEND))
    shared = len(seen[0]) > 1 or len(seen[1]) > 1 or seen[0] & seen[1]
    return "pooler in transaction mode" if shared else "pooler in session mode"


def _way_finding(way: Way, settings: DatabaseSettings, facts: _Facts) -> Finding:
    if way == "direct" and settings.pool_size > facts.max_connections:
        return Finding(
            WAY_PART,
            "fail",
            f"direct; the server allows {facts.max_connections} connections, the pool wants {settings.pool_size}",
            f"Set EXAI_DATABASE__POOL_SIZE well below {facts.max_connections}",
        )
    return Finding(WAY_PART, "ok", way)


def _clock(facts: _Facts) -> Finding:
    ahead_s = facts.ahead.total_seconds()
    seen = f"{abs(ahead_s):.2f} s {'ahead of' if ahead_s >= 0 else 'behind'} this machine's"
    if abs(facts.ahead) > CLOCK_TOLERANCE:
        return Finding("postgres clock", "warn", seen, "Synchronise both clocks (NTP)")
    return Finding("postgres clock", "ok", seen)


async def _schema(connection: OneTrip) -> Finding:
    part, expected = "postgres schema", expected_revision()
    revision = await found_revision(connection)
    if not revision:
        return Finding(part, "fail", f"not migrated; this release needs {expected}", MIGRATE)
    if revision < expected:
        return Finding(part, "fail", f"at revision {revision}; this release needs {expected}", MIGRATE)
    ahead = f", ahead of this release's {expected}" if revision > expected else ""
    return Finding(part, "ok", f"at revision {revision}{ahead}")


async def _writing(connection: OneTrip) -> list[Finding]:
    row = await connection.fetchrow(load_statements()["standing"].text)
    assert row is not None  # noqa: S101 - a select without a table always has one row
    obstacle = None if row["is_replica"] else obstacle_of(dict(row))
    return [] if obstacle is None else [Finding("postgres writes", "fail", obstacle.problem, obstacle.cure)]


async def _isolation(connection: OneTrip, way: Way) -> list[Finding]:
    """Report nothing on a direct connection, for which EXAI sets the level."""
    level = await connection.fetchval(ISOLATION)
    if way == "direct" or level == "read committed":
        return []
    problem = f"default_transaction_isolation is {level}: each write costs two more round trips"
    cure = (
        "Set it to 'read committed' for the role (alter role ... set default_transaction_isolation = 'read committed')"
    )
    return [Finding("postgres isolation", "warn", problem, cure)]


async def _creators(connection: OneTrip) -> list[Finding]:
    names = await connection.fetchval(MAY_CREATE)
    if not names:
        return []
    problem = f"{names} may create functions in schema public; EXAI calls none of them, other programs may"
    cure = "revoke create on schema public from public (CVE-2018-1058), or from those roles"
    return [Finding("postgres schema public", "warn", problem, cure)]


async def _access(connection: OneTrip) -> list[Finding]:
    """Report nothing where only the tables' owner may use them, as for all tables that EXAI has created."""
    tables = await connection.fetchval(OPEN_TABLES)
    if not tables:
        return []
    problem = f"Supabase's API roles may use {tables}, every row of them: who has the project's public key has them all"
    cure = "Enable row level security on them (alter table ... enable row level security), or revoke from both roles"
    return [Finding("postgres access", "warn", problem, cure)]
