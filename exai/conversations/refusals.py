"""Errors for writes that the database refused, by the status that its functions return."""

from __future__ import annotations

from exai.errors import Conflict, ExaiError, NotFound, shown


def refusal(status: str, continuation_id: str | None, revision: int, missing: str | None) -> ExaiError:
    """Return the error for a write that the database did not do."""
    match status:
        case "not_found" | "deleted":
            return NotFound("conversation", continuation_id or "", "conversation_list lists them")
        case "file_not_found":
            return NotFound("file", missing or "", "Store it first, then link it")
        case "conflict_key":
            return Conflict(
                "key_reused",
                "the idempotency key was used for a request with other content",
                "Use a new key for a new request",
            )
        case "ended":
            return Conflict(
                "cancelled", "this request was cancelled meanwhile", "Call again with the same key to run it again"
            )
        case "conflict_revision":
            return Conflict(
                "revision",
                f"conversation {shown(continuation_id)} has moved on to revision {revision}",
                "Read it again, then decide",
                continuation_id=continuation_id,
                revision=revision,
            )
        case _:
            raise AssertionError(f"not a refusal: {status}")
