"""Turns by their ids, for whoever asks what became of one; each method is one statement and one round trip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson

from exai.db.pool import Database
from exai.db.records import StoredReply
from exai.db.rows import json_of, reply_of, time_of
from exai.models import ContinuationId, Message, Owner, TurnId, TurnState


@dataclass(frozen=True, slots=True)
class StoredTurn:
    """One turn as it is now. `reply` is there once it is finished, `error` once it has failed.

    `revision` is the conversation's after it; `lease_left_s` says of a pending turn how long somebody is surely at it.
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
    """Turns of conversations that are not deleted. Sees nothing of other owners."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read(self, owner: Owner, turn_id: str) -> StoredTurn | None:
        """Return a turn with its answer, None when this owner has none of that id. Raises a `DatabaseError`."""
        if not is_id(turn_id):
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
        """End a turn as failed for `cause`, unless it has ended; False when this owner has none of that id."""
        if not is_id(turn_id):
            return False
        rows = await self._database.fetch("cancel_turn", owner, turn_id, json_of("cause", cause))
        return int(rows[0]["found"]) > 0


def is_id(text: str) -> bool:
    """Whether a text is an id as Postgres knows them; what is none names nothing."""
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False
