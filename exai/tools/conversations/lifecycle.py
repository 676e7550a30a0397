"""The tools that change a whole conversation: `conversation_fork`, `conversation_update`, `conversation_delete`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import Field

from exai.conversations import ConversationStore
from exai.db.lifecycle import ConversationUpdate
from exai.errors import InvalidArgument
from exai.mcp.features.results import ToolOutput
from exai.mcp.features.tools import Arguments, CallContext, ToolSpec
from exai.models import ContinuationId
from exai.tools.conversations.outputs import ConversationOutput

RESTORED = "The conversation was restored."
DELETED = "The conversation is deleted; for 7 days, conversation_delete with restore restores it."
TITLE_KEPT = "the empty title is taken as left out; to remove the title, give it without tags and metadata"


class ForkArguments(Arguments):
    """Arguments of `conversation_fork`."""

    continuation_id: ContinuationId
    at_seq: int | None = Field(None, ge=1, description="Last message to keep. Left out: all.")
    title: str | None = None
    idempotency_key: str | None = Field(None, description="A repeated call with the same key returns the same fork.")


@dataclass
class ForkOutput(ConversationOutput):
    """Answer of `conversation_fork`."""

    def as_text(self) -> str:
        """Confirm the fork; the head contains its name."""
        return "The fork is made; this is its continuation_id."


class UpdateArguments(Arguments):
    """Arguments of `conversation_update`."""

    KEEPS_EMPTY = frozenset({"title", "expires_at"})

    continuation_id: ContinuationId
    title: str | None = Field(None, description="New title; empty removes it.")
    tags: list[str] | None = Field(None, description="Replaces all tags.")
    metadata: dict[str, Any] | None = Field(None, description="Replaces the metadata.")
    expires_at: str | None = Field(None, description="When to delete it (ISO 8601); empty: never.")
    expected_revision: int | None = Field(None, ge=0)
    idempotency_key: str | None = None


@dataclass
class UpdateOutput(ConversationOutput):
    """Answer of `conversation_update`."""

    notes: list[str]

    def as_text(self) -> str:
        """Confirm the change."""
        return "The conversation was changed."


class ConversationDeleteArguments(Arguments):
    """Arguments of `conversation_delete`."""

    continuation_id: ContinuationId
    restore: bool = Field(False, description="Restore a deleted conversation instead, within 7 days.")
    expected_revision: int | None = Field(None, ge=0)
    idempotency_key: str | None = None


@dataclass
class DeleteOutput(ToolOutput):
    """Answer of `conversation_delete`."""

    continuation_id: str
    revision: int
    deleted: bool

    def as_text(self) -> str:
        """State whether the conversation is deleted."""
        return DELETED if self.deleted else RESTORED


def fork_tool(conversations: ConversationStore) -> ToolSpec:
    """Make the tool `conversation_fork`."""

    async def handle(arguments: ForkArguments, context: CallContext) -> ForkOutput:
        fork = await conversations.fork(
            context.owner,
            arguments.continuation_id,
            at_seq=arguments.at_seq,
            title=arguments.title,
            idempotency_key=arguments.idempotency_key,
        )
        return ForkOutput.of(fork)

    return ToolSpec(
        name="conversation_fork",
        title="Fork a conversation",
        description="Start another conversation with the messages of this one up to at_seq.",
        arguments=ForkArguments,
        output=ForkOutput,
        handler=handle,
    )


def update_tool(conversations: ConversationStore) -> ToolSpec:
    """Make the tool `conversation_update`."""

    async def handle(arguments: UpdateArguments, context: CallContext) -> UpdateOutput:
        title, notes = arguments.title, list[str]()
        if not title and (arguments.tags is not None or arguments.metadata is not None):
            # Clients that fill in every optional argument send an empty text too.
            title, notes = None, [TITLE_KEPT] if title is not None else []
        change = ConversationUpdate(title, arguments.metadata, arguments.tags, arguments.expires_at)
        if change == ConversationUpdate():
            raise InvalidArgument("title", "nothing is to be changed", "Give a title, tags, metadata or expires_at")
        changed = await conversations.change(
            context.owner,
            arguments.continuation_id,
            change,
            expected_revision=arguments.expected_revision,
            idempotency_key=arguments.idempotency_key,
        )
        return UpdateOutput.of(changed, notes=notes)

    return ToolSpec(
        name="conversation_update",
        title="Rename or tag a conversation",
        description="Change title, tags, metadata or expiry of a conversation.",
        arguments=UpdateArguments,
        output=UpdateOutput,
        handler=handle,
        idempotent=True,
    )


def delete_tool(conversations: ConversationStore) -> ToolSpec:
    """Make the tool `conversation_delete`."""

    async def handle(arguments: ConversationDeleteArguments, context: CallContext) -> DeleteOutput:
        name, expected, key = arguments.continuation_id, arguments.expected_revision, arguments.idempotency_key
        work = conversations.restore if arguments.restore else conversations.delete
        marked = await work(context.owner, name, expected_revision=expected, idempotency_key=key)
        return DeleteOutput(continuation_id=name, revision=marked.revision, deleted=not arguments.restore)

    return ToolSpec(
        name="conversation_delete",
        title="Delete a conversation",
        description="Delete a conversation; for 7 days it can be restored.",
        arguments=ConversationDeleteArguments,
        output=DeleteOutput,
        handler=handle,
        destructive=True,
        idempotent=True,
    )
