"""Removes everything of an owner, or of a conversation, from all tables, in one transaction.

Tables are found in the catalogs by their columns `owner`, `conversation_id` and `continuation_id`: a new one is not
forgotten.

Invariant: either all rows are removed or none, and no row of another owner.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from exai.db.backup.catalogue import public_tables, statement
from exai.db.backup.snapshot import CONNECT_TIMEOUT_S, LIMITS, translated
from exai.db.driver.address import Address, parse_address
from exai.db.driver.connections import OneTrip
from exai.db.driver.pool import Database, connect
from exai.db.driver.session import WITHIN, encoded
from exai.models import ContinuationId, ConversationKey, Owner
from exai.threads import thread_key

KEPT: Final = frozenset({"exai.purged_turns"})
"""What a conversation has cost stays in the reports and budgets of its owner, without its texts and name."""

FILES: Final = frozenset({"public.files", "exai.contents", "exai.content_texts"})
"""Files go last, and with them what belongs to their contents."""

TABLES: Final = {
    "erase_quarantine": "exai.quarantine",
    "erase_requests": "public.requests",
    "erase_events": "monitoring.metrics_raw",
    "erase_minutes": "monitoring.metrics_1min",
    "erase_hours": "monitoring.metrics_1hour",
}

HISTORY: Final = ("erase_events", "erase_minutes", "erase_hours")
REMOVALS: Final = frozenset({"exai.removed_conversations", "exai.removed_threads"})
"""Caches drop entries by these rows, so they are removed last."""


@dataclass(frozen=True, slots=True)
class ErasedContent:
    """A content whose row was removed, and where its bytes are."""

    sha256: str
    size_bytes: int
    store: str
    storage_path: str | None


@dataclass(slots=True)
class ErasedRows:
    """What was removed: rows by table, conversations, and contents whose bytes are outside the database.

    `threads` are those of checkpoints, by their keys in caches. `former` are those of the conversations that had the
    name before, or were cut from the one that has it, and were deleted.
    """

    conversations: list[ConversationKey] = field(default_factory=list)
    former: list[ContinuationId] = field(default_factory=list)
    threads: list[ConversationKey] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)
    contents: list[ErasedContent] = field(default_factory=list)
    files: int = 0

    def count(self, table: str, status: str) -> None:
        """Add the rows of a statement, from the server's reply."""
        number = int(status.rpartition(" ")[2])
        if number:
            self.rows[table] = self.rows.get(table, 0) + number


class ErasureRepository:
    """Erases rows. Each method is a transaction of its own on a connection of its own, without a time limit."""

    def __init__(self, database: Database, owner_url: str | None = None) -> None:
        """Use the role of `owner_url` if the daemon's own may not see all rows, as one without BYPASSRLS."""
        self._database = database
        self._address = parse_address(owner_url) if owner_url else database.address

    @asynccontextmanager
    async def erasing(self, owner: Owner, name: ContinuationId | None) -> AsyncIterator[ErasedRows]:
        """Remove an owner's rows, or those of one conversation and its forks; committed when the block ends.

        An exception in the block undoes everything. Raises a `DatabaseError`.
        """
        async with _session(self._address) as connection:
            erased = ErasedRows()
            found = await connection.fetch(statement("erasure_conversations"), owner, name)
            ids = [row["id"] for row in found]
            erased.conversations = [
                ConversationKey(Owner(row["owner"]), ContinuationId(row["continuation_id"])) for row in found
            ]
            erased.former = [ContinuationId(row["continuation_id"]) for row in found if row["is_former"]]
            files = await connection.fetch(statement("erasure_files"), owner, None if name is None else ids)
            if name is None:
                threads = await connection.fetch(statement("erasure_threads"), owner)
                erased.threads = [thread_key(owner, row["thread_id"]) for row in threads]
            await self._remove(connection, erased, owner, ids, whole=name is None)
            await self._remove_files(connection, erased, owner, [row["id"] for row in files])
            yield erased

    async def erase_history(self, owner: Owner) -> None:
        """Remove the owner's metrics again, also those that daemons still hold in memory and send later.

        Raises a `DatabaseError`; the call may be repeated.
        """
        async with _session(self._address) as connection:
            await connection.execute(statement("erase_buffered"), owner)
        async with _session(self._address) as connection:
            for name in HISTORY:
                await connection.execute(statement(name), owner)

    async def forget(self, owner: Owner, names: Sequence[ContinuationId] | None) -> None:
        """Forget the names of removed conversations, None: all of the owner's, after caches have dropped them."""
        await self._database.fetch("forget_removals", owner, None if names is None else list(names))

    async def _remove(
        self, connection: OneTrip, erased: ErasedRows, owner: Owner, ids: list[str], *, whole: bool
    ) -> None:
        """Remove the rows of conversations and, if `whole`, all others of the owner."""
        columns = ["owner", "conversation_id"] if whole else ["conversation_id", "continuation_id"]
        tables = await connection.fetch(statement("erasure_tables"), list(public_tables()), columns)
        chosen = [table for table in tables if table["name"] not in REMOVALS and (whole or table["name"] not in KEPT)]
        names = [key.continuation_id for key in erased.conversations]
        values = {"owner": (owner,), "conversation_id": (ids,), "continuation_id": (owner, names)}
        for table in chosen:
            number = await connection.fetchval(table["count"], *values[table["by"]])
            erased.rows[table["name"]] = max(number, erased.rows.get(table["name"], 0))
        erased.count("public.conversations", await connection.execute(statement("erase_conversations"), ids))
        # What does not refer to conversations, and what triggers have written.
        for table in chosen:
            if table["name"] not in FILES:
                await connection.execute(table["remove"], *values[table["by"]])
        args: dict[str, tuple[Any, ...]] = {"erase_quarantine": (owner, whole, ids)}
        if whole:
            args |= dict.fromkeys(HISTORY, (owner,))
        else:
            args["erase_requests"] = (owner, names)
            await connection.execute(statement("erase_names"), ids)
        for name, given in args.items():
            erased.count(TABLES[name], await connection.execute(statement(name), *given))

    async def _remove_files(self, connection: OneTrip, erased: ErasedRows, owner: Owner, ids: list[str]) -> None:
        """Remove files, and the contents that no file has any more."""
        await connection.execute(statement("erase_files"), ids)
        rows = await connection.fetch(statement("erase_contents"), owner)
        blobs = [row["blob_id"] for row in rows if row["blob_id"] is not None]
        await connection.execute(statement("erase_blobs"), blobs)
        erased.files = len(ids)
        erased.contents = [
            ErasedContent(row["sha256"], row["size_bytes"], row["store"], row["storage_path"]) for row in rows
        ]


class Rehearsed(Exception):
    """Leaves a block of `ErasureRepository.erasing` so that nothing is removed."""


@asynccontextmanager
async def _session(address: Address) -> AsyncIterator[OneTrip]:
    """Open a connection in a transaction without a time limit."""
    connection = await connect(address, timeout_s=CONNECT_TIMEOUT_S)
    try:
        async with translated("remove"), connection.transaction(isolation="read_committed"):
            await connection.fetchval(WITHIN, encoded(**LIMITS))
            yield connection
    finally:
        connection.terminate()
