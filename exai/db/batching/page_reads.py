"""Read the newest pages of several conversations, for several callers, with one statement.

Most of the cost of such a read in Postgres and in this process is its statement. A batch holds up to 8 pages, each
limited to `PAGE_BYTES`, which is memory that the callers would need for separate reads as well.

Invariant: the snapshot of each page is taken after its caller's request, because a batch holds only requests made
before it is sent. The cache's leases rely on this.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Final, NamedTuple

from exai.batching import Batcher
from exai.db.concurrency import ConcurrencyLimit, PoolShare
from exai.db.driver.pool import Database, Record
from exai.db.driver.translate import DEPENDENCY
from exai.errors import DatabaseBusy, DatabaseUnavailable, ExaiError, ShuttingDown
from exai.fairness import RequestWork, count_shared, request_work
from exai.models import PAGE_BYTES, PAGE_MESSAGES, ConversationKey
from exai.resilience import with_deadline

MOST_READS: Final = 8
"""Maximum number of pages in one batch."""

LEAST_AT_ONCE: Final = 2
"""Statements in flight to a near database: the server executes one while this process decodes the rows of the other."""

WHAT: Final = f"{DEPENDENCY} (read_page)"


class _Read(NamedTuple):
    key: ConversationKey
    work: RequestWork | None


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

    async def read(self, key: ConversationKey) -> Sequence[Record]:
        """Return the rows of a newest page, none for a missing conversation. Raises as `Database.fetch`."""
        return await self._batcher.run(key.owner, _Read(key, request_work.get()))

    async def _send(self, reads: Sequence[_Read]) -> list[Sequence[Record] | None]:
        owners, names = [each.key.owner for each in reads], [each.key.continuation_id for each in reads]
        count_shared(each.work for each in reads)
        # Limited to the time of one attempt: behind a pooler only the client's timeout ends a slow statement, and
        # without this limit `fetch` would retry the whole batch, so that one slow page delayed all others.
        with with_deadline(self._database.statement_timeout_s):
            rows = await self._database.fetch("read_pages", owners, names, PAGE_MESSAGES, PAGE_BYTES)
        pages: list[list[Record]] = [[] for _ in reads]
        for row in rows:
            pages[row["number"] - 1].append(row)
        return [*pages]

    async def _send_alone(self, read: _Read) -> Sequence[Record]:
        return await self._database.fetch("read_page", *read.key, None, 0, PAGE_MESSAGES, PAGE_BYTES, 0)


def _shared_failure(_: _Read, error: ExaiError) -> ExaiError | None:
    """Return a copy of an error that every page would meet again, None for an error that one page may have caused.

    Such errors are an unavailable database, shutdown, and a pool without a free connection, which is a `DatabaseBusy`
    caused by the client's timeout and not by the server. After any other error each page is read by itself.
    """
    if not isinstance(error, (DatabaseUnavailable, ShuttingDown)) and not (
        isinstance(error, DatabaseBusy) and isinstance(error.__cause__, TimeoutError)
    ):
        return None
    own = copy(error)
    own.__cause__ = error
    return own
