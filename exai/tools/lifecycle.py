"""Tools for whole conversations: search, fork, name and tag, delete, export, import."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from exai.conversations import ConversationService
from exai.conversations.formats import read_lines, read_markdown
from exai.db.lifecycle import ConversationUpdate
from exai.db.search import SearchHit, SearchPage, SearchQuery
from exai.errors import InvalidArgument
from exai.mcp.features.schemas import output_schema
from exai.mcp.features.texts import items
from exai.mcp.features.tools import TRANSFER_TIMEOUT_S, Arguments, CallContext, ToolResult, ToolSpec
from exai.models import ContinuationId
from exai.tools.conversations import ConversationOutput, conversation_facts, optional_id
from exai.tools.limits import ANSWER_CHARS, MAX_ANSWER_CHARS, SHOW_WHOLE, cut, fitting, room, size_of

SEARCH_HITS = 20
HIT = ("continuation_id", "title", "seq", "role", "created_at", "tool", "model", "snippet", "missing")
"""Fields of a search hit in the text."""

SOME_WORDS = "Nothing has all of these words; the following have most of them."
UNREAD = "At least {count} messages were stored just now and not looked through; search again in a few seconds."
MAX_HITS = 200
RESTORED = "The conversation was restored."
DELETED = "The conversation is deleted; for 7 days, conversation_delete with restore restores it."
TITLE_KEPT = "the empty title is taken as left out; to remove the title, give it without tags and metadata"
SNIPPET_CHARS = 1_000
"""A snippet is a few words around the match, but a word may have any length."""


class SearchArguments(Arguments):
    """Arguments of `conversation_search`."""

    query: str = Field(description='Words; "quoted phrase", or, -without, begin*.')
    continuation_id: str | None = Field(None, description="Only in this conversation.")
    role: Literal["system", "user", "assistant", "tool"] | None = None
    tool: str | None = Field(None, description="Only messages that this tool stored.")
    model: str | None = Field(None, description="Only turns of this model.")
    since: datetime | None = Field(None, description="ISO 8601 with offset.")
    until: datetime | None = None
    tags: list[str] | None = Field(None, description="Only in conversations with all of these tags.")
    metadata: dict[str, Any] | None = Field(None, description="Only in conversations whose metadata contains this.")
    limit: int = Field(SEARCH_HITS, ge=1, le=MAX_HITS)
    cursor: str | None = Field(None, description="next_cursor of the previous page.")


class HitOutput(BaseModel):
    """A matching message, or a matching title."""

    continuation_id: str
    title: str | None
    seq: int = Field(description="0: the title matches.")
    role: str | None
    created_at: str
    tool: str | None
    model: str | None
    snippet: str
    rank: float
    missing: list[str] = Field(description="Words that it does not contain.")


class SearchOutput(BaseModel):
    """structuredContent of `conversation_search`."""

    matched: Literal["all", "some"] = Field(description="some: no message has all words; these have most of them.")
    hits: list[HitOutput] = Field(description="Best first; **matches** are marked.")
    next_cursor: str | None
    unread: int = Field(description="Messages just stored, not looked through yet; search again shortly.")


class ForkArguments(Arguments):
    """Arguments of `conversation_fork`."""

    continuation_id: str
    at_seq: int | None = Field(None, ge=1, description="Last message to keep. Left out: all.")
    title: str | None = None
    idempotency_key: str | None = Field(None, description="A repeated call with the same key returns the same fork.")


class UpdateArguments(Arguments):
    """Arguments of `conversation_update`."""

    KEEPS_EMPTY = frozenset({"title"})

    continuation_id: str
    title: str | None = Field(None, description="New title; empty removes it.")
    tags: list[str] | None = Field(None, description="Replaces all tags.")
    metadata: dict[str, Any] | None = Field(None, description="Replaces the metadata.")
    expected_revision: int | None = Field(None, ge=0)
    idempotency_key: str | None = None


class ConversationDeleteArguments(Arguments):
    """Arguments of `conversation_delete`."""

    continuation_id: str
    restore: bool = Field(False, description="Restore a deleted conversation instead, within 7 days.")
    expected_revision: int | None = Field(None, ge=0)
    idempotency_key: str | None = None


class ExportArguments(Arguments):
    """Arguments of `conversation_export`."""

    continuation_id: str
    format: Literal["jsonl", "markdown"] = "markdown"
    after_seq: int = Field(0, ge=0, description="next_after_seq of the previous part.")
    char_offset: int = Field(0, ge=0, description="next_char_offset of the previous part.")
    max_chars: int = Field(ANSWER_CHARS, ge=1_000, le=MAX_ANSWER_CHARS, description="Limit of the whole answer.")


class ExportOutput(BaseModel):
    """structuredContent of `conversation_export`."""

    continuation_id: str
    text: str
    next_after_seq: int | None = Field(description="Where the next part begins; null at the end.")
    next_char_offset: int = Field(description="Offset in that message; not 0 when it is too long for one part.")


class ImportArguments(Arguments):
    """Arguments of `conversation_import`."""

    text: str = Field(description="A complete export: all parts joined.")
    format: Literal["jsonl", "markdown"] = "markdown"
    continuation_id: str | None = Field(None, description="Store it with this id instead of its own.")


class ImportOutput(BaseModel):
    """structuredContent of `conversation_import`."""

    continuation_id: str
    messages: int
    stored: int = Field(description="Number of messages that were new.")
    revision: int
    restored: bool = Field(description="True when a deleted conversation was restored.")
    notes: list[str] = Field(description="Files that could not be stored.")


def curation_tools(conversations: ConversationService) -> tuple[ToolSpec, ...]:
    """Make these tools."""
    return (
        _search_tool(conversations),
        _fork_tool(conversations),
        _update_tool(conversations),
        _delete_tool(conversations),
        _export_tool(conversations),
        _import_tool(conversations),
    )


def search_text(page: SearchPage, hits: str) -> str:
    """Return the lines of the hits, preceded by notes on anything unexpected about them."""
    lines = [UNREAD.format(count=page.unread)] if page.unread else []
    lines += [SOME_WORDS] if page.matched == "some" else []
    return "\n".join((*lines, hits or "Nothing was found."))


def _search_tool(conversations: ConversationService) -> ToolSpec:
    async def handle(arguments: SearchArguments, context: CallContext) -> ToolResult:
        query = SearchQuery(
            owner=context.owner,
            text=arguments.query,
            continuation_id=optional_id(arguments.continuation_id),
            role=arguments.role,
            tool=arguments.tool,
            model=arguments.model,
            since=arguments.since,
            until=arguments.until,
            tags=arguments.tags or (),
            metadata=arguments.metadata or {},
        )
        page = await conversations.search(query, limit=arguments.limit, cursor=arguments.cursor)
        shown = fitting(page.hits, _hit, room())
        structured = {
            "matched": page.matched,
            "hits": shown,
            "next_cursor": page.cursor_after(len(shown)),
            "unread": page.unread,
        }
        return ToolResult(structured, search_text(page, items(shown, HIT)))

    return ToolSpec(
        name="conversation_search",
        title="Search conversations",
        description="Find stored messages and titles by their words, best match first.",
        arguments=SearchArguments,
        output_schema=output_schema(SearchOutput),
        handler=handle,
        read_only=True,
    )


def _fork_tool(conversations: ConversationService) -> ToolSpec:
    async def handle(arguments: ForkArguments, context: CallContext) -> ToolResult:
        fork = await conversations.fork(
            context.owner,
            ContinuationId(arguments.continuation_id),
            at_seq=arguments.at_seq,
            title=arguments.title,
            idempotency_key=arguments.idempotency_key,
        )
        return ToolResult(conversation_facts(fork), "The fork is made; this is its continuation_id.")

    return ToolSpec(
        name="conversation_fork",
        title="Fork a conversation",
        description="Start another conversation with the messages of this one up to at_seq.",
        arguments=ForkArguments,
        output_schema=output_schema(ConversationOutput),
        handler=handle,
    )


def _update_tool(conversations: ConversationService) -> ToolSpec:
    async def handle(arguments: UpdateArguments, context: CallContext) -> ToolResult:
        title, notes = arguments.title, list[str]()
        if not title and (arguments.tags is not None or arguments.metadata is not None):
            # Clients that fill in every optional argument send an empty text too.
            title, notes = None, [TITLE_KEPT] if title is not None else []
        change = ConversationUpdate(title=title, metadata=arguments.metadata, tags=arguments.tags)
        if change == ConversationUpdate():
            raise InvalidArgument("title", "nothing is to be changed", "Give a title, tags or metadata")
        changed = await conversations.change(
            context.owner,
            ContinuationId(arguments.continuation_id),
            change,
            expected_revision=arguments.expected_revision,
            idempotency_key=arguments.idempotency_key,
        )
        facts = {**conversation_facts(changed), "notes": notes}
        return ToolResult(facts, "The conversation was changed.")

    return ToolSpec(
        name="conversation_update",
        title="Rename or tag a conversation",
        description="Change title, tags or metadata of a conversation.",
        arguments=UpdateArguments,
        output_schema=output_schema(ConversationOutput),
        handler=handle,
        idempotent=True,
    )


def _delete_tool(conversations: ConversationService) -> ToolSpec:
    async def handle(arguments: ConversationDeleteArguments, context: CallContext) -> ToolResult:
        name = ContinuationId(arguments.continuation_id)
        expected, key = arguments.expected_revision, arguments.idempotency_key
        work = conversations.restore if arguments.restore else conversations.delete
        marked = await work(context.owner, name, expected_revision=expected, idempotency_key=key)
        structured = {"continuation_id": name, "revision": marked.revision, "deleted": not arguments.restore}
        return ToolResult(structured, RESTORED if arguments.restore else DELETED)

    return ToolSpec(
        name="conversation_delete",
        title="Delete a conversation",
        description="Delete a conversation; for 7 days it can be restored.",
        arguments=ConversationDeleteArguments,
        handler=handle,
        destructive=True,
        idempotent=True,
    )


def _export_tool(conversations: ConversationService) -> ToolSpec:
    async def handle(arguments: ExportArguments, context: CallContext) -> ToolResult:
        part = await conversations.export_part(
            context.owner,
            ContinuationId(arguments.continuation_id),
            arguments.format,
            after_seq=arguments.after_seq,
            budget_bytes=arguments.max_chars,
        )
        header = part.header if not arguments.char_offset else ""
        within = room(arguments.max_chars) - size_of(header)
        text, rest = cut(part.text, arguments.char_offset, within)
        structured = {
            "continuation_id": arguments.continuation_id,
            "text": header + text,
            "next_after_seq": part.next_after_seq if rest is None else arguments.after_seq,
            "next_char_offset": rest or 0,
        }
        return ToolResult(structured, header + text)

    return ToolSpec(
        name="conversation_export",
        title="Export a conversation",
        description="Return a conversation as Markdown or JSON Lines, in parts; joined, they can be imported.",
        arguments=ExportArguments,
        output_schema=output_schema(ExportOutput),
        handler=handle,
        read_only=True,
        meta=SHOW_WHOLE,
    )


def _import_tool(conversations: ConversationService) -> ToolSpec:
    async def handle(arguments: ImportArguments, context: CallContext) -> ToolResult:
        text = arguments.text.removeprefix("\ufeff")
        parts = read_lines(text.split("\n")) if arguments.format == "jsonl" else read_markdown(text)
        last = None
        async for progress in conversations.import_text(
            context.owner, parts, as_name=optional_id(arguments.continuation_id)
        ):
            last = progress
            await context.progress(f"{progress.seen} messages read, {progress.stored} stored")
        if last is None:
            raise AssertionError("an import has at least one batch")
        structured = {
            "continuation_id": last.continuation_id,
            "messages": last.seen,
            "stored": last.stored,
            "revision": last.revision,
            "restored": last.restored,
            "notes": list(last.notes),
        }
        others = "" if last.stored == last.seen else "; the others existed already"
        said = [f"{last.stored} of {last.seen} messages were stored{others}."]
        said += ["The conversation was deleted and has been restored."] if last.restored else []
        return ToolResult(structured, "\n".join([*said, *last.notes]))

    return ToolSpec(
        name="conversation_import",
        title="Import a conversation",
        description="Store an exported conversation. A repeated import stores only the missing messages.",
        arguments=ImportArguments,
        output_schema=output_schema(ImportOutput),
        handler=handle,
        idempotent=True,
        timeout_s=TRANSFER_TIMEOUT_S,
    )


def _hit(hit: SearchHit) -> dict[str, Any]:
    return {
        "continuation_id": hit.continuation_id,
        "title": hit.title,
        "seq": hit.seq,
        "role": hit.role,
        "created_at": hit.created_at.isoformat(),
        "tool": hit.tool,
        "model": hit.model,
        "snippet": hit.snippet if len(hit.snippet) <= SNIPPET_CHARS else f"{hit.snippet[:SNIPPET_CHARS]}...",
        "rank": hit.rank,
        "missing": list(hit.missing),
    }
