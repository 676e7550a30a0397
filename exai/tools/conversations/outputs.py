"""Conversations and messages as tools, resources and prompts show them, within the size of an answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Self

from pydantic import Field

from exai.conversations.large import given_form
from exai.mcp.features.results import ToolOutput
from exai.models import ContentPart, Conversation, Message, Page
from exai.tools.limits import COMMA, NOTHING, Size, size_of, surely_fits, take_text
from exai.validation import check_offset

METADATA_CHARS = 4_000
"""Maximum size of a conversation's metadata in an answer."""


@dataclass
class ConversationOutput(ToolOutput):
    """A conversation without its messages."""

    continuation_id: str
    title: str | None
    messages: int
    tags: list[str]
    metadata: Annotated[Mapping[str, Any] | None, Field(description="Null if too large.")]
    revision: int
    created_at: str
    updated_at: str
    expires_at: str | None
    deleted_at: str | None

    @classmethod
    def of(cls, conversation: Conversation, **more: Any) -> Self:
        """Make the output for a conversation; `more` holds the fields that a subclass adds."""
        expires_at, deleted_at = conversation.expires_at, conversation.deleted_at
        return cls(
            continuation_id=conversation.continuation_id,
            title=conversation.title,
            messages=conversation.last_seq,
            tags=list(conversation.tags),
            metadata=metadata_that_fits(conversation.metadata),
            revision=conversation.revision,
            created_at=conversation.created_at.isoformat(),
            updated_at=conversation.updated_at.isoformat(),
            expires_at=expires_at.isoformat() if expires_at else None,
            deleted_at=deleted_at.isoformat() if deleted_at else None,
            **more,
        )


@dataclass
class MessageOutput:
    """A stored message."""

    seq: int
    role: str
    content: str
    next_offset: Annotated[int | None, Field(description="Offset at which the content continues; null at its end.")]
    created_at: str
    kind: str
    turn_id: str | None
    metadata: Annotated[
        Mapping[str, Any] | None, Field(description="Null if too large; conversation_export returns it.")
    ]


def metadata_that_fits(metadata: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return a conversation's metadata, or None if it would leave too little room for other fields."""
    return metadata if size_of(metadata).chars <= METADATA_CHARS else None


def take_messages(page: Page, limit: Size, offset: int = 0) -> tuple[list[MessageOutput], int | None]:
    """Return the newest messages that fit, oldest first, and the cursor of the older ones.

    If the newest message does not fit, or `offset` is given, return a part of that message.
    """
    if page.part is not None:
        return [_part(message, offset, limit, page.part) for message in page.messages], page.next_before_seq
    if not offset and surely_fits(whole := [_whole(message) for message in page.messages], limit):
        return whole, page.next_before_seq
    taken: list[MessageOutput] = []
    used = NOTHING
    for message in reversed(page.messages):
        shown = _whole(message) if not offset else _part(message, offset, limit)
        used += size_of(shown) + COMMA
        if limit.excess(used) > 1:
            if taken:
                return taken[::-1], taken[-1].seq
            shown = _part(message, offset, limit)
        taken.append(shown)
    return taken[::-1], page.next_before_seq


def _whole(message: Message) -> MessageOutput:
    # By position: keywords cost four times as much, and a page has up to 500 messages.
    return MessageOutput(
        message.seq,
        message.role,
        message.content,
        None,
        message.created_at.isoformat(),
        message.kind,
        message.turn_id,
        given_form(message).metadata,
    )


def _part(message: Message, offset: int, limit: Size, part: ContentPart | None = None) -> MessageOutput:
    """Return a message with the part of its content that fits; metadata is omitted if it takes too much room.

    `part` describes the part of the content that `message` holds; None means all of it.
    """
    shown = _whole(message._replace(content=""))
    if limit.excess(size_of(message.metadata)) > 0.5:
        shown = replace(shown, metadata=None)
    start, chars = (part.offset, part.chars) if part else (0, len(message.content))
    check_offset("char_offset", offset, chars)
    content, _ = take_text(message.content, offset - start, limit - size_of(shown))
    end = offset + len(content)
    return replace(shown, content=content, next_offset=end if end < chars else None)
