"""Errors for writes that the database refused, by the status that its functions return."""

from __future__ import annotations

from typing import Final

from exai.errors import Conflict, ExaiError, InvalidArgument, NotFound, shown

CONFLICTS: Final = {
    "conflict_key": (
        "key_reused",
        "the idempotency key was used for a request with other content",
        "Use a new key for a new request",
    ),
    "cut": ("cancelled", "the question of this request was cut off by a rewind", "Use a new key to ask it again"),
    "ended": ("cancelled", "this request was cancelled meanwhile", "Call again with the same key to run it again"),
    "exists": ("exists", "the conversation {name} exists", "Give another name, or delete that one first"),
}
"""By status: reason, problem and cure."""


def refusal(status: str, continuation_id: str | None, revision: int, missing: str | None) -> ExaiError:
    """Return the error for a write that the database did not do."""
    name = shown(continuation_id)
    match status:
        case "not_found" | "deleted":
            return NotFound("conversation", continuation_id or "", "conversation_list lists them")
        case "file_not_found":
            return NotFound("file", missing or "", "Store it first, then link it")
        case "too_large":
            problem = f"makes the metadata of {name} larger than the limit"
            return InvalidArgument("patch", problem, "Remove other fields in the same patch")
        case "name_taken":
            problem = f"the name {name} belongs to a newer conversation"
            return Conflict("name_taken", problem, f"Restore the deleted one as {missing}", continuation_id=missing)
        case "conflict_revision":
            problem, facts = f"conversation {name} has moved on to revision {revision}", {"revision": revision}
            cure = "Read it again, then decide"
            return Conflict("revision", problem, cure, continuation_id=continuation_id, **facts)
        case _:
            if status not in CONFLICTS:
                raise AssertionError(f"not a refusal: {status}")
            reason, problem, cure = CONFLICTS[status]
            return Conflict(reason, problem.format(name=name), cure)
