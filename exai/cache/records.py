"""Values passed to and returned by the conversation cache: immutable, without types of the Redis client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from exai.models import PAGE_MESSAGES, ContentPart, Conversation, Message

CacheState = Literal["off", "ok", "unreconciled", "down"]


@dataclass(frozen=True, slots=True)
class Loaded:
    """The newest page as returned by one database statement, oldest first; `complete` if no message is older.

    `page` holds the messages in the cache's encoding if the database has encoded them. `part` is set if the only
    message holds a part of its content.
    """

    conversation: Conversation
    messages: tuple[Message, ...]
    complete: bool
    server_epoch: str
    page: bytes | None = None
    part: ContentPart | None = None

    @property
    def is_whole(self) -> bool:
        """Whether this is the complete newest page, not cut by a byte budget."""
        return self.part is None and (self.complete or len(self.messages) >= PAGE_MESSAGES)


@dataclass(frozen=True, slots=True)
class Hit:
    """The newest page from the cache; `age_s` is the time since its fill or its watermark, whichever is later."""

    conversation: Conversation
    messages: tuple[Message, ...]
    complete: bool
    age_s: float

    @property
    def revision(self) -> int:
        """The revision of the conversation that the page shows."""
        return self.conversation.revision


@dataclass(frozen=True, slots=True)
class Miss:
    """No entry, and the lease is granted: read the database, then pass it to `fill` or `apply`, or `release` it."""

    token: bytes
    generation: bytes
    asof_us: int


@dataclass(frozen=True, slots=True)
class Wait:
    """No entry, and another reader holds the lease."""

    token: bytes


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The cache cannot answer: read the database and store nothing."""

    reason: Literal["off", "down", "bypassed"]


CacheLookup: TypeAlias = Hit | Miss | Wait | Unavailable
Load: TypeAlias = Callable[[], Awaitable[Loaded]]


@dataclass(frozen=True, slots=True)
class PreloadedPage:
    """A lease held by a writer, and the newest page that its statement returned together with the change."""

    miss: Miss
    messages: tuple[Message, ...]
    complete: bool


@dataclass(frozen=True, slots=True)
class CacheStatus:
    """State of the cache for health and doctor. `clock_ahead_s` is Redis's time minus ours. Unknown values are None.

    `is_late`: it is down because a time limit ended, not because it refused.
    """

    state: CacheState
    max_staleness_s: float
    breaker: str = "closed"
    latency_s: float | None = None
    clock_ahead_s: float | None = None
    watermark_age_s: float | None = None
    server: str | None = None
    problem: str | None = None
    is_late: bool = False
