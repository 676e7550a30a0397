"""Appends that come faster than the database takes them, several in one statement and one commit.

Most of what a small append costs Postgres is the statement and the commit around it. So while one statement of this
process is under way, or several to a database that is far, further appends wait for its end, and go together. The
invariant is that nobody notices but by the time it takes: each append is stored whole or not at all, whatever becomes
of the others; one that could not go along (its conversation is held by another writer, its key was seen before, the
statement failed) is sent by itself, which waits, repeats and explains as if there had been no group.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from math import ceil
from time import perf_counter
from typing import Any, Final, TypeAlias

import asyncpg
import orjson

from exai.db.pace import Gate, Room
from exai.db.pool import Database
from exai.db.records import AppendResult, AppendStart
from exai.db.rows import Columns, columns_of, conversation_of, stored_of
from exai.db.translate import DEPENDENCY, NO_REPLY, unknown_outcome
from exai.errors import DatabaseError, DeadlineExceeded, ExaiError, OutcomeUnknown, ShuttingDown
from exai.fairness import Line
from exai.models import Owner
from exai.resilience import bounded

MOST_APPENDS: Final = 16
"""In one group."""

WHOLE_CROWD: Final = 8
"""So many who wait go together; of more only half do, so that the server works for some while this process works for
the others. Otherwise those who have once gone together would always come, and wait, together."""

MOST_MESSAGES: Final = 32
MOST_FILES: Final = 32
MOST_CHARS: Final = 65_536
"""Of one append that goes in a group, its metadata as JSON included; a larger one is worth a statement of its own and
would hold the others up."""

MOST_LEFT: Final = 4 * MOST_APPENDS
"""Appends to conversations that a group has already are left for the next; after so many no more are looked at."""

WHAT: Final = f"{DEPENDENCY} (append)"

SendOne: TypeAlias = Callable[[AppendStart, Columns], Awaitable[AppendResult]]


class _Append:
    """One append, from its call to its end.

    `alone` and `sent` say what was decided for it; one of them, once. A `result` of None means that nothing is stored
    yet and the append is to be sent by itself; a cancelled one, that its caller has left.
    """

    __slots__ = ("alone", "columns", "result", "sent", "start")

    def __init__(self, start: AppendStart, columns: Columns, result: asyncio.Future[AppendResult | None]) -> None:
        self.start, self.columns, self.result = start, columns, result
        self.alone = self.sent = False


class Grouping:
    """The appends of one process; `send_one` is how an append is sent by itself."""

    def __init__(self, database: Database, room: Room, send_one: SendOne) -> None:
        self._database, self._send_one = database, send_one
        self._gate = Gate(room, self._send)
        self._tasks: set[asyncio.Task[None]] = set()

    async def append(self, start: AppendStart) -> AppendResult:
        """Store messages, with those of others or alone. Raises as `ConversationRepository.append`."""
        columns = columns_of(start.messages)
        if not may_share(start, columns):
            return await self._send_one(start, columns)
        append = _Append(start, columns, asyncio.get_running_loop().create_future())
        self._gate.put(start.owner, append)
        try:
            result = await bounded(append.result, None, WHAT)
        except DeadlineExceeded as error:
            if append.sent:
                raise unknown_outcome(NO_REPLY) from error
            raise
        except OutcomeUnknown as doubt:
            return await self._settle(append, doubt)
        else:
            if result is not None:
                return result
            sent_at = perf_counter()
            stored = await self._send_one(start, columns)
            self._gate.saw(perf_counter() - sent_at)
            return stored
        finally:
            # Who was told that nothing was written, before its turn came, must not be sent after all.
            append.result.cancel()
            if append.alone:
                self._gate.end(append)

    async def _settle(self, append: _Append, doubt: OutcomeUnknown) -> AppendResult:
        """Find out by its key whether an append was stored, or store it; only an answer ends the doubt."""
        try:
            return await self._send_one(append.start, append.columns)
        except (DatabaseError, DeadlineExceeded, ShuttingDown) as error:
            raise doubt from error

    def _send(self, waiting: Line[_Append]) -> _Append | None:
        group = _take(waiting)
        if not group:
            return None
        if len(group) == 1:
            group[0].alone = True
            group[0].result.set_result(None)
            return group[0]
        for append in group:
            append.sent = True
        task = asyncio.create_task(self._send_group(group), name="append-group")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return group[0]

    async def _send_group(self, group: Sequence[_Append]) -> None:
        stored: Mapping[int, AppendResult] = {}
        doubt: str | None = None
        try:
            sent_at = perf_counter()
            rows = await self._database.fetch("append_group", *_columns(group))
            self._gate.saw(perf_counter() - sent_at)
            stored = {row["number"]: _result(group[row["number"] - 1], row) for row in rows}
        except OutcomeUnknown as error:
            doubt = error.problem
        except ExaiError:
            # Nothing was written, and each finds out for itself whether the cause was its own.
            pass
        except BaseException:
            doubt = NO_REPLY
            raise
        finally:
            for number, append in enumerate(group, 1):
                if append.result.done():
                    continue
                if doubt is not None:
                    append.result.set_exception(unknown_outcome(doubt))
                else:
                    append.result.set_result(stored.get(number))
            self._gate.end(group[0])


def _take(waiting: Line[_Append]) -> list[_Append]:
    """Take who can go together: one for each conversation and each key; the owners take turns."""
    group: list[_Append] = []
    staying: list[_Append] = []
    taken: set[tuple[str, Owner, str]] = set()
    most = min(max(ceil(len(waiting) / 2), WHOLE_CROWD), MOST_APPENDS)
    while waiting and len(group) < most and len(staying) < MOST_LEFT:
        append = waiting.take()
        if append.result.done():
            continue
        start = append.start
        conversation = start.continuation_id or start.new_conversation_id
        names = {("conversation", start.owner, conversation), ("key", start.owner, start.request_key)}
        if taken.isdisjoint(names):
            taken |= names
            group.append(append)
        else:
            staying.append(append)
    for append in reversed(staying):
        waiting.put_back(append.start.owner, append)
    return group


def may_share(start: AppendStart, columns: Columns) -> bool:
    """Whether an append may go in a group: a small one."""
    _, contents, _, metadata = columns
    return (
        1 <= len(contents) <= MOST_MESSAGES
        and len(start.file_ids) <= MOST_FILES
        and sum(map(len, contents)) + sum(len(each) for each in metadata if each) <= MOST_CHARS
    )


def _columns(group: Sequence[_Append]) -> tuple[list[Any], ...]:
    """What the statement takes: arrays with one element for each append, then for each message, then for each file."""
    starts = [append.start for append in group]
    per_append: tuple[list[Any], ...] = (
        [start.owner for start in starts],
        [start.continuation_id for start in starts],
        [start.new_conversation_id for start in starts],
        [start.turn_id for start in starts],
        [start.request_key for start in starts],
        [start.request_hash for start in starts],
        [start.tool for start in starts],
        [start.title for start in starts],
        [start.expected_revision for start in starts],
        [len(start.messages) for start in starts],
    )
    numbers = [number for number, start in enumerate(starts, 1) for _ in start.messages]
    places = [place for start in starts for place in range(len(start.messages))]
    columns = zip(*(append.columns for append in group), strict=True)
    roles, contents, kinds, metadata = ([each for column in part for each in column] for part in columns)
    with_files = [number for number, start in enumerate(starts, 1) for _ in start.file_ids]
    files = [file_id for start in starts for file_id in start.file_ids]
    return (*per_append, numbers, places, roles, contents, kinds, metadata, with_files, files)


def _result(append: _Append, row: asyncpg.Record) -> AppendResult:
    first_seq, base_revision = row["first_seq"], row["base_revision"]
    start = append.start
    return AppendResult(
        status="appended",
        conversation=conversation_of(orjson.loads(row["header"])),
        first_seq=first_seq,
        last_seq=first_seq + len(start.messages) - 1,
        base_revision=base_revision,
        revision=base_revision + 1,
        stored=stored_of(start.messages, first_seq, row["created_at"], start.turn_id),
        inc=row["inc"],
    )
