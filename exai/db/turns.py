"""Begin, finish, read and cancel turns; each method is one statement and one round trip.

`Database.fetch` retries a statement as its `repeat` header in `sql/turns.sql` permits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import orjson

from exai.db.conversations import just_stored
from exai.db.driver.pool import Database
from exai.db.records import BudgetClaim, StoredReply, TurnBegun, TurnEnd, TurnFinished, TurnStart
from exai.db.rows import (
    RowsByPart,
    columns_of,
    commit_of,
    files_of,
    identity_of,
    json_of,
    reply_of,
    stored_title,
    time_of,
)
from exai.encryption.codec import Codec, Home
from exai.models import ContinuationId, Message, Owner, TurnId, TurnState
from exai.validation import is_canonical_uuid

FROM_CACHE: Final = "from_cache"
"""The field of a turn's metadata with the origin of an answer of the answer cache, by which usage counts it."""


MESSAGE_OVERHEAD: Final = 16
"""Bytes that a message counts more than its content, as in begin_turn_v1."""


@dataclass(frozen=True, slots=True)
class StoredTurn:
    """The current state of a turn. `reply` is set for a finished turn, `error` for a failed one.

    `revision` is the conversation's revision after the turn. `lease_left_s` is the remaining lease of a pending turn in
    seconds, during which a daemon is working on it.
    """

    turn_id: TurnId
    tool: str
    state: TurnState
    continuation_id: ContinuationId
    revision: int
    started_at: datetime
    finished_at: datetime | None
    lease_left_s: float
    reply: StoredReply | None
    error: Mapping[str, Any] | None


class TurnRepository:
    """Turns, in Postgres. Methods with an owner access only that owner's rows."""

    def __init__(self, database: Database) -> None:
        self._database, self._codec = database, database.codec

    async def begin(self, start: TurnStart) -> TurnBegun:
        """Claim a turn, store its question, and return the history that `start.known` lacks.

        Raises:
            DatabaseError: `OutcomeUnknown` asks for the same call again.

        """
        known, codec = start.known, self._codec
        files = files_of(start, codec)
        name = "begin_turn" if files is None else "begin_turn_with_files"
        answer = RowsByPart(
            await self._database.fetch(
                name, *identity_of(start, codec), stored_title(start, codec), start.lease_s, start.provider,
                start.model, *columns_of(start.messages, start.owner, codec), list(start.file_ids),
                start.expected_revision, codec.stored_bytes(start.budget_bytes),
                *((known.revision, known.low_seq, known.high_seq, codec.stored_bytes(known.size_bytes)) if known
                  else (None,) * 4),
                start.counts_steps,
                None if start.claim is None else start.claim.as_json(),
                *(files or ()),
            ),
            codec,
        )  # fmt: skip
        head, status = answer.head, answer.head["status"]
        turn = head["turn"]
        system, history = answer.part("system"), answer.part("message")
        if codec.is_on:
            history = within(history, start.budget_bytes)
        # A retried statement that detects its earlier execution returns the stored rows, with their original time.
        question = tuple(answer.part("stored"))
        if status == "started" and not question:
            question = just_stored(start.messages, None, answer, start.turn_id)
        is_begun = status in {"started", "resumed", "finished", "pending"}
        # The answer to a finished turn lacks the messages between the revisions, so that it is not an addition.
        added = None if status == "finished" else question
        return TurnBegun(
            status=status,
            commit=commit_of(answer.head, codec, added, is_repeated=status != "started") if is_begun else None,
            turn_id=TurnId(head["turn_id"] or start.turn_id),
            attempt=head["attempt"],
            first_seq=head["first_seq"],
            last_seq=head["last_seq"],
            history=tuple(reversed(history)),
            full=head["full"] or len(history) < len(answer.part("message")),
            system=system[0] if system else None,
            current_revision=head["revision"] or 0,
            reply=reply_of(turn, answer.part("reply"), start.owner, codec) if status == "finished" else None,
            error=opened_error(turn, start.owner, codec) if turn else None,
            missing=head["detail"],
            lease_left_s=turn["lease_left_s"] if turn else None,
            started_at=time_of(turn["started_at"]) if turn else answer.at,
            step=answer.step,
        )

    async def reserve(self, start: TurnStart, begun: TurnBegun, claim: BudgetClaim, history_bytes: int) -> None:
        """Reserve the likely cost of a turn that was begun without a claim, as `begin` does with one.

        Raises:
            BudgetExceeded: The turn stays as it is.
            DatabaseError: The same call can be repeated.

        """
        if begun.commit is None:
            raise AssertionError("a turn that was begun has a conversation")
        await self._database.fetch(
            "reserve_turn", start.owner, begun.turn_id, begun.commit.conversation.id, claim.as_json(),
            history_bytes, start.budget_bytes,
        )  # fmt: skip

    async def finish(self, end: TurnEnd) -> TurnFinished:
        """Write the outcome of one attempt. A repeated call returns the same result.

        Raises:
            DatabaseError: `OutcomeUnknown` asks for the same call again.

        """
        usage, codec, along = end.usage, self._codec, end.along
        name = "finish_turn" if along is None else "finish_turn_with_files"
        answer = RowsByPart(
            await self._database.fetch(
                name, end.owner, end.turn_id, end.attempt, end.state,
                *columns_of(end.messages, end.owner, codec), end.model,
                usage.input_tokens if usage else None,
                usage.output_tokens if usage else None,
                usage.cached_tokens if usage else None,
                usage.reasoning_tokens if usage else None,
                None if end.cost_usd is None else str(end.cost_usd),
                json_of(codec.document(end.owner, end.turn_id, end.error)) if end.error is not None else None,
                json_of(stored_facts(end, codec)) if end.metadata else None,
                end.is_estimated,
                None if end.origin is None else orjson.dumps(end.origin).decode(),
                list(end.file_ids),
                *(() if along is None else (along.store, along.described, along.data)),
            ),
            codec,
        )  # fmt: skip
        head, status = answer.head, answer.head["status"]
        is_fresh = status == "finished"
        stored = just_stored(end.messages, None, answer, end.turn_id) if is_fresh else tuple(answer.part("stored"))
        commit = None
        if status not in ("superseded", "stale", "file_not_found"):
            commit = commit_of(answer.head, codec, stored)
        return TurnFinished(status=status, commit=commit, seq=head["seq"])

    async def state(self, owner: Owner, request_key: str) -> tuple[TurnState, float] | None:
        """Return the state of the turn with this key, and its remaining lease in seconds; None if there is none."""
        rows = await self._database.fetch("turn_state", owner, request_key)
        return (rows[0]["state"], rows[0]["lease_left_s"]) if rows else None

    async def renew_leases(self, turn_ids: Sequence[TurnId], *, lease_s: float) -> frozenset[TurnId]:
        """Extend the leases of pending turns to `lease_s` from now; return the turns that are still pending."""
        rows = await self._database.fetch("renew_leases", list(turn_ids), lease_s)
        return frozenset(TurnId(row["id"]) for row in rows)

    async def read(self, owner: Owner, turn_id: str) -> StoredTurn | None:
        """Return a turn with its answer, None if this owner has no turn with that id. Raises `DatabaseError`."""
        if not is_canonical_uuid(turn_id):
            return None
        rows = await self._database.fetch("read_turn", owner, turn_id)
        if not rows:
            return None
        row, turn = rows[0], orjson.loads(rows[0]["turn"])
        codec, answer = self._codec, []
        if row["seq"]:
            answer = [Message(row["seq"], row["role"], row["content"], row["created_at"], row["kind"])]
        answer = list(codec.opened(Home(owner, row["conversation_id"]), answer))
        return StoredTurn(
            turn_id=TurnId(turn["id"]),
            tool=turn["tool"],
            state=turn["state"],
            continuation_id=ContinuationId(row["continuation_id"]),
            revision=row["revision"],
            started_at=time_of(turn["started_at"]),
            finished_at=time_of(turn["finished_at"]) if turn["finished_at"] else None,
            lease_left_s=turn["lease_left_s"] or 0.0,
            reply=reply_of(turn, answer, owner, codec) if turn["state"] == "finished" else None,
            error=opened_error(turn, owner, codec) if turn["state"] == "failed" else None,
        )

    async def cancel(self, owner: Owner, turn_id: str, cause: Mapping[str, Any]) -> bool:
        """Mark a pending turn as failed with `cause`; return False if this owner has no turn with that id."""
        if not is_canonical_uuid(turn_id):
            return False
        rows = await self._database.fetch(
            "cancel_turn", owner, turn_id, json_of(self._codec.document(owner, turn_id, cause))
        )
        return int(rows[0]["found"]) > 0


def within(newest_first: Sequence[Message], budget_bytes: int) -> list[Message]:
    """Return the newest messages that begin_turn_v1 returns within a budget if they are not encrypted."""
    kept = []
    for message in newest_first:
        budget_bytes -= len(message.content.encode()) + MESSAGE_OVERHEAD
        if budget_bytes < 0:
            break
        kept.append(message)
    return kept


def stored_facts(end: TurnEnd, codec: Codec) -> Mapping[str, Any]:
    """Return the metadata of a turn as they are stored; whether the answer was cached is a figure of usage."""
    stored = codec.document(end.owner, end.turn_id, end.metadata)
    marks = {FROM_CACHE: True} if stored is not end.metadata and FROM_CACHE in end.metadata else {}
    return {**stored, **marks}


def opened_error(turn: Mapping[str, Any], owner: Owner, codec: Codec) -> Mapping[str, Any] | None:
    """Return the failure of a turn as it was recorded."""
    error: Mapping[str, Any] | None = turn["error"]
    return None if error is None else codec.opened_document(owner, (turn["id"],), error)
