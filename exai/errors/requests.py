"""Errors that the caller can avoid with other arguments."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from exai.errors.base import MAX_SENTENCE_CHARS, MAX_SHOWN_CHARS, ExaiError, bounded


class RequestError(ExaiError):
    """The caller can avoid this error with other arguments."""

    code = "request"


class InvalidArgument(RequestError):
    """An argument is invalid. `field` is its path (`messages[3].content`); `problem` and `cure` are clauses."""

    code = "invalid_argument"

    def __init__(self, field: str, problem: str, cure: str) -> None:
        super().__init__(field, problem, cure)
        self.field = bounded(field, MAX_SHOWN_CHARS)
        self.problem, self.cure = bounded(problem, MAX_SENTENCE_CHARS), bounded(cure, MAX_SENTENCE_CHARS)

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}. {self.cure}"

    def details(self) -> dict[str, Any]:
        return {"field": self.field}


class NotFound(RequestError):
    """The item does not exist for this owner; items of other owners count as nonexistent."""

    code = "not_found"

    def __init__(self, kind: str, name: str, cure: str) -> None:
        super().__init__(kind, name, cure)
        self.kind, self.name, self.cure = kind, bounded(name, MAX_SHOWN_CHARS), cure

    def __str__(self) -> str:
        return f"there is no {self.kind} {self.name!r}. {self.cure}"

    def details(self) -> dict[str, Any]:
        return {"kind": self.kind, "name": self.name}


class Conflict(RequestError):
    """The request cannot be applied to the stored state. `reason` is one of a closed set, stable for programs.

    `key_reused`: the idempotency key belongs to a request with other content.
    `still_running`: the first request with this key has not ended yet.
    `revision`: the conversation has moved on from `expected_revision`.
    `cancelled`: another call ended this request while it ran.
    `superseded`: a later attempt of the same turn has taken over.
    `exists`: the name is taken.
    `name_taken`: another conversation has the name of the deleted one, which is to be restored under its present name.
    """

    code = "conflict"

    def __init__(self, reason: str, problem: str, cure: str, **facts: Any) -> None:
        super().__init__(reason, problem, cure)
        self.reason, self.problem, self.cure, self.facts = reason, problem, cure, facts

    def __str__(self) -> str:
        return f"{self.problem}. {self.cure}"

    def details(self) -> dict[str, Any]:
        return {"reason": self.reason, **self.facts}


class BudgetExceeded(RequestError):
    """A budget does not cover the highest likely cost of a question, which was not stored."""

    code = "budget"

    def __init__(
        self,
        budget: str,
        limit_usd: float,
        spent_usd: float,
        *,
        reserved_usd: float,
        needed_usd: float,
        resets_at: str | None = None,
    ) -> None:
        super().__init__(budget, limit_usd, spent_usd, reserved_usd, needed_usd, resets_at)
        self.budget, self.limit_usd, self.spent_usd = budget, limit_usd, spent_usd
        self.reserved_usd, self.needed_usd = reserved_usd, needed_usd
        self.resets_at = None if resets_at is None else datetime.fromisoformat(resets_at).astimezone(UTC)

    def __str__(self) -> str:
        scope, setting = BUDGETS[self.budget]
        # A budget that is used up covers no question, however cheap it is.
        cures = ["set a lower max_output_tokens", "use a cheaper model"] if self.spent_usd < self.limit_usd else []
        if self.needed_usd <= self.limit_usd:
            # A question that costs more than the whole budget is not cheaper later.
            if self.reserved_usd and self.needed_usd + self.spent_usd <= self.limit_usd:
                cures.append("wait until the running calls have ended")
            wait = "begin a new conversation"
            cures.append(f"wait until {self.resets_at:%Y-%m-%d %H:%M} UTC" if self.resets_at else wait)
        cures.append(f"raise {setting}")
        advice = f"{', '.join(cures[:-1])}, or {cures[-1]}" if len(cures) > 1 else cures[0]
        return (
            f"the budget of {scope} is {self.limit_usd:g} USD: {self.spent_usd:.4f} USD are spent, "
            f"{self.reserved_usd:.4f} USD reserved by running calls, and this question may cost {self.needed_usd:.4f} "
            f"USD. {advice[0].upper()}{advice[1:]}"
        )

    def details(self) -> dict[str, Any]:
        return {
            "budget": self.budget,
            "limit_usd": self.limit_usd,
            "spent_usd": self.spent_usd,
            "reserved_usd": self.reserved_usd,
            "needed_usd": self.needed_usd,
            "resets_at": None if self.resets_at is None else self.resets_at.isoformat(),
        }


BUDGETS = {
    "conversation": ("this conversation", "EXAI_BUDGETS__CONVERSATION_USD"),
    "day": ("this owner for today", "EXAI_BUDGETS__OWNER_DAY_USD"),
    "month": ("this owner for this month", "EXAI_BUDGETS__OWNER_MONTH_USD"),
}
"""By budget: its scope and its setting."""


class Unauthorized(RequestError):
    """The daemon does not accept the token of a client, or demands one."""

    code = "unauthorized"

    def __str__(self) -> str:
        return "token: is missing, expired or not accepted by the daemon. Give a token that the daemon accepts"


class NotConfigured(RequestError):
    """The call needs a part that is not configured; `cure` names the variables that enable it."""

    code = "not_configured"
    exit_status = 2

    def __init__(self, what: str, cure: str) -> None:
        super().__init__(what, cure)
        self.what, self.cure = what, cure

    def __str__(self) -> str:
        return f"{self.what} is not configured. {self.cure}"
