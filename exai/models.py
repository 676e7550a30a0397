"""The values that EXAI's components exchange: conversations, messages, completions, usage.

All are immutable. Times are aware datetimes in UTC. Sequence numbers (`seq`) start at 1, have no gaps and never
change; a conversation's `revision` counts its committed changes of any kind and never decreases.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, NamedTuple, NewType, Protocol

from exai.items import item_in

Owner = NewType("Owner", str)
ConversationId = NewType("ConversationId", str)
ContinuationId = NewType("ContinuationId", str)
TurnId = NewType("TurnId", str)
FileId = NewType("FileId", str)

LOCAL_OWNER = Owner("local")
MAX_OWNER_CHARS = 255

Role = Literal["system", "user", "assistant", "tool"]
TurnState = Literal["pending", "finished", "failed"]
Thinking = Literal["off", "low", "high", "max"]
Source = Literal["cache", "database"]
CacheUse = Literal["use", "refresh", "off"]
"""The use of the answer cache by a call: look up and keep the answer, only keep it, or neither."""

FILE_IDS = "file_ids"
"""The field of a message's metadata with the ids of its files."""

DERIVED_KINDS = frozenset({"finding", "verdict", "plan"})
"""Kinds of an assistant's messages that repeat parts of the answer after them, so that no model is sent them."""

PANEL_KINDS = frozenset({"opinion", "ranking"})
"""Kinds of the messages from which a consensus was made. Other models are sent only the consensus."""

PAGE_MESSAGES = 50
"""Maximum number of messages in the newest page, which is the part of a conversation that the cache holds."""

PAGE_BYTES = 2 * 1_048_576
"""Maximum size of a page's messages as JSON, above that of any answer. The cache holds at most half of it per
conversation, so that a cached page is never longer than the database's."""

MAX_PAGE_MESSAGES = 500


def is_owner_name(name: str) -> bool:
    """Return whether a configuration or a command may name an owner so."""
    return 0 < len(name) <= MAX_OWNER_CHARS and name.isprintable() and name == name.strip()


class Message(NamedTuple):
    """One stored message. A named tuple, not a dataclass: pages hold hundreds and are decoded on every read."""

    seq: int
    role: Role
    content: str
    created_at: datetime
    kind: str = "message"
    turn_id: str | None = None
    metadata: Mapping[str, Any] = {}
    key: str | None = None

    @property
    def item(self) -> str | None:
        """The caller's JSON text as it was given; None without one, or if it is large and was not put back."""
        return item_in(self.metadata)


@dataclass(frozen=True, slots=True)
class NewMessage:
    """A message before it is stored.

    A `key` that its conversation has already is not stored again. `created_at` None is the time of the statement; order
    is that of storing. `item` is a JSON text of the caller (`exai.items`), returned to the last character.
    """

    role: Role
    content: str
    kind: str = "message"
    metadata: Mapping[str, Any] = field(default_factory=dict)
    key: str | None = None
    created_at: datetime | None = None
    item: str | None = None


@dataclass(frozen=True, slots=True)
class PendingTurn:
    """A turn that a daemon is working on; `model` is None as long as its files are read."""

    tool: str
    model: str | None
    since: datetime


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
    expires_at: datetime | None = None
    deleted_at: datetime | None = None
    """Set only in lists of deleted conversations."""

    newest_kind: str | None = None
    """Kind of the newest message if it is the outcome of a turn; set only in lists."""

    pending: tuple[PendingTurn, ...] = ()
    """The running turns, oldest first, when this was read."""

    former_name: str | None = None
    """Its name before another conversation took that, or of the conversation from which it was cut."""

    cut_from: tuple[ConversationId, ...] = ()
    """Ids of the conversations from which a rewind cut its messages."""


class ConversationKey(NamedTuple):
    """The identity of a conversation: names are unique per owner."""

    owner: Owner
    continuation_id: ContinuationId


@dataclass(frozen=True, slots=True)
class Commit:
    """A committed change of one conversation, from `base_revision` to `revision`; equal if nothing was changed.

    `conversation` is the header. Its own revision is later than `revision` if a repeated request is answered with the
    revision of the first one. `added` holds the messages by which the revisions differ, None if the change was not an
    addition of messages. `is_listed` states that the list of conversations changed: one is new, gone or renamed.
    `is_repeated` states that an earlier request made the change. `server_epoch` is that of the statement.
    """

    conversation: Conversation
    base_revision: int
    revision: int
    server_epoch: str
    added: tuple[Message, ...] | None = None
    is_listed: bool = False
    is_repeated: bool = False

    @property
    def key(self) -> ConversationKey:
        """The identity of the changed conversation."""
        return ConversationKey(self.conversation.owner, self.conversation.continuation_id)


@dataclass(frozen=True, slots=True)
class ContentPart:
    """The part of its content that a message holds: from character `offset` on, out of `chars`."""

    offset: int
    chars: int


@dataclass(frozen=True, slots=True)
class Page:
    """Some consecutive messages of one conversation, oldest first, as of `conversation.revision`.

    `next_before_seq` is the cursor of the next older page, None if there is none. `stale_s` is None for an answer
    within the staleness bound, else the age of an answer served while the database could not be reached. `part` is
    set if the only message holds a part of its content.
    """

    conversation: Conversation
    messages: tuple[Message, ...]
    next_before_seq: int | None
    source: Source
    stale_s: float | None = None
    part: ContentPart | None = None


@dataclass(frozen=True, slots=True)
class FileSource:
    """From where a file was read: the path on the machine `machine`, and what the file on disk was at that time.

    `lines` is the range that was read, None for the whole file. Times are in nanoseconds since 1970.
    """

    path: str
    machine: str
    sha256: str
    size_bytes: int
    modified_ns: int
    read_ns: int
    lines: str | None = None


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file and its content as stored in the database; `created` is true if this call was the first to store it.

    `store` names the blob store that has the bytes, under `storage_path` if it is not the database. `encoding` is the
    encoding of the text, None if it is not yet determined. `source` is set if a daemon read the file from a disk.
    `seal` reads an encrypted content (`exai.encryption.contents`), whose stored form has the digest `stored_sha256`.
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
    storage_path: str | None = None
    source: FileSource | None = field(default=None, compare=False)
    seal: Any = field(default=None, compare=False)
    stored_sha256: str = field(default="", compare=False)

    @property
    def address(self) -> str:
        """The digest by which the database and the stores name the content."""
        return self.stored_sha256 or self.sha256


@dataclass(frozen=True, slots=True)
class Unused:
    """Contents in a store that no row refers to: their number and, where the store lists it, their size."""

    contents: int = 0
    size_bytes: int = 0

    def __add__(self, other: Unused) -> Unused:
        return Unused(self.contents + other.contents, self.size_bytes + other.size_bytes)


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one completion as the provider reported them; `output_tokens` includes `reasoning_tokens`.

    `cost_usd` is the price that the provider reported, None if it reports none.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cost_usd: Decimal | None = None


@dataclass(frozen=True, slots=True)
class PromptImage:
    """An image that is sent with a message."""

    media_type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Reasoning:
    """The reasoning behind an answer, as its provider takes it back: the name of the field, and the text."""

    provider: str
    field: str
    text: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """One message of the array that is sent to a model. Only a model that demands its reasoning back receives it."""

    role: Role
    content: str
    images: tuple[PromptImage, ...] = ()
    reasoning: Reasoning | None = None


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A request to a provider: the whole message array, oldest first, and options that the provider may honour."""

    model: str
    messages: Sequence[Prompt]
    max_output_tokens: int | None = None
    thinking: Thinking | None = None
    temperature: float | None = None
    web_search: bool = False


class WebSource(NamedTuple):
    """A page that a provider's web search found."""

    title: str
    url: str


@dataclass(frozen=True, slots=True)
class AnswerOrigin:
    """Where an answer of the answer cache comes from: when which model gave it.

    `question` is the one that it was given to, and `similarity` the cosine, if that was a similar one.
    """

    answered_at: datetime
    model: str
    similarity: float | None = None
    question: str | None = None


FinishReason = Literal["stop", "length", "content_filter", "tool_calls", "other"]


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer. `model` is the provider's name for the model it used; `request_id` is the provider's own.

    `is_partial` is true if the model may have produced more than `content`; `unread_events` counts events that could
    not be parsed, `is_refusal` is true if the model marked it as a refusal, and `notes` are sentences for the caller.
    `answered_by` is EXAI's name for the model, `instead_of` that of the model that was asked first and could not
    answer. `searches` counts searches of the web, `sources` are what they found, and `search_usd` is their price, None
    if it is not known.
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
    is_refusal: bool = False
    notes: tuple[str, ...] = ()
    answered_by: str | None = None
    instead_of: str | None = None
    sources: tuple[WebSource, ...] = ()
    searches: int = 0
    search_usd: Decimal | None = None
    origin: AnswerOrigin | None = None
    """Where the answer was first given, if it comes from the answer cache."""

    returned_reasoning: Reasoning | None = None
    """The reasoning, if the endpoint demands it back with later questions."""


@dataclass(frozen=True, slots=True)
class Delta:
    """A part of a streaming answer; either text may be empty. `note` states what is being waited for.

    `model` is set when another model than before is asked from now on.
    """

    content: str = ""
    reasoning: str = ""
    note: str = ""
    model: str = ""


OnDelta = Callable[[Delta], Awaitable[None]]


FindingState = Literal["ok", "warn", "fail", "off"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `exai doctor`: a part, its state, the details, and the cure if it is not `ok`."""

    part: str
    state: FindingState
    detail: str
    cure: str = ""


class Recorder(Protocol):
    """The interface by which every component records metrics; implemented by `exai.monitoring.metrics`.

    Names are Prometheus names without the `exai_` prefix. Calls never block and never raise.
    """

    def count(self, name: str, value: float = 1, /, **labels: str) -> None:
        """Add to a counter (`..._total`)."""

    def observe(self, name: str, /, *values: float, **labels: str) -> None:
        """Add observations to a histogram (`..._seconds`, `..._bytes`)."""

    def gauge(self, name: str, value: float, /, **labels: str) -> None:
        """Set a gauge."""
