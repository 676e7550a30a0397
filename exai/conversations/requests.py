"""Requests to the conversation service and their results."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from typing import Any, get_args

from exai.conversations.titles import opening
from exai.db.patches import MetadataPatch, RecordPatch
from exai.errors import InvalidArgument, shown
from exai.files.paths import MAX_PATH_CHARS
from exai.files.pieces import Piece, Taken
from exai.files.sources import ChangedFile
from exai.models import (
    FILE_IDS,
    AnswerOrigin,
    CacheUse,
    Completion,
    ContinuationId,
    Conversation,
    FileId,
    FileSource,
    FinishReason,
    Message,
    NewMessage,
    Owner,
    Thinking,
    TurnId,
    Usage,
    WebSource,
)
from exai.settings.load import LimitSettings
from exai.validation import (
    MAX_ALSO,
    MAX_CONTINUATION_CHARS,
    MAX_KEY_CHARS,
    MAX_KIND_CHARS,
    MAX_LIST,
    MAX_MODEL_CHARS,
    MAX_TITLE_CHARS,
    check_choice,
    check_file_ids,
    check_flag,
    check_items,
    check_json,
    check_list,
    check_messages,
    check_name,
    check_not_blank,
    check_optional_name,
    check_optional_number,
    check_owner,
    check_revision_of,
    check_tags,
    check_text,
    check_time,
)


@dataclass(frozen=True, slots=True)
class Guidance:
    """How a tool other than `chat` runs its turn: the instructions for the model, and the rows beside the question.

    `instructions` are those that the question is sent with: its metadata, or that which `select` returns, names them.
    `preceding` are stored before the question, whose kind is `kind`; `read_answer` makes the rows that are stored
    before the answer. `select` chooses what the model is shown of the history. `effort` is used if the model supports
    it and the request names none. `facts` are stored with the outcome and returned with it. `identity` is what a
    repetition with the same key must have in common.
    """

    instructions: str
    identity: tuple[Any, ...]
    preceding: tuple[NewMessage, ...] = ()
    kind: str = "step"
    metadata: Mapping[str, Any] = field(default_factory=dict)
    effort: Thinking | None = None
    read_answer: Callable[[Completion], Sequence[NewMessage]] | None = None
    select: Callable[[Sequence[Message]], Sequence[Message]] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One question to a model, in a new conversation or a continued one.

    `idempotency_key` makes the request safe to repeat: the same key and content is one turn and one model call, for
    ever. Without it every call is a turn of its own. `cache` says whether the answer may be one that was given before,
    and whether it may be given again. `reread` are files that were read again, so that a repetition with the same key
    may have others. `sources` says from where files were read.

    `prepare` reads the files that the question is asked with, and returns the request with them; what it changes is no
    part of what a repetition must have in common. `named` are the files as the caller named them, which is.

    `taken` is set if `prompt` is what is left of the question without its large content, `system_taken` likewise.
    """

    owner: Owner
    prompt: str
    model: str | None = None
    continuation_id: ContinuationId | None = None
    system: str | None = None
    idempotency_key: str | None = None
    max_output_tokens: int | None = None
    thinking: Thinking | None = None
    title: str | None = None
    expected_revision: int | None = None
    files: Sequence[FileId] = ()
    tool: str = "chat"
    guidance: Guidance | None = None
    web_search: bool = False
    cache: CacheUse = "off"
    reread: Sequence[FileId] = ()
    sources: Mapping[FileId, FileSource] = field(default_factory=dict)
    named: Sequence[str] = ()
    prepare: Callable[[], Awaitable[ChatRequest]] | None = None
    taken: Taken | None = None
    system_taken: Taken | None = None

    @property
    def whole_prompt(self) -> str:
        """The question as it was given."""
        return self.taken.whole if self.taken else self.prompt

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """What was taken out of question and system prompt, each once."""
        taken = [each for each in (self.taken, self.system_taken) if each]
        return tuple({piece.id: piece for each in taken for piece in each.pieces}.values())

    @property
    def all_files(self) -> tuple[FileId, ...]:
        """All files of the question, each once."""
        return tuple(dict.fromkeys((*self.files, *self.reread)))

    @property
    def linked_files(self) -> tuple[FileId, ...]:
        """All files of the question with those that hold its large content."""
        return tuple(dict.fromkeys((*self.all_files, *(each.id for each in self.pieces))))

    @property
    def taken_tokens(self) -> int:
        """Tokens of the texts that were taken out of the question."""
        return self.taken.text_tokens if self.taken else 0

    def validate(self, limits: LimitSettings) -> None:
        """Raise `InvalidArgument` for a value that cannot be stored. Whether the model accepts it is not checked."""
        _check_write(self, limits)
        check_not_blank("prompt", self.prompt, "Give the question or instruction for the model")
        check_text("prompt", self.prompt, limits.message_bytes)
        if self.system is not None:
            check_text("system", self.system, limits.message_bytes)
        if self.model is not None:
            check_text("model", self.model, MAX_MODEL_CHARS)
        check_optional_number("max_output_tokens", self.max_output_tokens, least=1)
        if self.thinking is not None:
            check_choice("thinking", self.thinking, get_args(Thinking))
        check_choice("cache", self.cache, get_args(CacheUse))
        for place, name in enumerate(self.named):
            check_name(f"files[{place}]", name, MAX_PATH_CHARS)
        check_messages(chat_messages(self), limits)

    @property
    def title_or_opening(self) -> str | None:
        """Return the title of a new conversation: the given one, else the beginning of the question."""
        return self.title if self.title is not None else opening(self.prompt)


@dataclass(frozen=True, slots=True)
class RunningTurn:
    """A turn whose question is stored. A request with `request_key` as its idempotency key waits for its answer."""

    turn_id: TurnId
    started_at: datetime
    continuation_id: ContinuationId
    request_key: str
    model: str


OnBegun = Callable[[RunningTurn], None]
"""Called once a turn is stored; any daemon can then find it by its id."""


@dataclass(frozen=True, slots=True)
class ChatResult:
    """An answered turn; `seq` is the answer's number. `duplicate` is true when the key had been answered before.

    `prompt_tokens_left` is what the model's window still holds after this turn, by estimate. `left_out` counts older
    messages that the model was not shown. `partial` is true when the model may have said more than `content` holds,
    `unread_events` counts events of its stream that could not be parsed, and `notes` holds sentences for the caller.
    `facts` are those of the request's guidance, with the number of its `step`.
    `instead_of` is the model that was asked first, if `model` answered because that one could not.
    `sources` are the pages that a search of the web found. `origin` is set if the answer comes from the answer cache.
    `changed_files` are files that the model was shown as stored, and that are not the same on disk any more.
    """

    content: str
    continuation_id: ContinuationId
    model: str
    provider: str
    seq: int
    revision: int
    usage: Usage
    finish_reason: FinishReason
    duration_ms: float
    duplicate: bool
    prompt_tokens_left: int | None
    left_out: int = 0
    partial: bool = False
    unread_events: int = 0
    notes: tuple[str, ...] = ()
    cost_usd: Decimal | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    instead_of: str | None = None
    sources: tuple[WebSource, ...] = ()
    origin: AnswerOrigin | None = None
    changed_files: tuple[ChangedFile, ...] = ()


@dataclass(frozen=True, slots=True)
class AppendRequest:
    """Messages to store as one block, in a new conversation (`continuation_id` None) or an existing one.

    `counts_steps` asks for the number of this append among those of its tool. `identity` is what a repetition with the
    same key must have in common, by default everything. `sources` says from where files were read.

    With `create` the conversation of this name is made if there is none; `messages` may then be empty. `title`,
    `metadata`, `tags` and `created_at` are those of a conversation that is made. `updated_at` is the time of the
    change, for messages of the past; None for now.

    `patch` changes the conversation's metadata, and `also` those of others, all together with the messages, of which
    there may be none then.
    """

    owner: Owner
    messages: Sequence[NewMessage]
    continuation_id: ContinuationId | None = None
    title: str | None = None
    idempotency_key: str | None = None
    expected_revision: int | None = None
    files: Sequence[FileId] = ()
    tool: str = "conversation_append"
    counts_steps: bool = False
    identity: tuple[Any, ...] | None = None
    sources: Mapping[FileId, FileSource] = field(default_factory=dict)
    create: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)
    tags: Sequence[str] = ()
    created_at: datetime | None = None
    updated_at: datetime | None = None
    patch: MetadataPatch | None = None
    also: Sequence[RecordPatch] = ()

    def validate(self, limits: LimitSettings) -> None:
        """Raise `InvalidArgument` for a value that cannot be stored."""
        _check_write(self, limits)
        check_flag("create", self.create)
        self._check_patches(limits)
        if self.create and self.continuation_id is None:
            raise InvalidArgument("create", "comes without a continuation_id", "Give the name of the conversation")
        check_json("metadata", self.metadata, limits.metadata_bytes)
        check_tags(self.tags)
        check_time("created_at", self.created_at)
        check_time("updated_at", self.updated_at)
        may_be_empty = self.create or self.patch is not None or bool(self.also)
        check_messages(self.messages, limits, least=0 if may_be_empty else 1)

    def _check_patches(self, limits: LimitSettings) -> None:
        if self.patch is not None:
            if self.continuation_id is None:
                raise InvalidArgument("patch", "comes without a continuation_id", "Give metadata, or the name to patch")
            _check_patch("patch", self.patch, limits)
        check_list("also", self.also, MAX_ALSO)
        check_items("also", self.also, RecordPatch)
        seen = {self.continuation_id}
        for place, each in enumerate(self.also):
            field_name = f"also[{place}]"
            check_name(f"{field_name}.continuation_id", each.continuation_id, MAX_CONTINUATION_CHARS)
            check_optional_number(f"{field_name}.expected_revision", each.expected_revision)
            _check_patch(f"{field_name}.patch", each.patch, limits)
            if each.continuation_id in seen:
                problem = f"{shown(each.continuation_id)} is patched twice"
                raise InvalidArgument(f"{field_name}.continuation_id", problem, "Give one patch for each conversation")
            seen.add(each.continuation_id)


@dataclass(frozen=True, slots=True)
class Appended:
    """The result of an append; `duplicate` is true if the request key had been served before.

    `seqs` are the numbers of the given messages; those at the positions `skipped` were known by their keys. `first_seq`
    and `last_seq` are those of the new ones, 0 if none is new. `created`: the append made the conversation. With
    patches `conversation` is the conversation as it is now, and `records` are the others, in the order of `also`.
    `step` is its number among the appends and turns of its tool in the conversation, if it was asked for.
    """

    continuation_id: ContinuationId
    first_seq: int
    last_seq: int
    revision: int
    duplicate: bool
    step: int | None = None
    seqs: tuple[int, ...] = ()
    skipped: tuple[int, ...] = ()
    created: bool = False
    conversation: Conversation | None = None
    records: tuple[Conversation, ...] = ()


@dataclass(frozen=True, slots=True)
class Rewound:
    """The result of a rewind: the conversation as it is now, and what was cut, oldest first.

    Of the `cut_count` messages that were cut, `cut` has at most the newest 500. `cut_id` names the deleted conversation
    that has them, None if nothing was cut. `duplicate` is true if the request key had been served before.
    """

    conversation: Conversation
    cut: tuple[Message, ...]
    cut_count: int
    cut_id: ContinuationId | None
    duplicate: bool


def _check_patch(name: str, patch: MetadataPatch, limits: LimitSettings) -> None:
    check_json(f"{name}.values", patch.values, limits.metadata_bytes)
    check_list(f"{name}.remove", patch.remove, MAX_LIST)
    for place, each in enumerate(patch.remove):
        check_text(f"{name}.remove[{place}]", each, limits.metadata_bytes)


def chat_messages(request: ChatRequest) -> tuple[NewMessage, ...]:
    """Return the start of a chat turn, which is stored before the model is called."""
    system: tuple[NewMessage, ...] = ()
    if request.system:
        message = NewMessage("system", request.system)
        system = (request.system_taken.applied(message) if request.system_taken else message,)
    guidance = request.guidance
    if guidance is None:
        return (*system, _without_large(request, with_files(NewMessage("user", request.prompt), request.all_files)))
    question = NewMessage("user", request.prompt, guidance.kind, guidance.metadata)
    return (*system, *guidance.preceding, _without_large(request, with_files(question, request.all_files)))


def _without_large(request: ChatRequest, question: NewMessage) -> NewMessage:
    return question if request.taken is None else request.taken.applied(question)


def with_files(message: NewMessage, files: Sequence[FileId]) -> NewMessage:
    """Return a message that names the files given with it."""
    return replace(message, metadata={**message.metadata, FILE_IDS: list(files)}) if files else message


def _check_write(request: ChatRequest | AppendRequest, limits: LimitSettings) -> None:
    """Check the fields that chats and appends have in common."""
    check_owner(request.owner)
    check_optional_name("continuation_id", request.continuation_id, MAX_CONTINUATION_CHARS)
    check_optional_name("idempotency_key", request.idempotency_key, MAX_KEY_CHARS)
    check_optional_name("title", request.title, MAX_TITLE_CHARS)
    check_revision_of(request.continuation_id, request.expected_revision)
    check_file_ids(request.files, limits)
    check_name("tool", request.tool, MAX_KIND_CHARS)
