"""Store small appends of several callers with one statement and one commit.

Most of the cost of a small append in Postgres is its statement and its commit. Appends that wait for a statement in
flight (`exai.db.concurrency` decides when) share the next one.

Invariant: each append is stored completely or not at all, independent of the others in its batch. An append that the
batch did not store (its conversation is locked, its key was used before, the statement failed) is sent in a statement
of its own, which waits for locks, retries and reports errors as if there had been no batch.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeAlias

import asyncpg
import orjson

from exai.batching import Batcher, Fit, Unanswered
from exai.db.concurrency import ConcurrencyLimit, PoolShare
from exai.db.driver.pool import Database
from exai.db.driver.translate import DEPENDENCY, NO_REPLY, unknown_outcome
from exai.db.records import AppendResult, AppendStart
from exai.db.rows import Columns, columns_of, conversation_of, identity_of, stored_of, stored_title
from exai.encryption.codec import Codec
from exai.errors import DatabaseError, DeadlineExceeded, ExaiError, OutcomeUnknown, ShuttingDown
from exai.fairness import count_shared, request_work
from exai.models import Commit, Owner

MOST_APPENDS: Final = 16
"""Maximum number of appends in one batch."""

MOST_MESSAGES: Final = 32
MOST_FILES: Final = 32
MOST_CHARS: Final = 65_536
"""Limits of an append that may share a batch; the characters include its metadata as JSON. A larger append would delay
the others, and the cost of its own statement is small beside that of its rows."""

WHAT: Final = f"{DEPENDENCY} (append)"

SendOne: TypeAlias = Callable[[AppendStart, Columns], Awaitable[AppendResult]]


class _Append:
    """One append. `doubt` is the error of its batch if that batch may have stored it."""

    __slots__ = ("columns", "doubt", "start", "work")

    def __init__(self, start: AppendStart, columns: Columns) -> None:
        self.start, self.columns = start, columns
        self.work = request_work.get()
        self.doubt: OutcomeUnknown | None = None


class AppendBatcher:
    """The appends of one process; `send_one` sends an append by itself."""

    def __init__(self, database: Database, share: PoolShare, send_one: SendOne) -> None:
        self._database, self._send_one = database, send_one
        self._batcher: Batcher[_Append, AppendResult] = Batcher(
            ConcurrencyLimit(share),
            self._send,
            self._send_alone,
            failure=_note_doubt,
            name="append-batch",
            what=WHAT,
            max_items=MOST_APPENDS,
            choose=_chooser,
        )

    async def append(self, start: AppendStart) -> AppendResult:
        """Store messages, in a batch if the append is small. Raises as `ConversationRepository.append`."""
        columns = columns_of(start.messages, start.owner, self._database.codec)
        if not may_share(start, columns):
            return await self._send_one(start, columns)
        try:
            return await self._batcher.run(start.owner, _Append(start, columns))
        except Unanswered as error:
            raise unknown_outcome(NO_REPLY) from error

    async def _send(self, appends: Sequence[_Append]) -> list[AppendResult | None]:
        stored: list[AppendResult | None] = [None] * len(appends)
        count_shared(append.work for append in appends)
        codec = self._database.codec
        for row in await self._database.fetch("append_group", *_columns(appends, codec)):
            number = row["number"] - 1
            stored[number] = _result(appends[number].start, row, codec)
        return stored

    async def _send_alone(self, append: _Append) -> AppendResult:
        """Store one append, or detect by its request key that its batch stored it.

        Raises the batch's `OutcomeUnknown` if this statement fails as well: only a reply shows what was stored.
        """
        try:
            return await self._send_one(append.start, append.columns)
        except (DatabaseError, DeadlineExceeded, ShuttingDown) as error:
            if append.doubt is None:
                raise
            raise append.doubt from error


def _note_doubt(append: _Append, error: ExaiError) -> None:
    # Returning None makes the batcher call `_send_alone` for each append, which detects by its request key whether the
    # batch stored it, and otherwise fails with an error of its own.
    if isinstance(error, OutcomeUnknown):
        append.doubt = unknown_outcome(error.problem)


def _chooser() -> Callable[[_Append], Fit]:
    """Choose appends of distinct conversations and distinct request keys.

    `append_batch_v1` handles all appends of a batch at once, so one could not see a row that another stores.
    """
    taken: set[tuple[str, Owner, str]] = set()

    def choose(append: _Append) -> Fit:
        start = append.start
        conversation = start.continuation_id or start.new_conversation_id
        names = {("conversation", start.owner, conversation), ("key", start.owner, start.request_key)}
        if not taken.isdisjoint(names):
            return "later"
        taken.update(names)
        return "take"

    return choose


def may_share(start: AppendStart, columns: Columns) -> bool:
    """Return whether an append is small enough to share a batch."""
    _, contents, _, metadata = columns
    return (
        1 <= len(contents) <= MOST_MESSAGES
        and len(start.file_ids) <= MOST_FILES
        and sum(map(len, contents)) + sum(len(each) for each in metadata if each) <= MOST_CHARS
    )


def _columns(appends: Sequence[_Append], codec: Codec) -> tuple[list[Any], ...]:
    """Return the statement's arguments: arrays with one element per append, then per message, then per file."""
    starts = [append.start for append in appends]
    per_append: tuple[list[Any], ...] = (
        *map(list, zip(*(identity_of(start, codec) for start in starts), strict=True)),
        [stored_title(start, codec) for start in starts],
        [start.expected_revision for start in starts],
        [len(start.messages) for start in starts],
    )
    numbers = [number for number, start in enumerate(starts, 1) for _ in start.messages]
    places = [place for start in starts for place in range(len(start.messages))]
    columns = zip(*(append.columns for append in appends), strict=True)
    roles, contents, kinds, metadata = ([each for column in part for each in column] for part in columns)
    with_files = [number for number, start in enumerate(starts, 1) for _ in start.file_ids]
    files = [file_id for start in starts for file_id in start.file_ids]
    return (*per_append, numbers, places, roles, contents, kinds, metadata, with_files, files)


def _result(start: AppendStart, row: asyncpg.Record, codec: Codec) -> AppendResult:
    first_seq, base_revision = row["first_seq"], row["base_revision"]
    return AppendResult(
        status="appended",
        commit=Commit(
            conversation=conversation_of(orjson.loads(row["header"]), codec),
            base_revision=base_revision,
            revision=base_revision + 1,
            server_epoch=row["server_epoch"],
            added=stored_of(start.messages, first_seq, row["created_at"], start.turn_id),
            is_listed=base_revision == 0,
        ),
        first_seq=first_seq,
        last_seq=first_seq + len(start.messages) - 1,
        made=start.continuation_id is None,
    )
