"""The base of all errors, and the form in which they quote a caller's values."""

from __future__ import annotations

from typing import Any, ClassVar

MAX_SHOWN_CHARS = 200
"""Maximum length of a caller's value in an error; the value may have any length."""

MAX_SENTENCE_CHARS = 2_000
"""Maximum length of each part of an error about an argument."""


def shown(value: object) -> str:
    """Return a caller's value as quoted in errors."""
    if isinstance(value, str) and len(value) > MAX_SHOWN_CHARS:
        return f"{value[:MAX_SHOWN_CHARS]!r}..."
    return bounded(repr(value), MAX_SHOWN_CHARS)


def bounded(text: str, chars: int) -> str:
    """Return a text, or its beginning if it is longer than `chars`."""
    return text if len(text) <= chars else f"{text[:chars]}..."


class ExaiError(Exception):
    """Base of all errors of this package.

    `continuation_id` names a conversation in which something was stored before the error; `notes` describe it.
    """

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False
    exit_status: ClassVar[int] = 1
    continuation_id: str | None = None
    notes: tuple[str, ...] = ()

    def details(self) -> dict[str, Any]:
        """Return the facts for programs, JSON-ready; the sentence is for people and models."""
        return {}

    def report(self) -> dict[str, Any]:
        """Return everything that is shown of the error, for programs, people and models."""
        facts = {"code": self.code, "message": str(self), "retryable": self.retryable, **self.details()}
        if self.continuation_id is not None:
            facts["continuation_id"] = self.continuation_id
        return {**facts, "notes": list(self.notes)} if self.notes else facts
