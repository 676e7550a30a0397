"""Tools that append to, read and list conversations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import orjson
from pydantic import BaseModel, Field

from exai.conversations import AppendRequest, ConversationService
from exai.db.filters import ListFilter
from exai.errors import InvalidArgument, NotFound
from exai.files.service import FileService
from exai.mcp.features.schemas import output_schema
from exai.mcp.features.texts import items
from exai.mcp.features.tools import Arguments, CallContext, ToolResult, ToolSpec
from exai.models import MAX_PAGE_MESSAGES, PAGE_MESSAGES, ContinuationId, Conversation, NewMessage, Page
from exai.tools.limits import ANSWER_CHARS, MAX_ANSWER_CHARS, SHOW_WHOLE, Size, fitting, page_facts, room, size_of

MAX_LIST = 200
MAX_SEQ = 2**53
MOST_CHAR_BYTES = 4
METADATA_CHARS = 4_000
"""Maximum size of a conversation's metadata in an answer."""

LINE = (
    "continuation_id",
    "title",
    "messages",
    "newest_kind",
    "tags",
    "metadata",
    "revision",
    "updated_at",
    "deleted_at",
)
"""Fields of a conversation in the text of a list."""

USUAL_KIND = "message"

ABOUT_ANSWERS = frozenset({"model", "provider", "finish_reason"})
"""Metadata fields that every answer has."""


class MessageArgument(Arguments):
    """One message to store."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    metadata: dict[str, Any] | None = None


class AppendArguments(Arguments):
    """Arguments of `conversation_append`."""

    messages: list[MessageArgument] = Field(description="Oldest first; stored together.")
    continuation_id: str | None = Field(None, description="Conversation to append to. Left out: a new one.")
    title: str | None = Field(None, description="Title of a new conversation.")
    idempotency_key: str | None = Field(None, description="A repeated call with the same key is stored once.")
    expected_revision: int | None = Field(None, ge=0, description="Refuse if the conversation has another revision.")
    files: list[str] | None = Field(None, description="Files of the last message; file_id or allowed absolute path.")


class AppendOutput(BaseModel):
    """structuredContent of `conversation_append`."""

    continuation_id: str
    first_seq: int
    last_seq: int
    revision: int
    duplicate: bool


class ConversationGetArguments(Arguments):
    """Arguments of `conversation_get`."""

    continuation_id: str
    limit: int = Field(PAGE_MESSAGES, ge=1, le=MAX_PAGE_MESSAGES, description="Messages in the page.")
    before_seq: int | None = Field(None, ge=1, description="next_before_seq of the previous page, for older messages.")
    offset: int = Field(0, ge=0, description="Or: skip this number of newest messages.")
    seq: int | None = Field(None, ge=1, le=MAX_SEQ, description="Or: only this message.")
    char_offset: int = Field(0, ge=0, description="With seq: its next_offset, for the rest of a long message.")
    max_chars: int = Field(ANSWER_CHARS, ge=1_000, le=MAX_ANSWER_CHARS, description="Limit of the whole answer.")


class MessageOutput(BaseModel):
    """A stored message."""

    seq: int
    role: str
    content: str
    next_offset: int | None = Field(description="Offset at which the content continues; null at its end.")
    created_at: str
    kind: str
    turn_id: str | None
    metadata: dict[str, Any] | None = Field(description="Null if too large; conversation_export returns it.")


class ConversationGetOutput(BaseModel):
    """structuredContent of `conversation_get`."""

    continuation_id: str
    title: str | None
    tags: list[str]
    metadata: dict[str, Any] | None = Field(description="Null if too large.")
    revision: int
    messages: list[MessageOutput] = Field(description="Oldest first.")
    next_before_seq: int | None = Field(description="Cursor of the next older page; null when this is the oldest.")
    source: Literal["cache", "database"]
    stale_s: float | None = Field(description="Age, if the database is unreachable and this may be outdated.")


class ConversationListArguments(Arguments):
    """Arguments of `conversation_list`."""

    limit: int = Field(PAGE_MESSAGES, ge=1, le=MAX_LIST)
    cursor: str | None = Field(None, description="next_cursor of the previous page.")
    tags: list[str] | None = Field(None, description="Only conversations with all of these tags.")
    metadata: dict[str, Any] | None = Field(None, description="Only conversations whose metadata contains this.")
    part: str | None = Field(None, description="Only those whose title contains this, or whose id begins with it.")
    deleted: bool = Field(False, description="List deleted conversations, which conversation_delete can restore.")


class ConversationOutput(BaseModel):
    """A conversation without its messages."""

    continuation_id: str
    title: str | None
    messages: int
    tags: list[str]
    metadata: dict[str, Any] | None = Field(description="Null if too large.")
    revision: int
    created_at: str
    updated_at: str
    deleted_at: str | None


class ListedOutput(ConversationOutput):
    """A conversation of a list."""

    newest_kind: str = Field(description="Of the newest message; failed: the first question got no answer.")


class ConversationListOutput(BaseModel):
    """structuredContent of `conversation_list`."""

    conversations: list[ListedOutput] = Field(description="Latest change first.")
    next_cursor: str | None


def conversation_tools(conversations: ConversationService, files: FileService) -> tuple[ToolSpec, ...]:
    """Make the conversation tools."""
    return (_append_tool(conversations, files), _get_tool(conversations), _list_tool(conversations))


def _append_tool(conversations: ConversationService, files: FileService) -> ToolSpec:
    async def handle(arguments: AppendArguments, context: CallContext) -> ToolResult:
        appended = await conversations.append(
            AppendRequest(
                owner=context.owner,
                messages=[NewMessage(m.role, m.content, metadata=m.metadata or {}) for m in arguments.messages],
                continuation_id=optional_id(arguments.continuation_id),
                title=arguments.title,
                idempotency_key=arguments.idempotency_key,
                expected_revision=arguments.expected_revision,
                files=await files.resolve(context.owner, arguments.files or ()),
            )
        )
        return ToolResult(
            structured={
                "continuation_id": appended.continuation_id,
                "first_seq": appended.first_seq,
                "last_seq": appended.last_seq,
                "revision": appended.revision,
                "duplicate": appended.duplicate,
            },
            text="These messages had been stored before." if appended.duplicate else "The messages are stored.",
        )

    return ToolSpec(
        name="conversation_append",
        title="Append messages",
        description="Store messages in a conversation without asking a model: all of them or none, in order.",
        arguments=AppendArguments,
        output_schema=output_schema(AppendOutput),
        handler=handle,
    )


def _get_tool(conversations: ConversationService) -> ToolSpec:
    async def handle(arguments: ConversationGetArguments, context: CallContext) -> ToolResult:
        _check_choice(arguments)
        page = await conversations.read(
            context.owner,
            ContinuationId(arguments.continuation_id),
            limit=arguments.limit if arguments.seq is None else 1,
            before_seq=arguments.before_seq if arguments.seq is None else arguments.seq + 1,
            offset=arguments.offset,
            char_offset=arguments.char_offset,
            budget_bytes=arguments.max_chars * MOST_CHAR_BYTES,
        )
        if arguments.seq is not None and [each.seq for each in page.messages] != [arguments.seq]:
            raise NotFound("message", str(arguments.seq), f"The newest one is {page.conversation.last_seq}")
        structured = _page(page, room(arguments.max_chars), arguments.char_offset)
        return ToolResult(structured, _as_text(structured["messages"]), _rest(structured["messages"]))

    return ToolSpec(
        name="conversation_get",
        title="Read a conversation",
        description=(
            "Read the newest messages of a conversation, an older page by before_seq, or the rest of a long message "
            "by seq and char_offset."
        ),
        arguments=ConversationGetArguments,
        output_schema=output_schema(ConversationGetOutput),
        handler=handle,
        read_only=True,
        meta=SHOW_WHOLE,
    )


def _list_tool(conversations: ConversationService) -> ToolSpec:
    async def handle(arguments: ConversationListArguments, context: CallContext) -> ToolResult:
        only = ListFilter(
            arguments.deleted, arguments.tags or (), arguments.metadata or {}, (arguments.part or "").strip()
        )
        page = await conversations.list(context.owner, limit=arguments.limit, cursor=arguments.cursor, only=only)
        shown = fitting(page.conversations, _listed_facts, room())
        structured = {"conversations": shown, "next_cursor": page.cursor_after(len(shown))}
        return ToolResult(structured, items(shown, LINE) or "There are no conversations.")

    return ToolSpec(
        name="conversation_list",
        title="List conversations",
        description="List stored conversations, latest change first: all, by tags, metadata or title, or deleted ones.",
        arguments=ConversationListArguments,
        output_schema=output_schema(ConversationListOutput),
        handler=handle,
        read_only=True,
    )


def optional_id(value: str | None) -> ContinuationId | None:
    """Return the continuation id of an optional argument, or None if it is omitted."""
    return ContinuationId(value) if value is not None else None


def _check_choice(arguments: ConversationGetArguments) -> None:
    if arguments.seq is not None and (arguments.before_seq is not None or arguments.offset):
        raise InvalidArgument("seq", "comes with before_seq or offset", "Use one of the three")
    if arguments.char_offset and arguments.seq is None:
        raise InvalidArgument("char_offset", "comes without seq", "Say of which message")


def _page(page: Page, within: Size, char_offset: int) -> dict[str, Any]:
    metadata = fitting_metadata(page.conversation.metadata)
    beside = size_of([page.conversation.tags, metadata])
    messages, next_before_seq = page_facts(page, within - beside, char_offset)
    return {
        "continuation_id": page.conversation.continuation_id,
        "title": page.conversation.title,
        "tags": list(page.conversation.tags),
        "metadata": metadata,
        "revision": page.conversation.revision,
        "messages": messages,
        "next_before_seq": next_before_seq,
        "source": page.source,
        "stale_s": page.stale_s,
    }


def _as_text(messages: list[dict[str, Any]]) -> str:
    return "\n\n".join(map(_message, messages)) or "There are no messages."


def _message(facts: Mapping[str, Any]) -> str:
    kind = "" if facts["kind"] == USUAL_KIND else f" ({facts['kind']})"
    metadata = {name: value for name, value in (facts["metadata"] or {}).items() if name not in ABOUT_ANSWERS}
    beside = f"\nmetadata: {orjson.dumps(metadata).decode()}" if metadata else ""
    return f"#{facts['seq']} {facts['role']}{kind}: {facts['content']}{beside}"


def _rest(messages: list[dict[str, Any]]) -> Mapping[str, Any]:
    """Return the fields of a page's messages that a next call needs: of a partial message, where its rest begins."""
    return next(
        ({"seq": each["seq"], "next_offset": each["next_offset"]} for each in messages if each["next_offset"]), {}
    )


def conversation_facts(conversation: Conversation) -> dict[str, Any]:
    """Return a conversation's fields in answers of tools, without its messages."""
    return {
        "continuation_id": conversation.continuation_id,
        "title": conversation.title,
        "messages": conversation.last_seq,
        "tags": list(conversation.tags),
        "metadata": fitting_metadata(conversation.metadata),
        "revision": conversation.revision,
        "created_at": conversation.created_at.isoformat(),
        "updated_at": conversation.updated_at.isoformat(),
        "deleted_at": conversation.deleted_at.isoformat() if conversation.deleted_at else None,
    }


def _listed_facts(conversation: Conversation) -> dict[str, Any]:
    return {**conversation_facts(conversation), "newest_kind": conversation.newest_kind or USUAL_KIND}


def fitting_metadata(metadata: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return a conversation's metadata, or None if it would leave too little room for other fields."""
    return metadata if size_of(metadata).chars <= METADATA_CHARS else None
