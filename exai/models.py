"""The values that travel between EXAI's parts: conversations, messages, completions, usage.

All are immutable. Times are aware datetimes in UTC. Sequence numbers (`seq`) start at 1, have no holes and never
change; a conversation's `revision` counts its committed changes of any kind and never goes back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple, NewType, Protocol

Owner = NewType("Owner", str)
ConversationId = NewType("ConversationId", str)
ContinuationId = NewType("ContinuationId", str)
TurnId = NewType("TurnId", str)
FileId = NewType("FileId", str)

LOCAL_OWNER = Owner("local")

Role = Literal["system", "user", "assistant", "tool"]
TurnState = Literal["pending", "finished", "failed"]
Thinking = Literal["off", "low", "high", "max"]
Source = Literal["cache", "database"]

FILE_IDS = "file_ids"
"""The field of a message's metadata that says which files were given with it."""

PAGE_MESSAGES = 50
"""Messages in the newest page, which is what the cache holds of a conversation."""

PAGE_BYTES = 2 * 1_048_576
"""Of a page's messages as JSON, more than any answer has. What the cache holds of a conversation is half of it at most,
so that a page in there is never longer than the database's."""

MAX_PAGE_MESSAGES = 500


class Message(NamedTuple):
    """One stored message. A named tuple, not a dataclass: pages hold hundreds and are decoded on every read."""

    seq: int
    role: Role
    content: str
    created_at: datetime
    kind: str = "message"
    turn_id: str | None = None
    metadata: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class NewMessage:
    """A message before it is stored."""

    role: Role
    content: str
    kind: str = "message"
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation without its messages."""

    id: ConversationId
    continuation_id: ContinuationId
    owner: Owner
    title: str | None
    metadata: Mapping[str, Any]
    last_seq: int
    revision: int
    created_at: datetime
    updated_at: datetime
    tags: tuple[str, ...] = ()
    parent_id: ConversationId | None = None
    parent_seq: int | None = None
    deleted_at: datetime | None = None
    """Told by lists of deleted conversations; everywhere else a conversation is not deleted."""


@dataclass(frozen=True, slots=True)
class ContentPart:
    """Which part of its content a message holds: from character `offset` on, of `chars` that it has."""

    offset: int
    chars: int


@dataclass(frozen=True, slots=True)
class Page:
    """Some consecutive messages of one conversation, oldest first, as of `conversation.revision`.

    `next_before_seq` is the cursor of the next older page, None when there is none. `stale_s` is None for an answer
    within the staleness bound, else the age of an answer served while the database could not be reached. `part` is
    there when the only message holds a part of its content.
    """

    conversation: Conversation
    messages: tuple[Message, ...]
    next_before_seq: int | None
    source: Source
    stale_s: float | None = None
    part: ContentPart | None = None


@dataclass(frozen=True, slots=True)
class Appended:
    """What an append did; `duplicate` is true when the request key had been served before."""

    continuation_id: ContinuationId
    first_seq: int
    last_seq: int
    revision: int
    duplicate: bool


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file and its content as the database knows them; `created` is true when this call was the first to store it.

    `store` names the blob store that has the bytes, `encoding` how they are read as text: None where that has not been
    looked at yet.
    """

    id: FileId
    sha256: str
    size_bytes: int
    media_type: str
    name: str
    created_at: datetime
    created: bool = False
    store: str = "postgres"
    encoding: str | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one completion as the provider counted them; `output_tokens` includes `reasoning_tokens`."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Prompt:
    """One message of the array a model is asked with."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """What a provider is asked: the whole message array, oldest first, and the options it may honour."""

    model: str
    messages: Sequence[Prompt]
    max_output_tokens: int | None = None
    thinking: Thinking | None = None
    temperature: float | None = None


FinishReason = Literal["stop", "length", "content_filter", "tool_calls", "other"]


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer. `model` is what the provider says it used; `request_id` is the provider's own.

    `is_partial` is true when the model may have said more than `content` holds; `unread_events` counts what could not
    be read, and `notes` has a sentence for each thing the caller should know.
    """

    content: str
    reasoning: str
    finish_reason: FinishReason
    usage: Usage
    provider: str
    model: str
    request_id: str | None
    duration_ms: float
    attempts: int = 1
    is_partial: bool = False
    unread_events: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of an answer while it streams; either part may be empty. `note` says what is waited for meanwhile."""

    content: str = ""
    reasoning: str = ""
    note: str = ""


OnDelta = Callable[[Delta], Awaitable[None]]


FindingState = Literal["ok", "warn", "fail", "off"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `exai doctor`: a part, its state, what was seen, and what to do when it is not `ok`."""

    part: str
    state: FindingState
    detail: str
    cure: str = ""


@dataclass(frozen=True, slots=True)
class Started:
    """What a daemon tells whoever started it: where it listens and where its data lives, without passwords."""

    host: str
    port: int
    database: str
    cache: str
    files: str
    providers: tuple[str, ...]
    notes: tuple[str, ...] = ()


class Recorder(Protocol):
    """Where every part reports what it did; the one implementation is `exai.monitoring.metrics`.

    Names are Prometheus names without the `exai_` prefix. Calls never block and never raise.
    """

    def count(self, name: str, value: float = 1, /, **labels: str) -> None:
        """Add to a counter (`..._total`)."""

    def observe(self, name: str, /, *values: float, **labels: str) -> None:
        """Put values into a histogram (`..._seconds`, `..._bytes`)."""

    def gauge(self, name: str, value: float, /, **labels: str) -> None:
        """Set a gauge."""
