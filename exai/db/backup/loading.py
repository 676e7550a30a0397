"""Fills the empty tables of a database in one transaction.

Invariant: the tables hold all rows of a backup or none, also after the death of this process or of the server. Triggers
and indexes that were put aside are as they were at the end.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

from asyncpg.exceptions import PostgresError

from exai.db.backup.catalogue import NOT_COPIED, TableShape, in_order, statement
from exai.db.backup.snapshot import CONNECT_TIMEOUT_S, LIMITS, SequenceState, read_tables, translated
from exai.db.driver.address import parse_address
from exai.db.driver.connections import OneTrip
from exai.db.driver.pool import connect
from exai.db.driver.session import WITHIN, encoded
from exai.db.driver.translate import DEPENDENCY
from exai.db.migrations.revision import found_revision
from exai.errors import DatabaseError

HISTORY: Final = "monitoring"
"""The schema whose rows every daemon writes, also for a database without conversations."""

OWNERS: Final = {
    "public.turns": "restore_turn_owner",
    "exai.quarantine": "restore_quarantine_owner",
    "monitoring.metrics_raw": "restore_raw_owner",
    "monitoring.metrics_1min": "restore_minute_owner",
    "monitoring.metrics_1hour": "restore_hour_owner",
}
"""The tables in which an owner is named within JSON; a database of an older revision lacks some."""


class Loading:
    """The tables of a database in an open transaction. Created by `open_loading`."""

    def __init__(self, connection: OneTrip, tables: Sequence[TableShape]) -> None:
        self._connection = connection
        self.tables = {table.name: table for table in tables}

    async def copy(self, table: TableShape, columns: Sequence[str], rows: AsyncIterator[bytes]) -> int:
        """Fill columns of a table with rows in Postgres' text format; return their number."""
        status = await self._connection.copy_to_table(
            table.table, schema_name=table.schema, columns=list(columns), source=rows
        )
        return int(status.split()[1])

    async def set_sequence(self, sequence: SequenceState) -> None:
        """Continue a sequence where it was."""
        await self._connection.fetchval(
            statement("restore_sequence"), sequence.schema, sequence.name, sequence.last_value
        )

    async def set_paths(self) -> None:
        """Give files the paths of their contents."""
        await self._connection.execute(statement("restore_paths"))

    async def rename_owner(self, old: str, new: str) -> None:
        """Rename an owner where it is a part of JSON."""
        for table, name in OWNERS.items():
            if table in self.tables:
                await self._connection.fetch(statement(name), old, new)


async def holding(url: str) -> list[str]:
    """Return the tables of the database at `url` that hold rows; it may never have been migrated."""
    connection = await connect(parse_address(url), timeout_s=CONNECT_TIMEOUT_S)
    try:
        async with translated("read"), connection.transaction(readonly=True):
            await connection.fetchval(WITHIN, encoded(**LIMITS))
            is_migrated = await found_revision(connection)
            return await _with_rows(connection, await read_tables(connection)) if is_migrated else []
    finally:
        connection.terminate()


async def identity_of(url: str) -> str:
    """Return what tells the database at `url` from all others."""
    connection = await connect(parse_address(url), timeout_s=CONNECT_TIMEOUT_S)
    try:
        async with translated("read"):
            return str(await connection.fetchval(statement("database_identity")))
    finally:
        connection.terminate()


@asynccontextmanager
async def open_loading(url: str) -> AsyncIterator[Loading]:
    """Open the tables at `url` for one transaction, which is committed when the block ends without an error.

    Other clients can read meanwhile, but not write. Statistics are renewed at the end.

    Raises:
        DatabaseError: also if a table holds rows.

    """
    connection = await connect(parse_address(url), timeout_s=CONNECT_TIMEOUT_S)
    try:
        async with translated("write"):
            async with connection.transaction(isolation="read_committed"):
                await connection.fetchval(WITHIN, encoded(**LIMITS))
                tables = in_order(await read_tables(connection))
                for table in tables:
                    await connection.execute(await _statement_for(connection, table, "lock"))
                refuse(await _with_rows(connection, tables))
                obstacles = await connection.fetch(statement("restore_obstacles"), [_quoted(each) for each in tables])
                for obstacle in obstacles:
                    await connection.execute(obstacle["take"])
                for table in (each for each in tables if each.schema == HISTORY):
                    await connection.execute(await _statement_for(connection, table, "empty"))
                yield Loading(connection, tables)
                for obstacle in reversed(obstacles):
                    await connection.execute(obstacle["put_back"])
            # Only plans depend on it, and the server does it too after a while.
            with suppress(PostgresError):
                for table in tables:
                    await connection.execute(await _statement_for(connection, table, "analyze"))
    finally:
        connection.terminate()


def refuse(tables: Sequence[str]) -> None:
    """Raise `DatabaseError` if there are tables that hold rows."""
    if tables:
        names = ", ".join(tables)
        cure = (
            "Give an empty database; or, if an earlier restore into this one has ended, run `exai migrate` "
            "and use it; or remove what it holds with `exai erase`"
        )
        raise DatabaseError(DEPENDENCY, f"it already holds rows (in {names})", cure)


async def _with_rows(connection: OneTrip, tables: Sequence[TableShape]) -> list[str]:
    return [
        table.name
        for table in tables
        if table.schema != HISTORY
        and table.name not in NOT_COPIED
        and await connection.fetchval(await _statement_for(connection, table, "has_rows"))
    ]


async def _statement_for(connection: OneTrip, table: TableShape, what: str) -> str:
    row = await connection.fetchrow(statement("restore_statements"), table.schema, table.table)
    assert row is not None  # noqa: S101 - a select without a table always has one row
    return str(row[what])


def _quoted(table: TableShape) -> str:
    return f'"{table.schema}"."{table.table}"'
