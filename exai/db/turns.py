"""Read and cancel turns by id; each method is one statement and one round trip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson

from exai.db.driver.pool import Database
from exai.db.records import StoredReply
from exai.db.rows import json_of, reply_of, time_of
from exai.models import ContinuationId, Message, Owner, TurnId, TurnState
from exai.validation import is_canonical_uuid


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
    """Turns of conversations that are not deleted. Each method is confined to one owner."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read(self, owner: Owner, turn_id: str) -> StoredTurn | None:
        """Return a turn with its answer, None if this owner has no turn with that id. Raises `DatabaseError`."""
        if not is_canonical_uuid(turn_id):
            return None
        rows = await self._database.fetch("read_turn", owner, turn_id)
        if not rows:
            return None
        row, turn = rows[0], orjson.loads(rows[0]["turn"])
        answer = [Message(row["seq"], row["role"], row["content"], row["created_at"])] if row["seq"] else []
        return StoredTurn(
            turn_id=TurnId(turn["id"]),
            tool=turn["tool"],
            state=turn["state"],
            continuation_id=ContinuationId(row["continuation_id"]),
            revision=row["revision"],
            started_at=time_of(turn["started_at"]),
            finished_at=time_of(turn["finished_at"]) if turn["finished_at"] else None,
            lease_left_s=turn["lease_left_s"] or 0.0,
            reply=reply_of(turn, answer) if turn["state"] == "finished" else None,
            error=turn["error"] if turn["state"] == "failed" else None,
        )

    async def cancel(self, owner: Owner, turn_id: str, cause: Mapping[str, Any]) -> bool:
        """Mark a pending turn as failed with `cause`; return False if this owner has no turn with that id."""
        if not is_canonical_uuid(turn_id):
            return False
        rows = await self._database.fetch("cancel_turn", owner, turn_id, json_of(cause))
        return int(rows[0]["found"]) > 0
