"""Errors of the Redis client, which this package turns into cache misses and does not pass on.

Only `CacheDown` counts for the breaker. When a connection is lost, one of the waiting callers receives `CacheDown` and
the others `CacheLost`, so that one fault counts once, independent of the number of callers.
"""

from __future__ import annotations

from typing import Final

from exai.errors import CacheError

DEPENDENCY: Final = "cache"
REDIS: Final = "redis"

DOWN_CODES: Final = frozenset(
    {"LOADING", "BUSY", "MASTERDOWN", "CLUSTERDOWN", "NOAUTH", "WRONGPASS", "NOPERM", "NOREPLICAS"}
)
"""Error codes after which the next command would be answered the same way."""


class CacheAway(CacheError):
    """No reply was received; raised as `CacheDown` or `CacheLost`.

    `is_late` says that a time limit ended or that the breaker is open, so that a later attempt can succeed.
    """

    def __init__(self, problem: str, *, is_late: bool = False) -> None:
        super().__init__(DEPENDENCY, problem)
        self.is_late = is_late


class CacheDown(CacheAway):
    """The server is unreachable, does not reply, or refuses every command; the breaker counts it."""


class CacheLost(CacheAway):
    """As `CacheDown`, for a fault already counted for another caller, or if the server was not called."""


class CacheRefused(CacheError):
    """The server is up but refuses the command: out of memory, read-only, disk errors, or a moved slot."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(DEPENDENCY, f"answered {code}")
        self.reply_code, self.text = code, text


class ReplyError(Exception):
    """An error reply as it came off the wire; its first word is the protocol's error code."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.code = text.partition(" ")[0]

    @property
    def text(self) -> str:
        """The whole reply."""
        return str(self.args[0])
