"""The connection pool: a named statement costs exactly one round trip, direct or behind a transaction-mode pooler.

The driver's defaults cost two or three, and behind a pooler without support for prepared statements they fail or,
worse, run somebody else's statement. So statements are unnamed on the server and described once per connection on the
client; parse, bind, execute and sync leave in one write, and nothing is sent when a connection goes back. It follows
that every parameter and output column is cast in the text (the descriptions are never asked for again) and that no
session state is ever relied on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias

import asyncpg

from exai.config import DatabaseSettings
from exai.db.address import Address, parse_address
from exai.db.statements import Statement, load_statements
from exai.db.translate import DEPENDENCY, Phase, Verdict, judge
from exai.errors import DatabaseUnavailable, DeadlineExceeded
from exai.models import Recorder
from exai.resilience import backoff_s, remaining_s

Record: TypeAlias = asyncpg.Record

RETRIES: Final = 2
RETRY_BASE_S: Final = 0.05
RETRY_CAP_S: Final = 1.0
RELEASE_TIMEOUT_S: Final = 1.0
"""How long a cancelled statement may take to be acknowledged before its connection is dropped."""

CLOSE_TIMEOUT_S: Final = 5.0
SERVER_SHARE: Final = 0.8
"""The server gives up on a statement before the client does, so that a timeout is an answer and not a riddle."""

STATEMENT_CACHE: Final = 1_000

SETTLE: Final = """
select case when pg_catalog.pg_backend_pid() = $1::int
            then pg_catalog.set_config('statement_timeout', $2::text, false) end"""
"""Ends the warm-up with a sync. A pooler gives its clients made-up backend ids, so on a direct connection only the ids
agree, and only there may a session setting be made."""


class OneTrip(asyncpg.Connection):
    """Parse, Bind, Execute and Sync in one write; nothing is left on the server between statements."""

    __slots__ = ()

    def get_reset_query(self) -> str:
        """Nothing: there is no session state, and through a pooler a reset would hit some other session."""
        return ""

    def _get_unique_id(self, prefix: str) -> str:
        return "" if prefix == "stmt" else str(super()._get_unique_id(prefix))

    async def _get_statement(self, *args: Any, **kwargs: Any) -> Any:
        statement = await super()._get_statement(*args, **kwargs)
        if not statement.name:
            # Makes the driver send Parse along with each Bind instead of relying on the server to remember.
            statement.mark_unprepared()
        return statement


class Database:
    """Runs named statements. Made by `open_pool`; safe for any number of tasks of one event loop."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        statements: Mapping[str, Statement],
        settings: DatabaseSettings,
        recorder: Recorder,
        address: Address,
    ) -> None:
        self._pool, self._statements, self._settings, self._recorder = pool, statements, settings, recorder
        self.address = address

    async def fetch(self, name: str, *args: object) -> list[Record]:
        """Run the statement `name` once, within the request's deadline, and return its rows.

        Repeats it up to `RETRIES` times when nothing was written and the cause is passing, or when the reply was lost
        and the statement is a read or finds its own earlier work by key.

        Raises:
            DatabaseError: what happened instead; `OutcomeUnknown` if it may have been written.
            DeadlineExceeded: before it was sent.

        """
        statement = self._statements[name]
        for attempt in range(1, RETRIES + 2):
            phase: list[Phase] = ["waiting"]
            started = time.perf_counter()
            try:
                rows = await self._run(statement, args, phase)
            except Exception as error:
                verdict = judge(error, phase[0])
                if verdict is None:
                    raise
                self._recorder.count("db_errors_total", statement=name, error=type(verdict.error).__name__)
                if not await self._repeat(statement, verdict, attempt):
                    raise _final(statement, verdict) from error
            else:
                self._recorder.count("db_statements_total", statement=name)
                self._recorder.observe("db_statement_seconds", time.perf_counter() - started, statement=name)
                return rows
        raise AssertionError("the last attempt either returned or raised")

    async def _run(self, statement: Statement, args: tuple[object, ...], phase: list[Phase]) -> list[Record]:
        timeout_s = self._limit_s(statement)
        connection = await self._acquire(phase, timeout_s)
        try:
            phase[0] = "sent"
            rows: list[Record] = await connection.fetch(statement.text, *args, timeout=timeout_s)
        finally:
            await self._pool.release(connection, timeout=RELEASE_TIMEOUT_S)
        return rows

    async def _acquire(self, phase: list[Phase], timeout_s: float) -> Any:
        if self._pool.get_idle_size():
            # A live idle connection is handed out without waiting, so no timer is needed.
            return await self._pool.acquire()
        if self._pool.get_size() < self._pool.get_max_size():
            phase[0] = "connecting"
        return await self._pool.acquire(timeout=min(timeout_s, self._settings.acquire_timeout_s))

    def _limit_s(self, statement: Statement) -> float:
        left_s = remaining_s()
        if left_s is None:
            return self._settings.statement_timeout_s
        if left_s <= 0:
            raise DeadlineExceeded(f"{DEPENDENCY} ({statement.name})")
        return min(left_s, self._settings.statement_timeout_s)

    async def _repeat(self, statement: Statement, verdict: Verdict, attempt: int) -> bool:
        if attempt > RETRIES or not (verdict.again or verdict.outcome == "unknown"):
            return False
        if verdict.outcome == "unknown" and statement.repeat == "never":
            return False
        wait_s = backoff_s(attempt, RETRY_BASE_S, RETRY_CAP_S)
        left_s = remaining_s()
        if left_s is not None and left_s <= wait_s:
            return False
        self._recorder.count("db_retries_total", statement=statement.name)
        await asyncio.sleep(wait_s)
        return True

    async def ping(self) -> float:
        """Seconds one empty statement takes now, for health. Raises as `fetch` does."""
        started = time.perf_counter()
        await self.fetch("ping")
        return time.perf_counter() - started

    def usage(self) -> tuple[int, int, int]:
        """Connections in use, open, and allowed."""
        size = self._pool.get_size()
        return size - self._pool.get_idle_size(), size, self._pool.get_max_size()

    async def renew_connections(self) -> None:
        """Let every connection be replaced before its next use; to be called after a migration."""
        await self._pool.expire_connections()


def _final(statement: Statement, verdict: Verdict) -> Exception:
    if verdict.outcome == "unknown" and statement.repeat == "read":
        # A read that got no answer wrote nothing; the caller may simply ask again.
        return DatabaseUnavailable(DEPENDENCY, "no reply came", "Try again shortly")
    return verdict.error


async def connect(address: Address, *, timeout_s: float) -> OneTrip:
    """One connection outside any pool, for migrations and checks; the caller closes it.

    Raises:
        DatabaseError: as `judge` says.

    """
    try:
        connection: OneTrip = await asyncpg.connect(
            connection_class=OneTrip,
            timeout=address.connect_timeout_s or timeout_s,
            statement_cache_size=0,
            **address.connect_arguments(),
        )
    except Exception as error:
        verdict = judge(error, "connecting")
        if verdict is None:
            raise
        raise verdict.error from error
    return connection


@asynccontextmanager
async def open_pool(
    settings: DatabaseSettings, *, recorder: Recorder, url: str | None = None
) -> AsyncIterator[Database]:
    """Open the pool of this process at `url`, or at the settings' own address, with all statements described.

    Raises:
        DatabaseUnavailable: nobody answers, or we are not let in.
        SchemaMismatch: the database lacks what a statement uses.

    """
    text = url or (settings.url.get_secret_value() if settings.url else "")
    address = parse_address(text)
    statements = load_statements()
    timeout_ms = f"{settings.statement_timeout_s * SERVER_SHARE * 1000:.0f}"

    async def warm(connection: OneTrip) -> None:
        for statement in statements.values():
            await connection._get_statement(statement.text, None)
        await connection.fetchval(SETTLE, connection.get_server_pid(), timeout_ms)

    try:
        pool = await asyncpg.create_pool(
            **address.connect_arguments(),
            connection_class=OneTrip,
            init=warm,
            min_size=settings.pool_size,
            max_size=settings.pool_size,
            timeout=address.connect_timeout_s or settings.connect_timeout_s,
            statement_cache_size=STATEMENT_CACHE,
            max_cached_statement_lifetime=0,
            max_cacheable_statement_size=0,
            max_inactive_connection_lifetime=0,
            max_queries=10**9,
        )
    except Exception as error:
        verdict = judge(error, "connecting")
        if verdict is None:
            raise
        raise verdict.error from error
    try:
        yield Database(pool, statements, settings, recorder, address)
    finally:
        await _close(pool)


async def _close(pool: asyncpg.Pool) -> None:
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await pool.close()
    except TimeoutError:
        pool.terminate()
