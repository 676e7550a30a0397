"""All errors that EXAI raises deliberately, as this tree shows them.

    ExaiError
    |-- ConfigError              a setting is wrong, missing or unknown; the process does not start
    |-- StartupError             a port, directory or embedded server cannot be had; the process does not start
        |-- RequestError             avoidable with better arguments; the message tells the caller (a model) how
    |   |-- InvalidArgument
    |   |-- NotFound
    |   |-- Conflict             another write came first, or a request key was used for other content
    |   `-- NotConfigured        the call needs something that is switched off
    |-- DependencyError          Postgres, Redis, a provider or the blob store failed
    |   |-- DatabaseError
    |   |   |-- DatabaseUnavailable
    |   |   |-- DatabaseBusy     timed out, locked, or out of connections; nothing was written
    |   |   |-- StorageFull
    |   |   |-- OutcomeUnknown   the write may or may not have happened; repeat it with the same key
    |   |   `-- SchemaMismatch   the database is not at this release's revision
    |   |-- CacheError           stops inside exai.cache; a caller only ever sees a miss
    |   |-- BlobError
    |   `-- ProviderError
    |       |-- ProviderRefused  4xx: the request is wrong for this model, or its content was refused
    |       |   `-- ProviderTooLong  the prompt does not fit into the model's window
    |       |-- ProviderAuthFailed
    |       |-- ProviderLimited  429: rate, quota or balance
    |       |-- ProviderUnavailable  5xx, an open breaker
    |       |   `-- ProviderUnreachable  no connection to the endpoint: none of its models can be asked
    |       `-- ProviderBroken   a reply that cannot be used: broken stream, not SSE, no finish marker
    |-- DeadlineExceeded
    |-- Overloaded               a limit of this process; try again shortly
    `-- ShuttingDown

Constructors take facts and `__str__` makes the sentence, which states the cure if there is one.
`code` is stable and sent to clients; `retryable` states whether the very same request may succeed later.
Texts never hold message content, keys or passwords.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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


class ConfigError(ExaiError):
    """A setting cannot be used. `setting` is the variable's name as written, or the correct one.

    `also` holds further invalid settings from the same reading, so that all of them can be corrected together.
    """

    code = "config"
    exit_status = 2

    def __init__(self, setting: str, problem: str, cure: str, *, also: Sequence[ConfigError] = ()) -> None:
        super().__init__(setting, problem, cure)
        self.setting, self.problem, self.cure, self.also = setting, problem, cure, tuple(also)

    def __str__(self) -> str:
        sentence = f"{self.setting}: {self.problem}. {self.cure}"
        return "\n".join([sentence, *(str(other) for other in self.also)])


class StartupError(ExaiError):
    """A resource that the process needs before it can serve is unavailable."""

    code = "startup"
    exit_status = 3

    def __init__(self, what: str, problem: str, cure: str) -> None:
        super().__init__(what, problem, cure)
        self.what, self.problem, self.cure = what, problem, cure

    def __str__(self) -> str:
        return f"{self.what}: {self.problem}. {self.cure}"


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
    """

    code = "conflict"

    def __init__(self, reason: str, problem: str, cure: str, **facts: Any) -> None:
        super().__init__(reason, problem, cure)
        self.reason, self.problem, self.cure, self.facts = reason, problem, cure, facts

    def __str__(self) -> str:
        return f"{self.problem}. {self.cure}"

    def details(self) -> dict[str, Any]:
        return {"reason": self.reason, **self.facts}


class NotConfigured(RequestError):
    """The call needs a part that is not configured; `cure` names the variables that enable it."""

    code = "not_configured"
    exit_status = 2

    def __init__(self, what: str, cure: str) -> None:
        super().__init__(what, cure)
        self.what, self.cure = what, cure

    def __str__(self) -> str:
        return f"{self.what} is not configured. {self.cure}"


class DependencyError(ExaiError):
    """Something EXAI depends on failed; `dependency` names it as health and metrics do."""

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


class SchemaMismatch(DatabaseError):
    """The database's revision is not the one this release was written for."""

    code = "schema_mismatch"
    exit_status = 4


class CacheError(DependencyError):
    """Redis failed; never leaves `exai.cache`, where it becomes a miss and a counter."""

    code = "cache"


class BlobError(DependencyError):
    """The blob store failed."""

    code = "blob"


class ProviderError(DependencyError):
    """A model provider failed. `request_id` is the provider's own, for its support; `status` is HTTP's, or None."""

    code = "provider"

    def __init__(
        self, provider: str, problem: str, cure: str = "", *, status: int | None = None, request_id: str | None = None
    ) -> None:
        super().__init__(provider, problem, cure)
        self.provider, self.status, self.request_id = provider, status, request_id

    def details(self) -> dict[str, Any]:
        facts = {"provider": self.provider, "status": self.status, "request_id": self.request_id}
        return {name: value for name, value in facts.items() if value is not None}


class ProviderRefused(ProviderError):
    """The provider refuses this request as it stands."""

    code = "provider_refused"
    retryable = False


class ProviderTooLong(ProviderRefused):
    """The prompt is too long. `limit_tokens` and `sent_tokens` are the provider's numbers, None if it gave none."""

    code = "provider_too_long"

    def __init__(
        self,
        provider: str,
        problem: str,
        cure: str = "",
        *,
        status: int | None = None,
        request_id: str | None = None,
        limit_tokens: int | None = None,
        sent_tokens: int | None = None,
    ) -> None:
        super().__init__(provider, problem, cure, status=status, request_id=request_id)
        self.limit_tokens, self.sent_tokens = limit_tokens, sent_tokens

    def details(self) -> dict[str, Any]:
        facts = {"limit_tokens": self.limit_tokens, "sent_tokens": self.sent_tokens}
        return super().details() | {name: value for name, value in facts.items() if value is not None}


class ProviderAuthFailed(ProviderError):
    """The key was not accepted."""

    code = "provider_auth_failed"
    retryable = False


class ProviderLimited(ProviderError):
    """Too many requests, or no quota or balance left. `retry_after_s` is the provider's value, or None."""

    code = "provider_limited"

    def __init__(
        self,
        provider: str,
        problem: str,
        cure: str = "",
        *,
        status: int | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
        exhausted: bool = False,
    ) -> None:
        super().__init__(provider, problem, cure, status=status, request_id=request_id)
        self.retry_after_s, self.exhausted = retry_after_s, exhausted

    def details(self) -> dict[str, Any]:
        facts = super().details()
        if self.retry_after_s is not None:
            facts["retry_after_s"] = self.retry_after_s
        return facts


class ProviderUnavailable(ProviderError):
    """The provider cannot be reached or reports that it is down."""

    code = "provider_unavailable"


class ProviderUnreachable(ProviderUnavailable):
    """No connection to the provider could be made."""


class ProviderBroken(ProviderError):
    """The provider's reply ended early or violates the protocol. `partial` is the text received so far."""

    code = "provider_broken"

    def __init__(
        self,
        provider: str,
        problem: str,
        cure: str = "",
        *,
        status: int | None = None,
        request_id: str | None = None,
        partial: str = "",
    ) -> None:
        super().__init__(provider, problem, cure, status=status, request_id=request_id)
        self.partial = partial


class DeadlineExceeded(ExaiError):
    """The request's deadline passed while waiting for `what`."""

    code = "deadline_exceeded"
    retryable = True

    def __init__(self, what: str, limit_s: float | None = None, *, partial: str = "") -> None:
        super().__init__(what, limit_s)
        self.what, self.limit_s, self.partial = what, limit_s, partial

    def __str__(self) -> str:
        limit = f" after {self.limit_s:g} s" if self.limit_s is not None else ""
        return f"no answer from {self.what}{limit}. What was stored before is kept; call again to continue"

    def details(self) -> dict[str, Any]:
        return {"waiting_for": self.what}


class Overloaded(ExaiError):
    """A limit of this process is reached; `limit` names it. `retry_after_s` is known for rates only.

    `cure` names what helps other than trying again.
    """

    code = "overloaded"
    retryable = True

    def __init__(self, limit: str, value: float, *, retry_after_s: float | None = None, cure: str = "") -> None:
        super().__init__(limit, value)
        self.limit, self.value, self.retry_after_s, self.cure = limit, value, retry_after_s, cure

    def __str__(self) -> str:
        when = "shortly" if self.retry_after_s is None else f"in {math.ceil(self.retry_after_s * 10) / 10:g} s"
        return f"the limit {self.limit} ({self.value}) is reached. {self.cure or f'Try again {when}'}"

    def details(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"limit": self.limit, "value": self.value}
        return facts if self.retry_after_s is None else {**facts, "retry_after_s": round(self.retry_after_s, 3)}


class ShuttingDown(ExaiError):
    """The daemon is stopping; another daemon, or this one after its next start, can answer."""

    code = "shutting_down"
    retryable = True

    def __str__(self) -> str:
        return "the daemon is shutting down. Call again after it has restarted, with the same idempotency key if any"
