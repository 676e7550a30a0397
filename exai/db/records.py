"""Arguments and results of the conversation statements: immutable, without types of the driver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, NamedTuple

import orjson

from exai.db.patches import MetadataPatch, RecordPatch
from exai.models import (
    Commit,
    ContentPart,
    ContinuationId,
    Conversation,
    ConversationId,
    FileId,
    FileSource,
    Message,
    NewMessage,
    Owner,
    TurnId,
    Usage,
)

BegunStatus = Literal[
    "started",
    "resumed",
    "finished",
    "pending",
    "ended",
    "cut",
    "conflict_key",
    "conflict_revision",
    "not_found",
    "file_not_found",
]
FinishedStatus = Literal["finished", "duplicate", "superseded", "stale", "file_not_found"]
AppendStatus = Literal[
    "appended",
    "duplicate",
    "conflict_key",
    "conflict_revision",
    "moved",
    "too_large",
    "not_found",
    "deleted",
    "file_not_found",
]


@dataclass(frozen=True, slots=True)
class CachedRange:
    """Messages known from the cache: `low_seq` to `high_seq` as of `revision`, with `size_bytes` of content."""

    revision: int
    low_seq: int
    high_seq: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class StoredPage:
    """Consecutive messages, oldest first; `server_epoch` is that of the snapshot.

    `page` holds the messages in the cache's encoding if they were read in it. `has_files` is set on the first page of a
    forward read. `part` is set if the only message holds a part of its content.
    """

    conversation: Conversation
    messages: tuple[Message, ...]
    has_older: bool
    server_epoch: str
    page: bytes | None = None
    has_files: bool = False
    part: ContentPart | None = None


class FoundMessage(NamedTuple):
    """A message that was found by its key, and the conversation in which it was found."""

    continuation_id: ContinuationId
    message: Message


@dataclass(frozen=True, slots=True)
class FilesAlong:
    """Files that a statement stores before its messages, as `exai.put_files_v1` takes them.

    Those whose bytes are neither known nor among `data` are not stored, so that the statement refuses their ids.
    """

    store: str
    described: str
    data: bytes


@dataclass(frozen=True, slots=True)
class AppendStart:
    """An append. If `continuation_id` is None a conversation is created with id and name `new_conversation_id`.

    `counts_steps` asks for the number of this append among those of its tool in the conversation. `sources` says from
    where files were read; `along` are files that the same statement stores.
    """

    owner: Owner
    continuation_id: ContinuationId | None
    new_conversation_id: ConversationId
    turn_id: TurnId
    request_key: str
    request_hash: str
    tool: str
    messages: Sequence[NewMessage]
    title: str | None = None
    file_ids: Sequence[FileId] = ()
    sources: Mapping[FileId, FileSource] = field(default_factory=dict)
    along: FilesAlong | None = None
    expected_revision: int | None = None
    counts_steps: bool = False
    creates: bool = False
    made: Mapping[str, Any] = field(default_factory=dict)
    updated_at: datetime | None = None
    patch: MetadataPatch | None = None
    also: Sequence[RecordPatch] = ()
    metadata_bytes: int = 0

    @property
    def header(self) -> str | None:
        """The JSON document of facts that most appends do not have, None without any."""
        facts = {**self.made, "updated_at": self.updated_at} if self.updated_at else {**self.made}
        if self.patch is not None:
            facts["patch"] = self.patch.document()
        if self.also:
            facts["also"] = [each.document() for each in self.also]
        if self.patch is not None or self.also:
            facts["most"] = self.metadata_bytes
        return orjson.dumps({**facts, "create": self.creates}).decode() if facts or self.creates else None


@dataclass(frozen=True, slots=True)
class AppendResult:
    """The result of an append. `commit` and the numbers are set for `appended` and `duplicate`.

    The numbers are None if no message was new. `seqs` are those of all given messages, None if all were new.

    The commit's revision is the one created by this append, for a duplicate by the first one. `current_revision` is the
    conversation's for `conflict_revision`. `missing` lists the files of `file_not_found`, or names the other
    conversation whose patch was refused. `step` is set on request. `records` are the commits of other conversations.
    """

    status: AppendStatus
    commit: Commit | None
    first_seq: int | None
    last_seq: int | None
    current_revision: int = 0
    missing: str | None = None
    step: int | None = None
    seqs: tuple[int, ...] | None = None
    made: bool = False
    records: tuple[Commit, ...] = ()


@dataclass(frozen=True, slots=True)
class BudgetLimits:
    """Budgets for one conversation, and for an owner's turns of a day and of a month in UTC; None if unset."""

    conversation_usd: float | None = None
    day_usd: float | None = None
    month_usd: float | None = None

    @property
    def are_set(self) -> bool:
        """Return whether there is a budget."""
        return (self.conversation_usd, self.day_usd, self.month_usd) != (None, None, None)

    def as_json(self, **claimed: Decimal) -> str:
        """Return the limits as statements take them; amounts are texts, so that none is rounded."""
        amounts: dict[str, Decimal | float | None] = {
            "conversation_usd": self.conversation_usd,
            "day_usd": self.day_usd,
            "month_usd": self.month_usd,
            **claimed,
        }
        return orjson.dumps({name: None if each is None else str(each) for name, each in amounts.items()}).decode()


@dataclass(frozen=True, slots=True)
class BudgetClaim:
    """The cost that a turn reserves for its prompt, for its answer, and for each byte of history."""

    prompt_usd: Decimal
    answer_usd: Decimal
    byte_usd: Decimal
    limits: BudgetLimits

    def as_json(self) -> str:
        """Return the claim as the statement takes it."""
        return self.limits.as_json(prompt_usd=self.prompt_usd, answer_usd=self.answer_usd, byte_usd=self.byte_usd)


@dataclass(frozen=True, slots=True)
class TurnStart:
    """A turn to begin. `budget_bytes` limits the returned history, from which messages in `known` are omitted.

    `counts_steps` asks for the number of this turn among those of its tool in the conversation.
    `claim` is the cost to reserve; without it no budget is checked. `sources` says from where files were read;
    `along` are files that the same statement stores.
    """

    owner: Owner
    continuation_id: ContinuationId | None
    new_conversation_id: ConversationId
    turn_id: TurnId
    request_key: str
    request_hash: str
    tool: str
    provider: str | None
    model: str | None
    messages: Sequence[NewMessage]
    lease_s: float
    budget_bytes: int
    title: str | None = None
    file_ids: Sequence[FileId] = ()
    sources: Mapping[FileId, FileSource] = field(default_factory=dict)
    along: FilesAlong | None = None
    expected_revision: int | None = None
    known: CachedRange | None = None
    counts_steps: bool = False
    claim: BudgetClaim | None = None


@dataclass(frozen=True, slots=True)
class StoredReply:
    """The answer of a finished turn; `seq` is None if it stored no message."""

    content: str
    seq: int | None
    model: str | None
    provider: str | None
    usage: Usage
    metadata: Mapping[str, Any]
    cost_usd: Decimal | None
    message: Message | None


@dataclass(frozen=True, slots=True)
class TurnBegun:
    """The result of beginning a turn. `commit` is set for `started`, `resumed`, `finished` and `pending`.

    Only a turn that `started` changed something; the commit of a `resumed` one also holds its question. `history` is
    oldest first and ends before the question. `full` means that it is complete within the budget, so that
    cached messages must be ignored. `system` is the newest system message older than all returned or known messages.
    `error` is the failure of the earlier attempt of a resumed turn, if one was recorded.
    """

    status: BegunStatus
    commit: Commit | None
    turn_id: TurnId
    attempt: int
    first_seq: int | None
    last_seq: int | None
    history: tuple[Message, ...]
    full: bool
    system: Message | None
    current_revision: int = 0
    reply: StoredReply | None = None
    error: Mapping[str, Any] | None = None
    missing: str | None = None
    lease_left_s: float | None = None
    started_at: datetime | None = None
    step: int | None = None


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """The outcome of one attempt. `messages` is the reply, or the partial text of a failure, or nothing.

    `file_ids` are files that hold parts of these messages, of which `along` are stored by the same statement.

    `origin` is where an answer of the answer cache was given first: it is stored only if that is still there.

    `is_estimated` states that usage and cost are EXAI's estimate, because the provider did not report them. `took_s` is
    for the metrics only.
    """

    owner: Owner
    turn_id: TurnId
    attempt: int
    state: Literal["finished", "failed"]
    messages: Sequence[NewMessage]
    model: str | None = None
    usage: Usage | None = None
    cost_usd: Decimal | float | None = None
    is_estimated: bool = False
    error: Mapping[str, Any] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    took_s: float | None = None
    origin: tuple[ConversationId, int, TurnId] | None = None
    file_ids: Sequence[FileId] = ()
    along: FilesAlong | None = None


@dataclass(frozen=True, slots=True)
class TurnFinished:
    """The result of ending an attempt; `commit` is None if it was `superseded` or lacks files, and changed nothing.

    `seq` is the number of the last stored message, None if none was stored.
    """

    status: FinishedStatus
    commit: Commit | None
    seq: int | None


@dataclass(frozen=True, slots=True)
class ConversationChange:
    """A changed conversation, or thread of checkpoints; `revision` is None if it was removed.

    `is_listed` states that the list of conversations changed: it is new, or one of its last two changes was an edit.
    """

    owner: Owner
    continuation_id: ContinuationId
    revision: int | None
    is_listed: bool
    is_thread: bool = False


@dataclass(frozen=True, slots=True)
class Changes:
    """Changes since a snapshot, seen by a newer one with `xmin`, the latest first.

    `truncated` means that there were more than the limit.
    """

    xmin: str
    server_epoch: str
    changed: tuple[ConversationChange, ...]
    truncated: bool
