"""Migrate a database to this release's schema: `upgrade`, and the operations used by the revisions in `alembic/`.

A session-level advisory lock does not work behind a transaction-mode pooler, and a lock per revision would let a second
run repeat a revision that the first has just finished. So one connection holds a transaction-level lock, in a
transaction that stays open for the whole run, and another connection does the work. A second run polls for the lock
instead of waiting in a statement: the snapshot of a waiting statement would block `create index concurrently` of the
run that holds the lock.

Invariant: at most one run changes a database at a time.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

from alembic import command, op
from alembic.config import Config
from alembic.script.revision import ResolutionError
from alembic.util import CommandError
from sqlalchemy import Connection, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from exai.db.driver.address import Address, parse_address
from exai.db.driver.connections import OneTrip
from exai.db.driver.pool import connect
from exai.db.driver.session import SAFE_PATH, WITHIN, encoded, settle
from exai.db.driver.translate import DEPENDENCY, judge
from exai.db.migrations.preflight import check
from exai.db.migrations.revision import revision_at, scripts_directory
from exai.errors import ConfigError, DatabaseBusy, DatabaseError, ExaiError, SchemaMismatch
from exai.settings.environment import read_environment

SCHEMA: Final = "exai"
LOCK_KEY: Final = 0x65786169
"""The ASCII bytes of `exai`, to make a collision with another program's advisory lock unlikely."""

LOCK_POLL_S: Final = 0.2
LOCK_WAIT_S: Final = 600.0
CONNECT_TIMEOUT_S: Final = 10.0
LOCK_TRY: Final = "250ms"
LOCK_TRIES: Final = 40
LOCK_PAUSE_S: Final = 0.2
ATTEMPTS: Final = 3
RETRY_PAUSE_S: Final = 1.0
LOCK_LIMIT: Final = "4s"
"""Longest time for which a statement of a migration waits for a lock."""

LIMITS: Final = {"search_path": SAFE_PATH, "lock_timeout": LOCK_LIMIT, "statement_timeout": "5s"}
PATIENCE: Final = "60min"
MAX_BATCHES: Final = 10_000_000
BROKEN_INDEX: Final = (
    "select exists (select from pg_catalog.pg_index i where i.indexrelid = to_regclass(:name) and not i.indisvalid)"
)
PART: Final = re.compile(r"\{\{(\w+)\}\}")
URL_SETTINGS: Final = ("EXAI_DATABASE__MIGRATION_URL", "EXAI_DATABASE__URL")

_ENVIRONMENT: Final = threading.Lock()
"""Alembic's environment is one for the whole process."""


async def upgrade(url: str, revision: str = "head") -> None:
    """Migrate the database at `url`; does nothing when it is there already.

    Raises:
        ConfigError: `url` is not an address.
        DatabaseError: it cannot be reached, or another migration has held the lock for `LOCK_WAIT_S`;
            `SchemaMismatch` when a newer release has migrated it.

    """
    await asyncio.to_thread(_run_command, command.upgrade, url, revision)


async def move_to(url: str, revision: str) -> None:
    """Migrate the database at `url` up or down to a revision; down only without rows. Raises as `upgrade`."""
    found = await revision_at(url)
    if found != revision:
        step = command.upgrade if found < revision else command.downgrade
        await asyncio.to_thread(_run_command, step, url, revision)


def _run_command(step: Callable[[Config, str], None], url: str, revision: str) -> None:
    config = migration_config()
    config.attributes["url"] = url
    try:
        with _ENVIRONMENT:
            step(config, revision)
    except CommandError as error:
        if isinstance(error.__cause__, ExaiError):
            # Chained to the error of the driver, not to Alembic's wrapper.
            raise error.__cause__ from error.__cause__.__cause__
        if isinstance(error.__cause__, ResolutionError):
            problem = f"the database is at revision {error.__cause__.argument}, which this release does not know"
            raise SchemaMismatch(DEPENDENCY, problem, "Use the release that migrated it, or a newer one") from error
        raise SchemaMismatch(DEPENDENCY, str(error), "Correct the cause and run it again") from error


def migration_config() -> Config:
    """Alembic's configuration with the revisions of this installation: a checkout's, or those inside the wheel."""
    config = Config()
    config.set_main_option("script_location", str(scripts_directory()).replace("%", "%%"))
    return config


def address_of(config: Config) -> Address:
    """The address given to `upgrade`, else the first one set in the environment.

    Raises:
        ConfigError: none is set, or it is not an address.

    """
    url = config.attributes.get("url")
    if url:
        return parse_address(str(url), "the database address")
    reading = read_environment()
    for setting in URL_SETTINGS:
        value = reading.find(setting)
        if value:
            return parse_address(value.text, value.name)
    raise ConfigError(
        "EXAI_DATABASE__MIGRATION_URL",
        "is not set, nor is EXAI_DATABASE__URL, SUPABASE_DB_URL or DATABASE_URL",
        "Set one of them to the database to migrate: postgresql://user:password@host:5432/database",
    )


@asynccontextmanager
async def migrating(address: Address) -> AsyncIterator[AsyncConnection]:
    """A connection to migrate with, while the lock is held; our schema exists."""

    async def creator(*_: object, **__: object) -> OneTrip:
        connection = await connect(address, timeout_s=CONNECT_TIMEOUT_S)
        await settle(connection, statement_timeout=PATIENCE)
        return connection

    engine = create_async_engine(
        "postgresql+asyncpg://?prepared_statement_cache_size=0",
        async_creator=creator,
        poolclass=NullPool,
        isolation_level="READ COMMITTED",
    )
    event.listen(engine.sync_engine, "begin", _set_limits)
    async with _lock(address):
        async with engine.connect() as connection:
            await connection.run_sync(check)
            if await connection.scalar(text("select to_regnamespace(:name) is null"), {"name": SCHEMA}):
                await connection.execute(text(f"create schema {SCHEMA}"))
            await connection.commit()
            yield connection
        await engine.dispose()


def _set_limits(connection: Connection) -> None:
    connection.exec_driver_sql(WITHIN, (encoded(**LIMITS),))


@asynccontextmanager
async def _lock(address: Address) -> AsyncIterator[None]:
    connection = await connect(address, timeout_s=CONNECT_TIMEOUT_S)
    try:
        give_up_at = asyncio.get_running_loop().time() + LOCK_WAIT_S
        while True:
            # At a higher isolation level the transaction would keep its first snapshot, for whose end
            # `create index concurrently` waits.
            transaction = connection.transaction(isolation="read_committed")
            await transaction.start()
            await connection.fetchval(WITHIN, encoded())
            if await connection.fetchval("select pg_catalog.pg_try_advisory_xact_lock($1::bigint)", LOCK_KEY):
                # The portal of the last statement stays open and keeps its snapshot, for which
                # `create index concurrently` would wait forever. A statement in the simple protocol closes it and
                # leaves no portal of its own.
                await connection.execute("select 1")
                break
            await transaction.rollback()
            if asyncio.get_running_loop().time() > give_up_at:
                raise DatabaseBusy(DEPENDENCY, "another migration is running", "Wait until it has ended")
            await asyncio.sleep(LOCK_POLL_S)
        yield
        await transaction.rollback()
    finally:
        connection.terminate()


async def migrate(address: Address, context: Any) -> None:
    """Run the requested Alembic command under the lock; retry a few times if a table is locked.

    Raises:
        DatabaseError: the error of the server.

    """
    try:
        await _migrate(address, context)
    except DBAPIError as error:
        raise _refusal(error) from error
    except Exception as error:
        # The connection that holds the lock uses the driver directly.
        verdict = judge(error, "waiting")
        if verdict is None:
            raise
        raise verdict.error from error


async def _migrate(address: Address, context: Any) -> None:
    async with migrating(address) as connection:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                await connection.run_sync(_run, context)
            except DBAPIError as error:
                await connection.rollback()
                refusal = _refusal(error)
                if attempt == ATTEMPTS or not isinstance(refusal, DatabaseBusy):
                    raise refusal from error
                await asyncio.sleep(RETRY_PAUSE_S)
            else:
                return


def _run(connection: Connection, context: Any) -> None:
    context.configure(connection=connection, version_table_schema=SCHEMA, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()


def _refusal(error: DBAPIError) -> ExaiError:
    cause = (error.orig.__cause__ if error.orig else None) or error
    state = _sqlstate(error)
    if state in {"55P03", "40P01", "57014"}:
        return DatabaseBusy(DEPENDENCY, "a table was in use for too long", "Run it again; what was done stays done")
    verdict = judge(cause, "connecting") if state is None else None
    if verdict is not None:
        return verdict.error
    # The operator needs the server's original message.
    said = (str(cause), getattr(cause, "detail", None), getattr(cause, "hint", None))
    problem = "; ".join(" ".join(each.split()) for each in said if each)
    return DatabaseError(DEPENDENCY, problem, "Correct the cause and run it again")


def _sqlstate(error: DBAPIError) -> str | None:
    return getattr(error.orig, "sqlstate", None)


def read_script(directory: str, name: str) -> str:
    """Return the statement in `alembic/DIRECTORY/NAME.sql`, exactly one; `{{PART}}` in it stands for `parts/PART.sql`.

    A function with a fixed search_path is never inlined, so what has to be planned with its caller is such a part.
    """
    found = scripts_directory() / directory
    return PART.sub(lambda part: _read_part(found, part[1]), (found / f"{name}.sql").read_text("utf-8"))


def _read_part(directory: Path, name: str) -> str:
    return (directory / "parts" / f"{name}.sql").read_text("utf-8").rstrip("\n")


def in_one_trip(statements: Iterable[str]) -> None:
    """Execute statements in one round trip, so that a far server holds locks for no longer than a near one."""
    lines = "".join(f"execute $exai_part${statement}$exai_part$;\n" for statement in statements)
    if lines:
        op.get_bind().exec_driver_sql(f"do $exai_trip$\nbegin\n{lines}end\n$exai_trip$")


def create_functions(names: Iterable[str]) -> None:
    """Create the functions in `alembic/functions/NAME.sql`, executable by their owner only."""
    created = tuple(names)
    in_one_trip(
        (
            *(read_script("functions", name) for name in created),
            *(f"revoke all on function {SCHEMA}.{name} from public" for name in created),
        )
    )


def create_triggers(names: Iterable[str]) -> None:
    """Create or replace the triggers in `alembic/triggers/NAME.sql`."""
    in_one_trip(read_script("triggers", name) for name in names)


def take_locks(*tables: str, mode: str = "access exclusive") -> None:
    """Lock tables together until the end of the transaction, without blocking other clients for long.

    A request that waits for such a lock blocks all later requests for the table, and locks on several tables can
    deadlock with a writer that takes them in another order. So each attempt times out before the server's deadlock
    check, releases all locks by rolling back its savepoint, and is repeated after a pause. Names without a schema are
    in public.

    Raises:
        DBAPIError: the locks were not available in `LOCK_TRIES` attempts.

    """
    bind = op.get_bind()
    names = ", ".join(table if "." in table else f"public.{table}" for table in tables)
    for attempt in range(1, LOCK_TRIES + 1):
        try:
            with bind.begin_nested():
                bind.exec_driver_sql(f"select set_config('lock_timeout', '{LOCK_TRY}', true)")
                bind.exec_driver_sql(f"lock table {names} in {mode} mode")
                _set_limits(bind)
        except DBAPIError as error:
            if _sqlstate(error) not in {"55P03", "40P01"} or attempt == LOCK_TRIES:
                raise
            time.sleep(LOCK_PAUSE_S)
        else:
            return


@contextmanager
def holding(*tables: str) -> Iterator[None]:
    """Run the block in a transaction of its own that locks these tables, after committing the current one.

    Locks of the current transaction would block other clients for as long as `take_locks` retries.
    """
    _commit()
    take_locks(*tables)
    yield
    _commit()


def _commit() -> None:
    with op.get_context().autocommit_block():
        pass


@contextmanager
def patiently(*, lock_s: float = 0) -> Iterator[Connection]:
    """Run statements in autocommit mode, for work on large tables. `lock_s` limits lock waits, 0 means no limit."""
    with op.get_context().autocommit_block():
        bind = op.get_bind()
        direct = _is_direct(bind)
        if direct:
            op.execute(f"set lock_timeout = '{lock_s:g}s'")
        try:
            yield bind
        finally:
            if direct:
                op.execute("set lock_timeout = 0")


def create_index(schema: str, name: str, definition: str, *, unique: bool = False) -> None:
    """Build an index concurrently, after dropping the invalid index of an interrupted build."""
    with patiently() as bind:
        if bind.scalar(text(BROKEN_INDEX), {"name": f"{schema}.{name}"}):
            op.execute(f"drop index concurrently {schema}.{name}")
        op.execute(f"create {'unique ' if unique else ''}index concurrently if not exists {name} on {definition}")


def drop_index(schema: str, name: str) -> None:
    """Drop an index concurrently."""
    with op.get_context().autocommit_block():
        op.execute(f"drop index concurrently if exists {schema}.{name}")


def until_done(statement: str, parameters: dict[str, Any] | None = None) -> int:
    """Repeat a statement that processes a batch of rows and returns their number, until it returns 0."""
    total = 0
    for _ in range(MAX_BATCHES):
        done = op.get_bind().scalar(text(statement), parameters or {}) or 0
        if not done:
            return total
        total += done
    raise CommandError(f"the work was not done after {MAX_BATCHES} batches; run the migration again")


def _is_direct(bind: Connection) -> bool:
    """Return whether the connection is direct: a pooler reports a made-up backend id to its clients."""
    driver: Any = bind.connection.driver_connection
    return bool(bind.scalar(text("select pg_backend_pid()")) == driver.get_server_pid())
