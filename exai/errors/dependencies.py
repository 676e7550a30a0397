"""Errors of the database, the cache and the blob store."""

from __future__ import annotations

from typing import Any

from exai.errors.base import ExaiError


class DependencyError(ExaiError):
    """Something EXAI depends on failed; `dependency` is `database`, `cache`, `files` or a provider, as in health."""

    code = "dependency"
    retryable = True
    exit_status = 3

    def __init__(self, dependency: str, problem: str, cure: str = "", **facts: Any) -> None:
        super().__init__(dependency, problem, cure)
        self.dependency, self.problem, self.cure, self.facts = dependency, problem, cure, facts

    def __str__(self) -> str:
        sentence = f"{self.dependency}: {self.problem}"
        return f"{sentence}. {self.cure}" if self.cure else sentence

    def details(self) -> dict[str, Any]:
        return {"dependency": self.dependency, **self.facts}


class DatabaseError(DependencyError):
    """Postgres answered with an error that is not the caller's: a defect here or a broken schema."""

    code = "database"
    retryable = False


class DatabaseUnavailable(DatabaseError):
    """No connection could be made, or it was refused; nothing was written."""

    code = "database_unavailable"
    retryable = True


class DatabaseBusy(DatabaseError):
    """A lock, statement or pool limit was reached; nothing was written."""

    code = "database_busy"
    retryable = True


class StorageFull(DatabaseError):
    """The database's disk is full; reads still work."""

    code = "storage_full"
    retryable = True


class OutcomeUnknown(DatabaseError):
    """The connection was lost after the statement was sent. Repeat the request with the same idempotency key."""

    code = "outcome_unknown"
    retryable = True


class AnswerNotStored(DatabaseError):
    """An answer of a model, already paid for, could not be stored; the caller receives it once, with this error."""

    code = "answer_not_stored"
    retryable = True

    def __init__(self, problem: str, content: str, continuation_id: str) -> None:
        super().__init__(
            "database",
            f"the model answered, but the answer could not be stored ({problem})",
            "It is in this error's content and nowhere else; append it to the conversation to keep it",
        )
        self.content, self.continuation_id = content, continuation_id

    def details(self) -> dict[str, Any]:
        return {**super().details(), "content": self.content}


class ContentUnreadable(DatabaseError):
    """Stored content could not be decrypted; `field` and `where` name it."""

    code = "unreadable"

    def __init__(self, field: str, reason: str, cure: str, *, where: str = "") -> None:
        super().__init__(
            "database",
            f"{field} of {where} cannot be read: {reason}" if where else f"{field} cannot be read: {reason}",
            cure,
        )
        self.field, self.reason, self.where = field, reason, where

    def details(self) -> dict[str, Any]:
        return {"field": self.field, "reason": self.reason, "cure": self.cure}


class SchemaMismatch(DatabaseError):
    """The database's revision is not the one this release was written for."""

    code = "schema_mismatch"
    exit_status = 4


class DaemonUnavailable(DependencyError):
    """No daemon answered a client, or the answer was not one of a daemon; nothing was written."""

    code = "daemon_unavailable"


class CacheError(DependencyError):
    """Redis failed; never leaves `exai.cache`, where it becomes a miss and a counter."""

    code = "cache"


class BlobError(DependencyError):
    """The blob store failed."""

    code = "blob"
