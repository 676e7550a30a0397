"""Read and write conversations and turns; each method is one statement and one round trip.

`Database.fetch` retries a statement as its `repeat` header in `sql/conversations.sql` permits.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final
from uuid import UUID

import orjson

from exai.db.batching.appends import AppendBatcher
from exai.db.batching.page_reads import PageReadBatcher
from exai.db.concurrency import PoolShare
from exai.db.driver.pool import Database, Record
from exai.db.filters import ALL, ListFilter
from exai.db.records import (
    FIRST_PAGE,
    AppendResult,
    AppendStart,
    AppendStatus,
    BegunStatus,
    CachedRange,
    ChangeEvent,
    ChangeEvents,
    Changes,
    ConversationChange,
    ConversationList,
    Cursor,
    FinishedStatus,
    StoredPage,
    StoredReply,
    TurnBegun,
    TurnEnd,
    TurnFinished,
    TurnSeen,
    TurnStart,
)
from exai.db.rows import (
    Columns,
    RowsByPart,
    columns_of,
    commit_of,
    conversation_of,
    json_of,
    reply_of,
    stored_of,
    time_of,
)
from exai.errors import InvalidArgument, NotFound
from exai.models import PAGE_BYTES, PAGE_MESSAGES, ContentPart, ContinuationId, Message, NewMessage, Owner, TurnId
from exai.pages import JOINT, decode_page
from exai.validation import check_time

__all__ = [
    "AppendResult",
    "AppendStart",
    "AppendStatus",
    "BegunStatus",
    "CachedRange",
    "Changes",
    "ConversationChange",
    "ConversationList",
    "ConversationRepository",
    "FinishedStatus",
    "StoredPage",
    "StoredReply",
    "TurnBegun",
    "TurnEnd",
    "TurnFinished",
    "TurnSeen",
    "TurnStart",
]

NEWEST: Final = (None, 0, PAGE_MESSAGES, PAGE_BYTES, 0)
"""Arguments of the newest page: `before_seq`, messages to skip, maximum messages, maximum bytes, `char_offset`."""

MAX_OFFSET: Final = 2**31 - 2
"""No text has more characters."""

LIST_BYTES: Final = 1_048_576
"""Of the headers in one page of a list, more than any answer has."""

CHANGES_LIMIT: Final = 5_000
"""Maximum number of changes that one query returns; with more the result is truncated."""


class ConversationRepository:
    """Conversations, their messages and turns, in Postgres. Methods with an owner access only that owner's rows."""

    def __init__(self, database: Database) -> None:
        self._database = database
        share = PoolShare(database.usage()[2], database.network)
        self._appends = AppendBatcher(database, share, self._append_one)
        self._page_reads = PageReadBatcher(database, share)

    async def read_page(
        self,
        owner: Owner,
        continuation_id: ContinuationId,
        *,
        limit: int = PAGE_MESSAGES,
        before_seq: int | None = None,
        skip: int = 0,
        budget_bytes: int = PAGE_BYTES,
        char_offset: int = 0,
    ) -> StoredPage:
        """Return the newest `limit` messages (before `before_seq`, without the `skip` newest), oldest first.

        The page is cut to the byte budget, but has at least one message if there is one. A single message that exceeds
        the budget is returned in part, as is any message with `char_offset`. The newest page may share a statement with
        concurrent reads.

        Raises:
            NotFound: no such conversation, or it is deleted.
            DatabaseError: as `Database.fetch`.

        """
        rows: Sequence[Record]
        if (before_seq, skip, limit, budget_bytes, char_offset) == NEWEST:
            rows = await self._page_reads.read(owner, continuation_id)
        else:
            where = (before_seq, skip, limit, budget_bytes, min(char_offset, MAX_OFFSET))
            rows = await self._database.fetch("read_page", owner, continuation_id, *where)
        if not rows:
            raise NotFound("conversation", continuation_id, "conversation_list lists them")
        head = orjson.loads(rows[0]["head"])
        page: bytes = rows[0]["messages"] or JOINT.join([row["messages"] for row in rows[:0:-1]])
        messages = decode_page(page)
        # Numbers start at 1 and have no gaps, so older messages exist exactly if the lowest number is above 1.
        has_older = bool(messages) and messages[0].seq > 1
        last = rows[-1]["head"] if len(rows) > 1 else None
        part = ContentPart(char_offset, orjson.loads(last)["chars"]) if last else None
        return StoredPage(
            conversation_of(head["conversation"]), messages, has_older, head["server_epoch"], page, part=part
        )

    async def append(self, start: AppendStart) -> AppendResult:
        """Store messages as one block, once per request key; see `AppendResult` for the outcomes.

        Concurrent small appends may share a statement; an append that the batch cannot store costs a second one.

        Raises:
            DatabaseError: `OutcomeUnknown` asks for the same call again.
            DeadlineExceeded: the request's time was over before anything was written.

        """
        return await self._appends.append(start)

    async def _append_one(self, start: AppendStart, columns: Columns) -> AppendResult:
        rest = (*columns, list(start.file_ids), start.expected_revision)
        answer = RowsByPart(await self._database.fetch("append", *_identity(start), start.title, *rest))
        head, status = answer.head, answer.head["status"]
        stored = tuple(answer.part("stored"))
        if status == "appended" and not stored:
            stored = _just_stored(start.messages, answer, start.turn_id)
        is_stored = status in {"appended", "duplicate"}
        return AppendResult(
            status=status,
            commit=commit_of(answer.head, stored, is_repeated=status == "duplicate") if is_stored else None,
            first_seq=head["first_seq"],
            last_seq=head["last_seq"],
            current_revision=head["revision"] or 0,
            missing=head.get("detail"),
        )

    async def begin_turn(self, start: TurnStart) -> TurnBegun:
        """Claim a turn, store its question, and return the history that `start.known` lacks.

        Raises:
            DatabaseError: `OutcomeUnknown` asks for the same call again.

        """
        known = start.known
        answer = RowsByPart(
            await self._database.fetch(
                "begin_turn", *_identity(start), start.title, start.lease_s, start.provider, start.model,
                *columns_of(start.messages), list(start.file_ids), start.expected_revision, start.budget_bytes,
                *((known.revision, known.low_seq, known.high_seq, known.size_bytes) if known else (None,) * 4),
            )
        )  # fmt: skip
        head, status = answer.head, answer.head["status"]
        turn = head["turn"]
        system = answer.part("system")
        # A retried statement that detects its earlier execution returns the stored rows, with their original time.
        question = tuple(answer.part("stored"))
        if status == "started" and not question:
            question = _just_stored(start.messages, answer, start.turn_id)
        is_begun = status in {"started", "resumed", "finished", "pending"}
        # The answer to a finished turn lacks the messages between the revisions, so that it is not an addition.
        added = None if status == "finished" else question
        return TurnBegun(
            status=status,
            commit=commit_of(answer.head, added, is_repeated=status != "started") if is_begun else None,
            turn_id=TurnId(head["turn_id"] or start.turn_id),
            attempt=head["attempt"],
            first_seq=head["first_seq"],
            last_seq=head["last_seq"],
            history=tuple(reversed(answer.part("message"))),
            full=head["full"],
            system=system[0] if system else None,
            current_revision=head["revision"] or 0,
            reply=reply_of(turn, answer.part("reply")) if status == "finished" else None,
            error=turn["error"] if turn else None,
            missing=head["detail"],
            lease_left_s=turn["lease_left_s"] if turn else None,
            started_at=time_of(turn["started_at"]) if turn else answer.at,
        )

    async def finish_turn(self, end: TurnEnd) -> TurnFinished:
        """Write the outcome of one attempt. A repeated call returns the same result.

        Raises:
            DatabaseError: `OutcomeUnknown` asks for the same call again.

        """
        usage = end.usage
        answer = RowsByPart(
            await self._database.fetch(
                "finish_turn", end.owner, end.turn_id, end.attempt, end.state, *columns_of(end.messages), end.model,
                usage.input_tokens if usage else None,
                usage.output_tokens if usage else None,
                usage.cached_tokens if usage else None,
                usage.reasoning_tokens if usage else None,
                None if end.cost_usd is None else str(end.cost_usd),
                json_of(end.error) if end.error is not None else None,
                json_of(end.metadata) if end.metadata else None,
            )
        )  # fmt: skip
        head, status = answer.head, answer.head["status"]
        is_fresh = status == "finished"
        stored = _just_stored(end.messages, answer, end.turn_id) if is_fresh else tuple(answer.part("stored"))
        commit = None if status == "superseded" else commit_of(answer.head, stored)
        return TurnFinished(status=status, commit=commit, seq=head["seq"])

    async def read_turn_state(self, owner: Owner, request_key: str) -> TurnSeen | None:
        """Read how far the turn with this key has come; None when there is none."""
        answer = RowsByPart(await self._database.fetch("turn_state", owner, request_key))
        conversation = answer.conversation
        if conversation is None:
            return None
        turn = answer.head["turn"]
        return TurnSeen(
            turn_id=TurnId(turn["id"]),
            state=turn["state"],
            attempt=turn["attempt"],
            lease_left_s=turn["lease_left_s"],
            conversation=conversation,
            reply=reply_of(turn, answer.part("reply")) if turn["state"] == "finished" else None,
            error=turn["error"],
        )

    async def renew_leases(self, turn_ids: Sequence[TurnId], *, lease_s: float) -> frozenset[TurnId]:
        """Extend the leases of pending turns to `lease_s` from now; return the turns that are still pending."""
        rows = await self._database.fetch("renew_leases", list(turn_ids), lease_s)
        return frozenset(TurnId(row["id"]) for row in rows)

    async def list_conversations(
        self, owner: Owner, *, limit: int = PAGE_MESSAGES, cursor: str | None = None, only: ListFilter = ALL
    ) -> ConversationList:
        """Return an owner's conversations, latest change first: at most `limit`, fewer if their headers are large.

        Raises:
            InvalidArgument: the cursor is not one of a list.

        """
        after = read_cursor(cursor) if cursor else FIRST_PAGE
        place = (owner, limit + 1, after.updated_at, after.id)
        rows = await self._database.fetch("list_conversations", *place, *only.arguments(), LIST_BYTES)
        found = tuple(
            replace(
                conversation_of(orjson.loads(row["header"])),
                deleted_at=row["deleted_at"],
                newest_kind=row["newest_kind"],
            )
            for row in rows[:limit]
            if row["header"] is not None
        )
        more = len(rows) > len(found)
        return ConversationList(found, write_cursor(Cursor(found[-1].updated_at, found[-1].id)) if more else None)

    async def changes(self, since_xmin: str | None) -> Changes:
        """Return the current snapshot, and the conversations changed by transactions not visible to `since_xmin`'s."""
        rows = await self._database.fetch("changes", since_xmin, CHANGES_LIMIT + 1)
        changed = tuple(
            ConversationChange(Owner(row["owner"]), ContinuationId(row["continuation_id"]), row["revision"])
            for row in rows[1:]
        )
        truncated = len(changed) > CHANGES_LIMIT
        return Changes(rows[0]["xmin"], rows[0]["server_epoch"], changed[:CHANGES_LIMIT], truncated)

    async def news(self, since_xmin: str | None) -> ChangeEvents:
        """Return the current snapshot, and for subscribers each conversation changed since `since_xmin`'s."""
        rows = await self._database.fetch("news", since_xmin, CHANGES_LIMIT)
        changed = tuple(
            ChangeEvent(Owner(row["owner"]), ContinuationId(row["continuation_id"]), row["revision"], row["listed"])
            for row in rows[1:]
        )
        return ChangeEvents(rows[0]["xmin"], rows[0]["server_epoch"], changed)


def write_cursor(cursor: Cursor) -> str:
    """An opaque text for clients."""
    return base64.urlsafe_b64encode(f"{cursor.updated_at.isoformat()} {cursor.id}".encode()).decode()


def read_cursor(text: str) -> Cursor:
    """The inverse of `write_cursor`.

    Raises:
        InvalidArgument: it is none of ours.

    """
    try:
        at, _, last_id = base64.urlsafe_b64decode(text.encode()).decode().partition(" ")
        cursor = Cursor(datetime.fromisoformat(at), str(UUID(last_id)))
        check_time("cursor", cursor.updated_at)
    except (ValueError, binascii.Error):
        raise InvalidArgument("cursor", "is not one this list gave", "Use next_cursor of the page before") from None
    return cursor


def _identity(start: AppendStart | TurnStart) -> tuple[str | None, ...]:
    return (
        start.owner,
        start.continuation_id,
        start.new_conversation_id,
        start.turn_id,
        start.request_key,
        start.request_hash,
        start.tool,
    )


def _just_stored(messages: Sequence[NewMessage], answer: RowsByPart, turn_id: TurnId) -> tuple[Message, ...]:
    first_seq = answer.head["first_seq"]
    if first_seq is None or answer.at is None:
        return ()
    return stored_of(messages, first_seq, answer.at, turn_id)
