"""Newest pages that several callers ask for, read by one statement.

Most of what such a read costs Postgres and this process is the statement around it. A page waits for seven others at
most, each within its bytes, and an answer is no larger than the pages that its readers hold at once anyway.

Invariant: each page is of a snapshot younger than its question, on which the cache's leases rest. A caller in a batch
has asked before the statement is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Final

from exai.batching import Batcher
from exai.db.pace import ConcurrencyLimit, PoolShare
from exai.db.pool import Database, Record
from exai.db.translate import DEPENDENCY
from exai.errors import DatabaseBusy, DatabaseUnavailable, ExaiError, ShuttingDown
from exai.models import PAGE_BYTES, PAGE_MESSAGES, ContinuationId, Owner
from exai.resilience import with_deadline

MOST_READS: Final = 8
"""In one batch."""

LEAST_AT_ONCE: Final = 2
"""Statements to a database that is near: while the rows of one are decoded here, the server works on the other."""

WHAT: Final = f"{DEPENDENCY} (read_page)"


class PageReadBatcher:
    """The reads of newest pages of one process."""

    def __init__(self, database: Database, share: PoolShare) -> None:
        self._database = database
        self._batcher: Batcher[_Read, Sequence[Record]] = Batcher(
            ConcurrencyLimit(share, least=LEAST_AT_ONCE),
            self._send,
            self._send_alone,
            failure=_shared_failure,
            name="page-read-batch",
            what=WHAT,
            max_items=MOST_READS,
            is_read=True,
        )

    async def read(self, owner: Owner, continuation_id: ContinuationId) -> Sequence[Record]:
        """Return the rows of a newest page, none if there is no such conversation. Raises as `Database.fetch`."""
        return await self._batcher.run(owner, (owner, continuation_id))

    async def _send(self, reads: Sequence[_Read]) -> list[Sequence[Record] | None]:
        owners, names = [owner for owner, _ in reads], [name for _, name in reads]
        # No longer than one attempt: behind a pooler it is our own limit that ends a page that takes too long, and the
        # other pages must not wait for its repetitions.
        with with_deadline(self._database.statement_timeout_s):
            rows = await self._database.fetch("read_pages", owners, names, PAGE_MESSAGES, PAGE_BYTES)
        pages: list[list[Record]] = [[] for _ in reads]
        for row in rows:
            pages[row["number"] - 1].append(row)
        return [*pages]

    async def _send_alone(self, read: _Read) -> Sequence[Record]:
        return await self._database.fetch("read_page", *read, None, 0, PAGE_MESSAGES, PAGE_BYTES, 0)


_Read = tuple[Owner, ContinuationId]


def _shared_failure(_: _Read, error: ExaiError) -> ExaiError | None:
    """Return a copy of an error that has nothing to do with what was asked, so that each would only wait once more.

    That is a database that is away, or a pool without a free connection: busy, where the timeout was ours and not the
    server's. Any other failure may be one page's own, and each is read by itself.
    """
    if not isinstance(error, (DatabaseUnavailable, ShuttingDown)) and not (
        isinstance(error, DatabaseBusy) and isinstance(error.__cause__, TimeoutError)
    ):
        return None
    own = copy(error)
    own.__cause__ = error
    return own
