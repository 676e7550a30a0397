"""The tools `conversation_get` and `conversation_list`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal, Self

import orjson
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from exai.conversations import ConversationStore
from exai.db.filters import ListFilter
from exai.errors import InvalidArgument, NotFound
from exai.mcp.core.jsonrpc import Json
from exai.mcp.features.results import ToolOutput
from exai.mcp.features.texts import items
from exai.mcp.features.tools import Arguments, CallContext, ToolSpec
from exai.models import MAX_PAGE_MESSAGES, PAGE_MESSAGES, ContinuationId, Conversation, Page, PendingTurn
from exai.tools.conversations.outputs import (
    ConversationOutput,
    MessageOutput,
    metadata_that_fits,
    take_messages,
)
from exai.tools.limits import (
    ALWAYS_LOADED,
    LARGE_ANSWERS,
    MAX_ANSWER_CHARS,
    Size,
    answer_limit,
    size_of,
    take_rows,
)
from exai.validation import MAX_LIST

MAX_SEQ = 2**53
MOST_CHAR_BYTES = 4

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


class ConversationGetArguments(Arguments):
    """Arguments of `conversation_get`."""

    continuation_id: ContinuationId
    limit: int = Field(PAGE_MESSAGES, ge=1, le=MAX_PAGE_MESSAGES, description="Messages in the page.")
    before_seq: int | None = Field(None, ge=1, description="next_before_seq of the previous page, for older messages.")
    offset: int = Field(0, ge=0, description="Or: skip this number of newest messages.")
    seq: int | None = Field(None, ge=1, le=MAX_SEQ, description="Or: only this message.")
    char_offset: int = Field(0, ge=0, description="With seq: its next_offset, for the rest of a long message.")
    whole: bool = Field(False, description="Put back large content, which stands as references.")
    max_chars: int | None = Field(
        None, ge=1_000, le=MAX_ANSWER_CHARS, description="Limit of the whole answer; left out: what clients show."
    )


@dataclass
class PendingOutput:
    """A turn that is running; `model` is null while its files are read."""

    tool: str
    model: str | None
    since: str

    @classmethod
    def of(cls, turn: PendingTurn) -> Self:
        """Make the output for a turn."""
        return cls(turn.tool, turn.model, turn.since.isoformat(timespec="seconds"))

    def as_line(self) -> str:
        """Return the turn as a sentence."""
        doing = f"{self.model} is answering" if self.model else "files are being read"
        return f"An answer is pending: {doing} since {self.since} ({self.tool}). Call again later."


@dataclass
class ConversationGetOutput(ToolOutput):
    """Answer of `conversation_get`."""

    continuation_id: str
    title: str | None
    tags: list[str]
    metadata: Annotated[Mapping[str, Any] | None, Field(description="Null if too large.")]
    revision: int
    pending: Annotated[list[PendingOutput], Field(description="Models that are being asked now; call again later.")]
    messages: Annotated[list[MessageOutput], Field(description="Oldest first.")]
    next_before_seq: Annotated[
        int | None, Field(description="Cursor of the next older page; null when this is the oldest.")
    ]
    source: Literal["cache", "database"]
    stale_s: Annotated[float | None, Field(description="Age, if the database is unreachable and this may be outdated.")]

    def as_text(self) -> str:
        """Return the messages, oldest first."""
        messages = "\n\n".join(map(_message_text, self.messages)) or "There are no messages."
        return "\n\n".join([messages, *(each.as_line() for each in self.pending)])

    def head(self) -> Json:
        """Return where the rest of a message begins of which the page holds a part."""
        parts = (each for each in self.messages if each.next_offset)
        return next(({"seq": each.seq, "next_offset": each.next_offset} for each in parts), {})


class ConversationListArguments(Arguments):
    """Arguments of `conversation_list`; every client pays for a listed schema, so only the most usual are listed."""

    limit: int = Field(PAGE_MESSAGES, ge=1, le=MAX_LIST)
    cursor: str | None = Field(None, description="next_cursor of the previous page.")
    tags: list[str] | None = Field(None, description="Only conversations with all of these tags.")
    metadata: dict[str, Any] | None = Field(None, description="Only conversations whose metadata contains this.")
    part: str | None = Field(None, description="Only those whose title contains this, or whose id begins with it.")
    tool: SkipJsonSchema[str | None] = None
    model: SkipJsonSchema[str | None] = None
    since: SkipJsonSchema[datetime | None] = None
    until: SkipJsonSchema[datetime | None] = None
    deleted: bool = Field(False, description="List deleted conversations, which conversation_delete can restore.")


@dataclass
class ListedOutput(ConversationOutput):
    """A conversation of a list."""

    newest_kind: Annotated[
        str, Field(description="Of an answer that is newest; failed: the first question got no answer.")
    ]


@dataclass
class ConversationListOutput(ToolOutput):
    """Answer of `conversation_list`."""

    conversations: Annotated[list[ListedOutput], Field(description="Latest change first.")]
    next_cursor: str | None

    def as_text(self) -> str:
        """Return one line for each conversation."""
        return items(map(vars, self.conversations), LINE) or "There are no conversations."


def get_tool(conversations: ConversationStore) -> ToolSpec:
    """Make the tool `conversation_get`."""

    async def handle(arguments: ConversationGetArguments, context: CallContext) -> ConversationGetOutput:
        _check_choice(arguments)
        limit = answer_limit(context.client, arguments.max_chars)
        page = await conversations.read(
            context.owner,
            arguments.continuation_id,
            limit=arguments.limit if arguments.seq is None else 1,
            before_seq=arguments.before_seq if arguments.seq is None else arguments.seq + 1,
            offset=arguments.offset,
            char_offset=0 if arguments.whole else arguments.char_offset,
            whole=arguments.whole,
            budget_bytes=limit.chars * MOST_CHAR_BYTES,
        )
        if arguments.seq is not None and [each.seq for each in page.messages] != [arguments.seq]:
            raise NotFound("message", str(arguments.seq), f"The newest one is {page.conversation.last_seq}")
        return _page(page, limit, arguments.char_offset)

    return ToolSpec(
        name="conversation_get",
        title="Read a conversation",
        description=(
            "Read the newest messages of a conversation, an older page by before_seq, or the rest of a long message "
            "by seq and char_offset."
        ),
        arguments=ConversationGetArguments,
        output=ConversationGetOutput,
        handler=handle,
        read_only=True,
        meta={**LARGE_ANSWERS, **ALWAYS_LOADED},
    )


def list_tool(conversations: ConversationStore) -> ToolSpec:
    """Make the tool `conversation_list`."""

    async def handle(arguments: ConversationListArguments, context: CallContext) -> ConversationListOutput:
        only = ListFilter(
            deleted=arguments.deleted,
            tags=arguments.tags or (),
            metadata=arguments.metadata or {},
            part=(arguments.part or "").strip(),
            tool=arguments.tool,
            model=arguments.model,
            since=arguments.since,
            until=arguments.until,
            has_messages=True,
        )
        page = await conversations.list(context.owner, limit=arguments.limit, cursor=arguments.cursor, only=only)
        shown = take_rows(page.conversations, _listed, answer_limit(context.client))
        return ConversationListOutput(conversations=shown, next_cursor=page.cursor_after(len(shown)))

    return ToolSpec(
        name="conversation_list",
        title="List conversations",
        description="List stored conversations, latest change first: all, by tags, metadata or title, or deleted ones.",
        arguments=ConversationListArguments,
        output=ConversationListOutput,
        handler=handle,
        read_only=True,
    )


def _check_choice(arguments: ConversationGetArguments) -> None:
    if arguments.seq is not None and (arguments.before_seq is not None or arguments.offset):
        raise InvalidArgument("seq", "comes with before_seq or offset", "Use one of the three")
    if arguments.char_offset and arguments.seq is None:
        raise InvalidArgument("char_offset", "comes without seq", "Say of which message")


def _page(page: Page, limit: Size, char_offset: int) -> ConversationGetOutput:
    conversation = page.conversation
    metadata = metadata_that_fits(conversation.metadata)
    beside = size_of([conversation.tags, metadata])
    messages, next_before_seq = take_messages(page, limit - beside, char_offset)
    return ConversationGetOutput(
        continuation_id=conversation.continuation_id,
        title=conversation.title,
        tags=list(conversation.tags),
        metadata=metadata,
        revision=conversation.revision,
        pending=[PendingOutput.of(each) for each in conversation.pending],
        messages=messages,
        next_before_seq=next_before_seq,
        source=page.source,
        stale_s=page.stale_s,
    )


def _message_text(message: MessageOutput) -> str:
    kind = "" if message.kind == USUAL_KIND else f" ({message.kind})"
    metadata = {name: value for name, value in (message.metadata or {}).items() if name not in ABOUT_ANSWERS}
    beside = f"\nmetadata: {orjson.dumps(metadata).decode()}" if metadata else ""
    return f"#{message.seq} {message.role}{kind}: {message.content}{beside}"


def _listed(conversation: Conversation) -> ListedOutput:
    return ListedOutput.of(conversation, newest_kind=conversation.newest_kind or USUAL_KIND)
