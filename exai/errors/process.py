"""Errors of this process: it cannot start, is stopping, or has reached a limit or a deadline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from exai.errors.base import ExaiError


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
