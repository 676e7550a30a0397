"""What the cache of conversations is given and what it answers; all of it immutable and without anything of Redis."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from exai.models import PAGE_MESSAGES, Conversation, Message, Part

State = Literal["off", "ok", "unlicensed", "down"]


@dataclass(frozen=True, slots=True)
class Loaded:
    """The newest page as one database statement returned it, oldest first; `complete` when nothing is older.

    `page` is the messages as they are cached, where the database has encoded them already. `part` is there when the
    only message holds a part of its content.
    """

    conversation: Conversation
    messages: tuple[Message, ...]
    complete: bool
    inc: str
    page: bytes | None = None
    part: Part | None = None

    @property
    def is_whole(self) -> bool:
        """Whether it is the newest page, and not what of it could be read at once."""
        return self.part is None and (self.complete or len(self.messages) >= PAGE_MESSAGES)


@dataclass(frozen=True, slots=True)
class Hit:
    """The newest page as it is cached; `age_s` is the time since something last vouched for it."""

    conversation: Conversation
    messages: tuple[Message, ...]
    complete: bool
    age_s: float

    @property
    def revision(self) -> int:
        """The conversation's revision that this page is of."""
        return self.conversation.revision


@dataclass(frozen=True, slots=True)
class Miss:
    """Nothing cached, and the lease is ours: read the database, then `fill` or `apply` with it, or `release` it."""

    token: bytes
    generation: bytes
    asof_us: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing cached, and the lease is somebody else's."""

    token: bytes


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Nothing can be said: read the database, store nothing."""

    reason: Literal["off", "down", "bypassed"]


Found: TypeAlias = Hit | Miss | Wait | Unavailable
Load: TypeAlias = Callable[[], Awaitable[Loaded]]


@dataclass(frozen=True, slots=True)
class Warm:
    """A writer's own lease, and the newest page that its statement returned together with the change."""

    miss: Miss
    messages: tuple[Message, ...]
    complete: bool


@dataclass(frozen=True, slots=True)
class CacheStatus:
    """For health and doctor. `clock_ahead_s` is Redis's clock less ours; None is what could not be seen."""

    state: State
    bound_s: float
    breaker: str = "closed"
    latency_s: float | None = None
    clock_ahead_s: float | None = None
    licence_age_s: float | None = None
    server: str | None = None
    problem: str | None = None
