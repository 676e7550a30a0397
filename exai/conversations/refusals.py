"""Errors for writes that the database refused, by the status that its functions return."""

from __future__ import annotations

from typing import Final

from exai.errors import Conflict, ExaiError, NotFound, shown

CONFLICTS: Final = {
    "conflict_key": (
        "key_reused",
        "the idempotency key was used for a request with other content",
        "Use a new key for a new request",
    ),
    "cut": ("cancelled", "the question of this request was cut off by a rewind", "Use a new key to ask it again"),
    "ended": ("cancelled", "this request was cancelled meanwhile", "Call again with the same key to run it again"),
}
"""By status: reason, problem and cure."""


def refusal(status: str, continuation_id: str | None, revision: int, missing: str | None) -> ExaiError:
    """Return the error for a write that the database did not do."""
    match status:
        case "not_found" | "deleted":
            return NotFound("conversation", continuation_id or "", "conversation_list lists them")
        case "file_not_found":
            return NotFound("file", missing or "", "Store it first, then link it")
        case "exists":
            problem = f"the conversation {shown(continuation_id)} exists"
            return Conflict("exists", problem, "Give another name, or delete that one first")
        case "name_taken":
            problem = f"the name {shown(continuation_id)} belongs to a newer conversation"
            return Conflict("name_taken", problem, f"Restore the deleted one as {missing}", continuation_id=missing)
        case "conflict_revision":
            return Conflict(
                "revision",
                f"conversation {shown(continuation_id)} has moved on to revision {revision}",
                "Read it again, then decide",
                continuation_id=continuation_id,
                revision=revision,
            )
        case _:
            if status not in CONFLICTS:
                raise AssertionError(f"not a refusal: {status}")
            return Conflict(*CONFLICTS[status])
