"""Requests to the conversation service and their results. Requests are validated here, before any I/O.

Invariant: Postgres does not reject the content of a request that passes these checks.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard, get_args

import orjson

from exai.conversations.titles import opening
from exai.db.conversations import write_cursor
from exai.db.records import Cursor
from exai.errors import Conflict, ExaiError, InvalidArgument, NotFound, shown
from exai.models import (
    FILE_IDS,
    ContinuationId,
    Conversation,
    FileId,
    FinishReason,
    NewMessage,
    Owner,
    Role,
    Thinking,
    Usage,
)
from exai.settings.load import LimitSettings

MAX_KEY_CHARS = 200
MAX_TITLE_CHARS = 500
MAX_CONTINUATION_CHARS = 500
MAX_KIND_CHARS = 100
MAX_NUMBER = 2**63 - 1
"""The largest number Postgres counts messages and revisions with."""

ROLES = get_args(Role)
ESCAPED_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One question to a model, in a new conversation or a continued one.

    `idempotency_key` makes the request safe to repeat: the same key and content is one turn and one model call, for
    ever. Without it every call is a turn of its own.
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

    @property
    def title_or_opening(self) -> str | None:
        """What a new conversation is called: by its title if one was given, else by how its question begins."""
        return self.title if self.title is not None else opening(self.prompt)


@dataclass(frozen=True, slots=True)
class ChatResult:
    """An answered turn; `seq` is the answer's number. `duplicate` is true when the key had been answered before.

    `prompt_tokens_left` is what the model's window still holds after this turn, by estimate. `left_out` counts older
    messages that the model was not shown. `partial` is true when the model may have said more than `content` holds,
    `unread_events` counts events of its stream that could not be parsed, and `notes` holds sentences for the caller.
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


@dataclass(frozen=True, slots=True)
class AppendRequest:
    """Messages to store as one block, in a new conversation (`continuation_id` None) or an existing one."""

    owner: Owner
    messages: Sequence[NewMessage]
    continuation_id: ContinuationId | None = None
    title: str | None = None
    idempotency_key: str | None = None
    expected_revision: int | None = None
    files: Sequence[FileId] = ()
    tool: str = "conversation_append"


@dataclass(frozen=True, slots=True)
class ConversationPage:
    """Conversations by latest change first; `next_cursor` is opaque, None at the end."""

    conversations: tuple[Conversation, ...]
    next_cursor: str | None

    def cursor_after(self, number: int) -> str | None:
        """Return the cursor of a page that holds only so many of these, one at least."""
        if number >= len(self.conversations):
            return self.next_cursor
        last = self.conversations[number - 1]
        return write_cursor(Cursor(last.updated_at, last.id))


def check_text(field: str, value: str, limit_bytes: int) -> None:
    """Refuse what Postgres cannot store or a limit forbids; `field` is the argument's path."""
    if "\x00" in value:
        raise InvalidArgument(field, "holds a NUL character, which Postgres text cannot store", "Remove U+0000")
    try:
        size_bytes = len(value.encode())
    except UnicodeEncodeError as error:
        raise InvalidArgument(
            field, f"holds a lone surrogate at character {error.start}", "Send valid Unicode text"
        ) from None
    if size_bytes > limit_bytes:
        raise InvalidArgument(field, f"is {size_bytes:,} bytes; the limit is {limit_bytes:,}", "Split or shorten it")


def check_short(field: str, value: str | None, limit_chars: int) -> None:
    """Check an optional short text: a key, an id or a title."""
    if value is None:
        return
    if not value:
        raise InvalidArgument(field, "is empty", "Leave it out or give it a value")
    if len(value) > limit_chars:
        raise InvalidArgument(field, f"has {len(value)} characters; the limit is {limit_chars}", "Shorten it")
    check_text(field, value, limit_chars * 4)


def check_json(field: str, value: Mapping[str, Any], limit_bytes: int) -> None:
    """Check that metadata can be stored as jsonb and read back the same.

    orjson refuses foreign types, surrogates, integers over 64 bits and more than 254 levels, but writes NaN as null,
    so the standard encoder is asked as well.
    """
    try:
        encoded = orjson.dumps(value)
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument(field, f"cannot be stored as JSON: {error}", "Use plain JSON values") from None
    if ESCAPED_NUL.search(encoded):
        raise InvalidArgument(field, "holds a NUL character, which jsonb cannot store", "Remove U+0000")
    if len(encoded) > limit_bytes:
        raise InvalidArgument(field, f"is {len(encoded):,} bytes; the limit is {limit_bytes:,}", "Store less metadata")


def check_messages(messages: Sequence[NewMessage], limits: LimitSettings) -> None:
    """Check a whole append: number, each message, and all of it together."""
    if not messages:
        raise InvalidArgument("messages", "is empty", "Send at least one message")
    if len(messages) > limits.append_messages:
        raise InvalidArgument(
            "messages",
            f"has {len(messages):,} messages; the limit is {limits.append_messages:,}",
            "Send it as several appends",
        )
    total_bytes = 0
    for position, message in enumerate(messages):
        if message.role not in ROLES:
            raise InvalidArgument(f"messages[{position}].role", "is no role", f"Use one of {', '.join(ROLES)}")
        check_short(f"messages[{position}].kind", message.kind, MAX_KIND_CHARS)
        check_text(f"messages[{position}].content", message.content, limits.message_bytes)
        if message.metadata:
            check_json(f"messages[{position}].metadata", message.metadata, limits.message_bytes)
        total_bytes += len(message.content.encode())
    if total_bytes > limits.append_bytes:
        raise InvalidArgument(
            "messages",
            f"are {total_bytes:,} bytes together; the limit is {limits.append_bytes:,}",
            "Send them as several appends",
        )


def check_number(field: str, value: int | None, least: int = 0) -> None:
    """Check an optional sequence number, revision or offset."""
    if value is not None and not least <= value <= MAX_NUMBER:
        raise InvalidArgument(field, f"is {value}", f"Use {least} to {MAX_NUMBER}")


def check_question(request: ChatRequest, limits: LimitSettings) -> None:
    """Check the texts of a chat under the names its caller gave them."""
    check_text("prompt", request.prompt, limits.message_bytes)
    if request.system:
        check_text("system", request.system, limits.message_bytes)
    check_messages(chat_messages(request), limits)


def check_names(continuation_id: str | None, idempotency_key: str | None, title: str | None) -> None:
    """Check the short texts that every write has."""
    check_short("continuation_id", continuation_id, MAX_CONTINUATION_CHARS)
    check_short("idempotency_key", idempotency_key, MAX_KEY_CHARS)
    check_short("title", title, MAX_TITLE_CHARS)


def request_key(key: str | None) -> str:
    """Return the caller's key, or one that only this call's own retries share."""
    return key if key is not None else str(uuid.uuid4())


def content_hash(*parts: Any) -> str:
    """Digest of what a request key stands for: two requests with one key must agree in it."""
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()


def chat_messages(request: ChatRequest) -> tuple[NewMessage, ...]:
    """Return what a chat turn stores before the model is asked."""
    question = with_files(NewMessage("user", request.prompt), request.files)
    return (NewMessage("system", request.system), question) if request.system else (question,)


def with_files(message: NewMessage, files: Sequence[FileId]) -> NewMessage:
    """Return a message that says which files were given with it."""
    return replace(message, metadata={**message.metadata, FILE_IDS: list(files)}) if files else message


def check_files(files: Sequence[FileId], limits: LimitSettings) -> None:
    """Check the files given with a message: how many, and that each can be one."""
    if len(files) > limits.append_files:
        raise InvalidArgument(
            "files", f"has {len(files)} files; the limit is {limits.append_files}", "Give them with several messages"
        )
    for position, file_id in enumerate(files):
        if not is_file_id(file_id):
            raise InvalidArgument(f"files[{position}]", "is not a file's id", "Use the id that file_put returned")


def is_file_id(value: object) -> TypeGuard[FileId]:
    """Whether this is an id as files are stored under it; other spellings of a UUID are none."""
    try:
        return isinstance(value, str) and str(uuid.UUID(value)) == value
    except ValueError:
        return False


def refusal(status: str, continuation_id: str | None, revision: int, missing: str | None) -> ExaiError:
    """Return the error for a write that the database did not do."""
    match status:
        case "not_found" | "deleted":
            return NotFound("conversation", continuation_id or "", "conversation_list lists them")
        case "file_not_found":
            return NotFound("file", missing or "", "Store it first, then link it")
        case "conflict_key":
            return Conflict(
                "key_reused",
                "the idempotency key was used for a request with other content",
                "Use a new key for a new request",
            )
        case "conflict_revision":
            if continuation_id is None:
                cure = "Leave expected_revision out, or say in continuation_id which conversation was read"
                return Conflict("revision", "a new conversation has no earlier revision", cure)
            return Conflict(
                "revision",
                f"conversation {shown(continuation_id)} has moved on to revision {revision}",
                "Read it again, then decide",
                continuation_id=continuation_id,
                revision=revision,
            )
        case _:
            raise AssertionError(f"not a refusal: {status}")
