"""Reads all tables of EXAI in one snapshot, on one connection.

Invariant: everything that a `Snapshot` returns is of one moment, and no row is hidden by row level security: a role
from which rows are hidden gets an error.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import orjson
from asyncpg.exceptions import InsufficientPrivilegeError, PostgresError

from exai.db.backup.catalogue import NOT_COPIED, TableShape, in_order, public_tables, statement
from exai.db.driver.address import parse_address
from exai.db.driver.connections import OneTrip
from exai.db.driver.pool import connect
from exai.db.driver.session import SAFE_PATH, WITHIN, encoded
from exai.db.driver.translate import DEPENDENCY, judge
from exai.db.migrations.revision import found_revision
from exai.errors import DatabaseError, DatabaseUnavailable

CONNECT_TIMEOUT_S: Final = 10.0
LIMITS: Final = {
    "search_path": SAFE_PATH,
    "statement_timeout": "0",
    "lock_timeout": "30s",
    "row_security": "off",
    "extra_float_digits": "3",
}
"""A large table may take hours. All digits of numbers are copied."""

CONTENTS: Final = 500
"""Contents that are listed by one statement."""

READ_BYTES: Final = 4 * 1_048_576

Sink = Callable[[bytes], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class ListedContent:
    """A content, and where its bytes are; without `has_row` it is of a file from before contents had rows."""

    owner: str
    sha256: str
    size_bytes: int
    store: str
    storage_path: str | None
    has_row: bool


@dataclass(frozen=True, slots=True)
class SequenceState:
    """A sequence and the last number that it gave."""

    schema: str
    name: str
    last_value: int


class Snapshot:
    """A database at one moment. Created by `open_snapshot`."""

    def __init__(self, connection: OneTrip, revision: str, server_version: str) -> None:
        self._connection = connection
        self.revision, self.server_version = revision, server_version

    async def tables(self) -> list[TableShape]:
        """Return the tables to copy, in the order in which they can be filled."""
        return in_order([table for table in await read_tables(self._connection) if table.name not in NOT_COPIED])

    async def sequences(self) -> list[SequenceState]:
        """Return the sequences that have given a number."""
        rows = await self._connection.fetch(statement("backup_sequences"))
        return [SequenceState(row["schema"], row["name"], row["last_value"]) for row in rows]

    async def copy(self, table: TableShape, sink: Sink) -> int:
        """Pass the rows of a table to `sink` in Postgres' text format, in pieces of any size; return their number."""
        query = await self._connection.fetchval(
            statement("backup_query"), table.schema, table.table, list(table.columns)
        )
        status = await self._connection.copy_from_query(query, output=sink)
        return int(status.split()[1])

    async def contents(self) -> AsyncIterator[ListedContent]:
        """Yield all contents of files, by owner and digest."""
        after = ("", "")
        while rows := await self._connection.fetch(statement("backup_contents"), *after, CONTENTS):
            for row in rows:
                yield ListedContent(**dict(row))
            after = rows[-1]["owner"], rows[-1]["sha256"]

    async def bytes_of(self, content: ListedContent) -> AsyncIterator[bytes]:
        """Yield the bytes of a content in the database, in pieces."""
        for offset in range(0, content.size_bytes, READ_BYTES):
            size = min(READ_BYTES, content.size_bytes - offset)
            args = (content.owner, content.sha256, offset, size)
            for row in await self._connection.fetch(statement("read_bytes"), *args):
                yield row["data"]

    async def identity(self) -> str:
        """Return what tells the database from all others."""
        return str(await self._connection.fetchval(statement("database_identity")))


@asynccontextmanager
async def open_snapshot(url: str) -> AsyncIterator[Snapshot]:
    """Open a snapshot of the database at `url`, which stays until the block is left. Raises a `DatabaseError`."""
    connection = await connect(parse_address(url), timeout_s=CONNECT_TIMEOUT_S)
    try:
        with_errors = translated("read")
        async with with_errors, connection.transaction(isolation="repeatable_read", readonly=True):
            await connection.fetchval(WITHIN, encoded(**LIMITS))
            version = connection.get_server_version()
            yield Snapshot(connection, await found_revision(connection), f"{version.major}.{version.minor}")
    finally:
        connection.terminate()


async def store_metric(url: str, metric: str, data: Mapping[str, Any]) -> None:
    """Store one metric in the database at `url`, on a connection of its own. Raises a `DatabaseError`."""
    connection = await connect(parse_address(url), timeout_s=CONNECT_TIMEOUT_S)
    try:
        async with translated("write"):
            await connection.fetch(statement("insert_metric"), metric, orjson.dumps(data).decode())
    finally:
        connection.terminate()


async def read_tables(connection: OneTrip) -> list[TableShape]:
    """Return all tables of EXAI in this database, also those that are not copied."""
    rows = await connection.fetch(statement("backup_tables"), list(public_tables()))
    return [_table_of(row) for row in rows]


def _table_of(row: Any) -> TableShape:
    columns: Sequence[str] = row["columns"]
    return TableShape(row["schema"], row["name"], tuple(columns), row["size_bytes"], frozenset(row["referenced"]))


@asynccontextmanager
async def translated(done: str) -> AsyncIterator[None]:
    """Raise the driver's exceptions as `DatabaseError`, with the message of the server, which the operator needs."""
    try:
        yield
    except InsufficientPrivilegeError as error:
        cure = "Set EXAI_DATABASE__MIGRATION_URL to the role that owns EXAI's tables"
        raise DatabaseUnavailable(DEPENDENCY, f"the role may not {done} all rows: {error}", cure) from error
    except PostgresError as error:
        parts = (str(error), getattr(error, "detail", None), getattr(error, "hint", None))
        said = "; ".join(" ".join(part.split()) for part in parts if part)
        raise DatabaseError(DEPENDENCY, said, "Correct the cause and run it again") from error
    except Exception as error:
        verdict = judge(error, "waiting")
        if verdict is None:
            raise
        raise verdict.error from error
