"""What can go wrong between us and Redis; none of it leaves this package, where every fault becomes a miss.

`CacheDown` alone is evidence for the breaker: a lost connection is reported as such to one of the callers that were
waiting on it and as `CacheLost` to the others, so that one fault counts once however many callers it hits.
"""

from __future__ import annotations

from typing import Final

from exai.errors import CacheError

REDIS: Final = "redis"

DOWN_CODES: Final = frozenset(
    {"LOADING", "BUSY", "MASTERDOWN", "CLUSTERDOWN", "NOAUTH", "WRONGPASS", "NOPERM", "NOREPLICAS"}
)
"""Error codes after which the next command would be answered the same way."""


class CacheAway(CacheError):
    """No answer was to be had; raised as one of the two below."""

    def __init__(self, problem: str) -> None:
        super().__init__(REDIS, problem)


class CacheDown(CacheAway):
    """The server cannot be reached, does not answer, or refuses everything; the breaker counts it."""


class CacheLost(CacheAway):
    """The same, where another caller has reported it, or where the server was not asked."""


class CacheRefused(CacheError):
    """The server is well but will not do this: out of memory, read-only, cannot write to its disk, moved."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(REDIS, f"answered {code}")
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
