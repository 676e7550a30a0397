"""Reads of newest pages that come at the same time, several in one statement.

Most of what such a read costs Postgres and this process is the statement around it. So those that come in one turn of
the event loop go together, and with them those that came while as many statements were under way as the database gets
at once. The invariants are that nobody notices but by the time it takes, and that each page is of a snapshot younger
than its question, on which the cache's leases rest: who is in a group had asked before its statement was sent.

A page waits for seven others at most, each of them within its bytes, and an answer is no larger than the pages that its
readers hold at once anyway, however they were read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from copy import copy
from time import perf_counter
from typing import Final

from exai.db.pace import Gate, Room
from exai.db.pool import Database, Record
from exai.db.translate import DEPENDENCY
from exai.errors import DatabaseBusy, DatabaseUnavailable, ExaiError, ShuttingDown
from exai.fairness import Line
from exai.models import PAGE_BYTES, PAGE_MESSAGES, ContinuationId, Owner
from exai.resilience import bounded, with_deadline

MOST_READS: Final = 8
"""In one group."""

LEAST_AT_ONCE: Final = 2
"""Statements to a database that is near: while the rows of one are taken in here, the server works on the other."""

WHAT: Final = f"{DEPENDENCY} (read_page)"


class _Read:
    """One read, from its call to its end.

    The `rows` become None when it is to be sent by itself, and are cancelled when its caller has left. `group` are
    those it was sent with, by `task`, if it was.
    """

    __slots__ = ("continuation_id", "group", "owner", "rows", "task")

    def __init__(self, owner: Owner, continuation_id: ContinuationId) -> None:
        self.owner, self.continuation_id = owner, continuation_id
        self.rows: asyncio.Future[Sequence[Record] | None] = asyncio.get_running_loop().create_future()
        self.group: Sequence[_Read] = ()
        self.task: asyncio.Task[None] | None = None


class Reading:
    """The reads of one process."""

    def __init__(self, database: Database, room: Room) -> None:
        self._database = database
        self._gate = Gate(room, self._send, least=LEAST_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()

    async def read(self, owner: Owner, continuation_id: ContinuationId) -> Sequence[Record]:
        """The rows of a newest page, none if there is no such conversation. Raises as `Database.fetch`."""
        read = _Read(owner, continuation_id)
        try:
            if not await self._gate.goes_alone(read):
                self._gate.put(owner, read)
                rows = await bounded(read.rows, None, WHAT)
                if rows is not None:
                    return rows
            sent_at = perf_counter()
            rows = await self._database.fetch(
                "read_page", owner, continuation_id, None, 0, PAGE_MESSAGES, PAGE_BYTES, 0
            )
            self._gate.saw(perf_counter() - sent_at)
            return rows
        finally:
            self._leave(read)

    def _leave(self, read: _Read) -> None:
        """See to it that nothing goes on for `read`, unless others wait for it too."""
        read.rows.cancel()
        if read.task is None:
            self._gate.end(read)
        elif not read.task.done() and all(each.rows.done() for each in read.group):
            read.task.cancel()
        # Those of a group hold each other, and with them their pages, until a garbage collector comes by.
        read.group, read.task = (), None

    def _send(self, waiting: Line[_Read]) -> _Read | None:
        group: list[_Read] = []
        while waiting and len(group) < MOST_READS:
            read = waiting.take()
            if not read.rows.done():
                group.append(read)
        if not group:
            return None
        if len(group) == 1:
            group[0].rows.set_result(None)
            return group[0]
        task = asyncio.create_task(self._send_group(group), name="read-group")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        for read in group:
            read.group, read.task = group, task
        return group[0]

    async def _send_group(self, group: Sequence[_Read]) -> None:
        pages: list[list[Record]] | None = None
        failed: ExaiError | None = None
        try:
            sent_at = perf_counter()
            owners, names = [read.owner for read in group], [read.continuation_id for read in group]
            # No longer than one attempt: behind a pooler it is our own limit that ends a page that takes too long, and
            # its neighbours are not to wait for its repetitions.
            with with_deadline(self._database.statement_timeout_s):
                rows = await self._database.fetch("read_pages", owners, names, PAGE_MESSAGES, PAGE_BYTES)
            self._gate.saw(perf_counter() - sent_at)
            pages = [[] for _ in group]
            for row in rows:
                pages[row["number"] - 1].append(row)
        except ExaiError as error:
            if _is_everybodys(error):
                failed = error
        finally:
            for number, read in enumerate(group):
                if read.rows.done():
                    continue
                if failed is not None:
                    own = copy(failed)
                    own.__cause__ = failed
                    read.rows.set_exception(own)
                else:
                    read.rows.set_result(pages[number] if pages is not None else None)
            self._gate.end(group[0])


def _is_everybodys(error: ExaiError) -> bool:
    """Whether a group failed by what has nothing to do with what it asked, so that each would wait for it once more.

    That is a database that is away, or a pool without a free connection, which is what busy means when the timeout was
    ours and not the server's.
    """
    if isinstance(error, DatabaseBusy):
        return isinstance(error.__cause__, TimeoutError)
    return isinstance(error, (DatabaseUnavailable, ShuttingDown))
