"""The tools `conversation_export` and `conversation_import`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from exai.conversations import Transfer
from exai.conversations.formats import read_lines, read_markdown
from exai.mcp.features.results import ToolOutput
from exai.mcp.features.tools import TRANSFER_TIMEOUT_S, Arguments, CallContext, ToolSpec
from exai.models import ContinuationId
from exai.tools.limits import LARGE_ANSWERS, MAX_ANSWER_CHARS, answer_limit, size_of, take_text


class ExportArguments(Arguments):
    """Arguments of `conversation_export`."""

    continuation_id: ContinuationId
    format: Literal["jsonl", "markdown"] = "markdown"
    after_seq: int = Field(0, ge=0, description="next_after_seq of the previous part.")
    char_offset: int = Field(0, ge=0, description="next_char_offset of the previous part.")
    max_chars: int | None = Field(
        None, ge=1_000, le=MAX_ANSWER_CHARS, description="Limit of the whole answer; left out: what clients show."
    )


@dataclass
class ExportOutput(ToolOutput):
    """Answer of `conversation_export`."""

    continuation_id: str
    text: str
    next_after_seq: Annotated[int | None, Field(description="Where the next part begins; null at the end.")]
    next_char_offset: Annotated[
        int, Field(description="Offset in that message; not 0 when it is too long for one part.")
    ]

    def as_text(self) -> str:
        """Return the part, so that the texts of all parts are the export."""
        return self.text


class ImportArguments(Arguments):
    """Arguments of `conversation_import`."""

    text: str = Field(description="A complete export: all parts joined.")
    format: Literal["jsonl", "markdown"] = "markdown"
    continuation_id: ContinuationId | None = Field(None, description="Store it with this id instead of its own.")


@dataclass
class ImportOutput(ToolOutput):
    """Answer of `conversation_import`."""

    continuation_id: str
    messages: int
    stored: Annotated[int, Field(description="Number of messages that were new.")]
    revision: int
    restored: Annotated[bool, Field(description="True when a deleted conversation was restored.")]
    notes: list[str]

    def as_text(self) -> str:
        """Say how many messages were new."""
        others = "" if self.stored == self.messages else "; the others existed already"
        lines = [f"{self.stored} of {self.messages} messages were stored{others}."]
        lines += ["The conversation was deleted and has been restored."] if self.restored else []
        return "\n".join(lines)


def export_tool(transfer: Transfer) -> ToolSpec:
    """Make the tool `conversation_export`."""

    async def handle(arguments: ExportArguments, context: CallContext) -> ExportOutput:
        limit = answer_limit(context.client, arguments.max_chars)
        part = await transfer.export_part(
            context.owner,
            arguments.continuation_id,
            arguments.format,
            after_seq=arguments.after_seq,
            budget_bytes=limit.chars,
        )
        header = part.header if not arguments.char_offset else ""
        text, rest = take_text(part.text, arguments.char_offset, limit - size_of(header))
        return ExportOutput(
            continuation_id=arguments.continuation_id,
            text=header + text,
            next_after_seq=part.next_after_seq if rest is None else arguments.after_seq,
            next_char_offset=rest or 0,
        )

    return ToolSpec(
        name="conversation_export",
        title="Export a conversation",
        description="Return a conversation as Markdown or JSON Lines, in parts; joined, they can be imported.",
        arguments=ExportArguments,
        output=ExportOutput,
        handler=handle,
        lists_output=True,
        read_only=True,
        meta=LARGE_ANSWERS,
    )


def import_tool(transfer: Transfer) -> ToolSpec:
    """Make the tool `conversation_import`."""

    async def handle(arguments: ImportArguments, context: CallContext) -> ImportOutput:
        text = arguments.text.removeprefix("\ufeff")
        parts = read_lines(text.split("\n")) if arguments.format == "jsonl" else read_markdown(text)
        last = None
        async for progress in transfer.import_text(context.owner, parts, as_name=arguments.continuation_id):
            last = progress
            await context.progress(f"{progress.seen} messages read, {progress.stored} stored")
        if last is None:
            raise AssertionError("an import has at least one batch")
        return ImportOutput(
            continuation_id=last.continuation_id,
            messages=last.seen,
            stored=last.stored,
            revision=last.revision,
            restored=last.restored,
            notes=list(last.notes),
        )

    return ToolSpec(
        name="conversation_import",
        title="Import a conversation",
        description="Store an exported conversation. A repeated import stores only the missing messages.",
        arguments=ImportArguments,
        output=ImportOutput,
        handler=handle,
        lists_output=True,
        idempotent=True,
        timeout_s=TRANSFER_TIMEOUT_S,
    )
