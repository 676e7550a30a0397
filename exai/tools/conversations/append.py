"""The tool `conversation_append`: store messages without asking a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from exai.conversations import AppendRequest, ConversationStore
from exai.files.service import FileService
from exai.mcp.features.results import ToolOutput
from exai.mcp.features.tools import Arguments, CallContext, ToolSpec
from exai.models import ContinuationId, NewMessage


class MessageArgument(Arguments):
    """One message to store."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    metadata: dict[str, Any] | None = None


class AppendArguments(Arguments):
    """Arguments of `conversation_append`."""

    messages: list[MessageArgument] = Field(description="Oldest first; stored together.")
    continuation_id: ContinuationId | None = Field(None, description="Conversation to append to. Left out: a new one.")
    title: str | None = Field(None, description="Title of a new conversation.")
    idempotency_key: str | None = Field(None, description="A repeated call with the same key is stored once.")
    expected_revision: int | None = Field(None, ge=0, description="Refuse if the conversation has another revision.")
    files: list[str] | None = Field(
        None, description="Files of the last message; file_id or path below an allowed root."
    )


@dataclass
class AppendOutput(ToolOutput):
    """Answer of `conversation_append`."""

    continuation_id: str
    first_seq: int
    last_seq: int
    revision: int
    duplicate: bool

    def as_text(self) -> str:
        """Say whether this call stored the messages."""
        return "These messages had been stored before." if self.duplicate else "The messages are stored."


def append_tool(conversations: ConversationStore, files: FileService) -> ToolSpec:
    """Make the tool."""

    async def handle(arguments: AppendArguments, context: CallContext) -> AppendOutput:
        given = await files.resolve(context.owner, arguments.files or (), context.directory)
        appended = await conversations.append(
            AppendRequest(
                owner=context.owner,
                messages=[NewMessage(m.role, m.content, metadata=m.metadata or {}) for m in arguments.messages],
                continuation_id=arguments.continuation_id,
                title=arguments.title,
                idempotency_key=arguments.idempotency_key,
                expected_revision=arguments.expected_revision,
                files=given.ids,
                sources=given.sources,
            )
        )
        return AppendOutput(
            continuation_id=appended.continuation_id,
            first_seq=appended.first_seq,
            last_seq=appended.last_seq,
            revision=appended.revision,
            duplicate=appended.duplicate,
        )

    return ToolSpec(
        name="conversation_append",
        title="Append messages",
        description="Store messages in a conversation without asking a model: all of them or none, in order.",
        arguments=AppendArguments,
        output=AppendOutput,
        handler=handle,
        lists_output=True,
    )
