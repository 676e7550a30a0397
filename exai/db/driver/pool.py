"""Run named statements on a pool of connections, each in one round trip, direct or behind any pooler.

With asyncpg's defaults a statement costs two or three round trips, and behind a transaction-mode pooler without support
for prepared statements it fails or executes another client's prepared statement of the same name. Statements here are
unnamed on the server, and their descriptions are kept by the pool; Parse, Bind, Execute and Sync leave in one write,
and releasing a connection sends nothing. Because the descriptions are never refreshed, the text of a statement casts
every parameter and every output column, to types that are built in.

Invariant: no statement relies on session state.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from math import inf
from typing import Final, TypeAlias

import asyncpg
from asyncpg.exceptions import PostgresError

from exai.db.concurrency import NetworkFloor
from exai.db.driver.address import Address, parse_address
from exai.db.driver.connections import Connections, Descriptions, OneTrip
from exai.db.driver.passwords import PasswordRetry
from exai.db.driver.session import settle
from exai.db.driver.statements import Statement, load_statements
from exai.db.driver.translate import DEPENDENCY, READ_ONLY, StatementPhase, TranslatedError, judge
from exai.db.driver.writability import Obstacle, obstacle_of
from exai.encryption.codec import PLAIN, Codec
from exai.errors import DatabaseUnavailable, DeadlineExceeded, ShuttingDown, StorageFull
from exai.fairness import Holder, request_owner, request_work
from exai.models import Recorder
from exai.resilience import Clock, backoff_s, remaining_s
from exai.settings.load import DatabaseSettings
from exai.slowness import SLOW_S, note_slow

__all__ = ["Database", "OneTrip", "Record", "connect", "open_pool"]

Record: TypeAlias = asyncpg.Record

RETRIES: Final = 2
RETRY_BASE_S: Final = 0.05
RETRY_CAP_S: Final = 1.0
SERVER_SHARE: Final = 0.8
"""Share of the client's timeout after which the server cancels a statement: the server's error proves that nothing was
written, whereas a client-side timeout leaves the outcome unknown."""

TICK_S: Final = 0.001
"""Resolution of the event loop's timers: a timeout may expire this much before the deadline it was derived from."""

TRANSACTION_TRIPS: Final = 2
"""Round trips of the beginning and the end of an explicit transaction."""

OPEN_LIMIT_S: Final = 60.0
"""Time to open a connection and describe statements, each of which has the connection's time limit for itself."""

REFUSAL_COUNTS_S: Final = 60.0
RENEW_AFTER_S: Final = 5.0
"""Least time between two replacements of all connections because their sessions are read-only."""


class Database:
    """Runs named statements. Created by `open_pool`; usable by any number of tasks of one event loop.

    `codec` encrypts and decrypts what its repositories store and read; it is set before they are used.
    """

    def __init__(
        self,
        connections: Connections,
        statements: Mapping[str, Statement],
        settings: DatabaseSettings,
        recorder: Recorder,
        address: Address,
        *,
        network: NetworkFloor,
    ) -> None:
        self._connections, self._statements, self._settings = connections, statements, settings
        self._recorder, self._clock = recorder, connections.clock
        self.address, self.network = address, network
        self.codec: Codec = PLAIN
        self._refusal: tuple[float, str] | None = None
        self._renewed_at = -inf

    async def fetch(self, name: str, *args: object) -> list[Record]:
        """Run the statement `name` once, within the request's deadline, and return its rows.

        Retries up to `RETRIES` times if nothing was written and the cause is transient, or if the reply was lost and
        the statement is a read or detects its own earlier execution by its key.

        Raises:
            DatabaseError: the statement failed; `OutcomeUnknown` if it may have been executed.
            DeadlineExceeded: the request's deadline passed before anything was written.
            ShuttingDown: the pool is closing.

        """
        statement = self._statements[name]
        waits: dict[str, float] = {}
        began = time.perf_counter()
        try:
            return await self._fetch(statement, args, waits)
        finally:
            took_s = time.perf_counter() - began
            if took_s >= SLOW_S:
                note_slow(self._recorder, name, took_s, waits, "server")

    async def _fetch(self, statement: Statement, args: tuple[object, ...], waits: dict[str, float]) -> list[Record]:
        name = statement.name
        attempt = 1
        doubt: TranslatedError | None = None
        while True:
            started = time.perf_counter()
            try:
                rows = await self._run(statement, args, waits)
            except _Failed as failed:
                verdict, cause = failed.verdict, failed.__cause__
            except (DeadlineExceeded, ShuttingDown) as error:
                if doubt is None:
                    raise
                raise doubt.error from error
            else:
                took_s = time.perf_counter() - started
                self.network.observe(took_s)
                self._recorder.count("db_statements_total", statement=name)
                self._recorder.observe("db_statement_seconds", took_s, statement=name)
                if self._refusal is not None and statement.repeat != "read":
                    self._refusal = None
                return rows
            self._recorder.count("db_errors_total", statement=name, error=type(verdict.error).__name__)
            if verdict.outcome == "unknown" and statement.repeat != "read":
                # This attempt may have committed. A later attempt that fails, even with "nothing written", proves
                # nothing about it, so the first unknown outcome is kept until an attempt returns rows.
                doubt = doubt or verdict
            if not await self._wait_to_repeat(statement, verdict, attempt, waits):
                self._note(statement, verdict, cause)
                raise _final(statement, doubt or verdict) from cause
            attempt += 1

    async def _run(self, statement: Statement, args: tuple[object, ...], waits: dict[str, float]) -> list[Record]:
        limit_s = self._limit_s(statement)
        connections = self._connections
        owner = request_owner.get()
        connection = connections.take_nowait(owner) or await self._take(owner, limit_s, waits)
        is_alone = connection.is_read_committed or statement.repeat == "read"
        if (work := request_work.get()) is not None:
            work.statements += 1 if is_alone else 1 + TRANSACTION_TRIPS
        try:
            if is_alone:
                rows: list[Record] = await connection.fetch(statement.text, *args, timeout=limit_s)
            else:
                rows = await _in_read_committed(connection, statement, args, limit_s)
        except PostgresError as error:
            connections.give(connection)
            raise _failed(error, "sent") from error
        except BaseException as error:
            connections.give_unsettled(connection)
            if isinstance(error, Exception):
                raise _failed(error, "sent") from error
            raise
        connections.give(connection)
        return rows

    async def _take(self, owner: Holder, limit_s: float, waits: dict[str, float]) -> OneTrip:
        began = time.perf_counter()
        try:
            return await self._connections.take(owner, min(limit_s, self._settings.acquire_timeout_s))
        except TimeoutError as error:
            whole = self._connections.in_use == self._connections.size
            cause = self._connections.last_error or error
            raise _failed(cause, "waiting" if whole else "connecting") from cause
        finally:
            waited_s = time.perf_counter() - began
            waits["connection"] = waits.get("connection", 0.0) + waited_s
            self._recorder.observe("db_pool_wait_seconds", waited_s)

    def _limit_s(self, statement: Statement) -> float:
        left_s = remaining_s()
        if left_s is None:
            return self._settings.statement_timeout_s
        if left_s <= 0:
            raise DeadlineExceeded(f"{DEPENDENCY} ({statement.name})")
        return min(left_s, self._settings.statement_timeout_s)

    async def _wait_to_repeat(
        self, statement: Statement, verdict: TranslatedError, attempt: int, waits: dict[str, float]
    ) -> bool:
        """Return whether to retry, after sleeping for the backoff."""
        if attempt > RETRIES or not (verdict.again or verdict.outcome == "unknown"):
            return False
        if verdict.outcome == "unknown" and statement.repeat == "never":
            return False
        wait_s = backoff_s(attempt, RETRY_BASE_S, RETRY_CAP_S)
        left_s = remaining_s()
        if left_s is not None and left_s <= wait_s:
            return False
        self._recorder.count("db_retries_total", statement=statement.name)
        waits["retry"] = waits.get("retry", 0.0) + wait_s
        await asyncio.sleep(wait_s)
        return True

    def _note(self, statement: Statement, verdict: TranslatedError, cause: BaseException | None) -> None:
        """Record the reason of a failed write for health if later writes will fail for the same reason."""
        refused = isinstance(verdict.error, StorageFull | DatabaseUnavailable) and isinstance(cause, PostgresError)
        if refused and statement.repeat != "read":
            self._refusal = (self._clock(), str(verdict.error))
        if getattr(cause, "sqlstate", None) == READ_ONLY:
            self._renew_read_only()

    def _renew_read_only(self) -> None:
        # A session keeps the `default_transaction_read_only` it started with, so existing connections stay read-only
        # after the database's setting has been corrected. Only new connections see the correction.
        now = self._clock()
        if now - self._renewed_at >= RENEW_AFTER_S:
            self._renewed_at = now
            self._connections.renew()

    async def obstacle(self) -> Obstacle | None:
        """Return why writes cannot succeed, None if they can; 1 round trip, used by health. Raises as `fetch`."""
        row = (await self.fetch("standing"))[0]
        if row["is_read_only"] and not row["is_replica"]:
            self._renew_read_only()
        return obstacle_of(dict(row))

    @property
    def refusal(self) -> str | None:
        """Reason of a write refused in the last `REFUSAL_COUNTS_S` seconds, None if a later write succeeded."""
        if self._refusal is None or self._clock() - self._refusal[0] > REFUSAL_COUNTS_S:
            return None
        return self._refusal[1]

    @property
    def statement_timeout_s(self) -> float:
        """Seconds one statement may take."""
        return self._settings.statement_timeout_s

    @property
    def waiting(self) -> int:
        """Statements that wait for a connection."""
        return self._connections.waiting

    def usage(self) -> tuple[int, int, int]:
        """Connections in use, open, and allowed."""
        return self._connections.in_use, self._connections.live, self._connections.size


class _Failed(Exception):
    def __init__(self, verdict: TranslatedError) -> None:
        super().__init__(verdict)
        self.verdict = verdict


def _failed(error: Exception, phase: StatementPhase) -> Exception:
    verdict = judge(error, phase)
    return _Failed(verdict) if verdict else error


def _final(statement: Statement, verdict: TranslatedError) -> Exception:
    if verdict.outcome == "unknown" and statement.repeat == "read":
        # A read without a reply has written nothing, so its outcome is not unknown to the caller.
        left_s = remaining_s()
        if left_s is not None and left_s <= TICK_S:
            return DeadlineExceeded(f"{DEPENDENCY} ({statement.name})")
        return DatabaseUnavailable(DEPENDENCY, "no reply came", "Try again shortly")
    return verdict.error


async def _in_read_committed(
    connection: OneTrip, statement: Statement, args: tuple[object, ...], limit_s: float
) -> list[Record]:
    """Run a statement in an explicit read committed transaction, for sessions whose default level is another one.

    Needed behind a pooler only: `settle` sets the default of a direct connection. Costs `TRANSACTION_TRIPS` more round
    trips.
    """
    async with asyncio.timeout(limit_s), connection.transaction(isolation="read_committed"):
        rows: list[Record] = await connection.fetch(statement.text, *args, timeout=limit_s)
        return rows


async def connect(address: Address, *, timeout_s: float) -> OneTrip:
    """Open one connection outside any pool, for migrations and checks. The caller closes it.

    Raises:
        DatabaseError: the connection failed, translated by `judge`.

    """
    try:
        retry = PasswordRetry(time.monotonic)
        return await retry.open(lambda: _open(address, timeout_s))
    except Exception as error:
        raise _refused(error) from error


async def _open(address: Address, timeout_s: float) -> OneTrip:
    connection: OneTrip = await asyncpg.connect(
        connection_class=OneTrip,
        timeout=address.connect_timeout_s or timeout_s,
        statement_cache_size=0,
        **address.connect_arguments(),
    )
    return connection


def _refused(error: Exception) -> Exception:
    if isinstance(error, UnicodeError):
        # The host cannot be encoded as a host name (IDNA).
        return DatabaseUnavailable(DEPENDENCY, f"cannot connect: {error}", "Correct the address")
    verdict = judge(error, "connecting")
    return verdict.error if verdict else error


@asynccontextmanager
async def open_pool(
    settings: DatabaseSettings,
    *,
    recorder: Recorder,
    url: str | None = None,
    is_shared: bool = False,
    clock: Clock = time.monotonic,
) -> AsyncIterator[Database]:
    """Open the process's pool at `url`, default `settings.url`, and describe the statements.

    The connections share the descriptions: those that are opened first describe a part each, later ones none.

    If `is_shared`, a quarter of the connections is reserved for owners that hold few, so that slow statements of one
    owner cannot occupy the whole pool.

    Raises:
        ConfigError: the address is invalid.
        DatabaseUnavailable: the server does not answer or refuses the connection.
        SchemaMismatch: a table, column or function used by a statement does not exist.

    """
    address = parse_address(url or (settings.url.get_secret_value() if settings.url else ""))
    statements = load_statements()
    # Each is taken by one of the connections that are opened at the same time. If one fails, so does the whole start.
    undescribed = iter([each for each in statements.values() if each.is_described_at_start])
    descriptions: Descriptions = {}
    timeout_ms = f"{settings.statement_timeout_s * SERVER_SHARE * 1000:.0f}"

    network = NetworkFloor(clock)

    passwords = PasswordRetry(clock)
    opening = partial(_open, address, settings.connect_timeout_s)

    async def opener() -> OneTrip:
        loop, limit_s = asyncio.get_running_loop(), address.connect_timeout_s or settings.connect_timeout_s
        last = loop.time() + max(limit_s, OPEN_LIMIT_S)
        async with asyncio.timeout(limit_s) as scope:
            connection = await passwords.open(opening)
            connection.descriptions = descriptions
            try:
                for statement in undescribed:
                    # The limit is for each reply: many descriptions take long from a server that is far or busy.
                    scope.reschedule(min(loop.time() + limit_s, last))
                    asked = time.perf_counter()
                    await connection._get_statement(statement.text, None)
                    network.observe(time.perf_counter() - asked)
                # Must follow the descriptions: its Sync ends the implicit transaction of the Parse messages above.
                connection.is_read_committed = await settle(connection, statement_timeout=timeout_ms)
            except BaseException:
                connection.terminate()
                raise
        return connection

    reserve = settings.pool_size // 4 if is_shared else 0
    connections = Connections(opener, settings.pool_size, reserve=reserve, clock=clock)
    try:
        await connections.start()
    except Exception as error:
        raise _refused(error) from error
    try:
        yield Database(connections, statements, settings, recorder, address, network=network)
    finally:
        await connections.close()
