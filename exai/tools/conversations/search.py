"""The tool `conversation_search`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from exai.conversations import ConversationStore
from exai.db.search import SearchHit, SearchQuery
from exai.mcp.features.results import ToolOutput
from exai.mcp.features.texts import items
from exai.mcp.features.tools import Arguments, CallContext, ToolSpec
from exai.models import ContinuationId
from exai.tools.limits import answer_limit, take_rows
from exai.validation import MAX_LIST

SEARCH_HITS = 20
HIT = ("continuation_id", "title", "seq", "role", "created_at", "tool", "model", "snippet", "missing")
"""Fields of a search hit in the text."""

SOME_WORDS = "Nothing has all of these words; the following have most of them."
UNREAD = "At least {count} messages were stored just now and not looked through; search again in a few seconds."
SNIPPET_CHARS = 1_000
"""A snippet is a few words around the match, but a word may have any length."""


class SearchArguments(Arguments):
    """Arguments of `conversation_search`."""

    query: str = Field(description='Words; "quoted phrase", or, -without, begin*.')
    continuation_id: ContinuationId | None = Field(None, description="Only in this conversation.")
    role: Literal["system", "user", "assistant", "tool"] | None = None
    tool: str | None = Field(None, description="Only messages that this tool stored.")
    model: str | None = Field(None, description="Only turns of this model.")
    since: datetime | None = Field(None, description="ISO 8601 with offset.")
    until: datetime | None = None
    tags: list[str] | None = Field(None, description="Only in conversations with all of these tags.")
    metadata: dict[str, Any] | None = Field(None, description="Only in conversations whose metadata contains this.")
    limit: int = Field(SEARCH_HITS, ge=1, le=MAX_LIST)
    cursor: str | None = Field(None, description="next_cursor of the previous page.")


@dataclass
class HitOutput:
    """A matching message, or a matching title."""

    continuation_id: str
    title: str | None
    seq: Annotated[int, Field(description="0: the title matches.")]
    role: str | None
    created_at: str
    tool: str | None
    model: str | None
    snippet: str
    rank: float
    missing: Annotated[list[str], Field(description="Words that it does not contain.")]


@dataclass
class SearchOutput(ToolOutput):
    """Answer of `conversation_search`."""

    matched: Annotated[
        Literal["all", "some"], Field(description="some: no message has all words; these have most of them.")
    ]
    hits: Annotated[list[HitOutput], Field(description="Best first; **matches** are marked.")]
    next_cursor: str | None
    unread: Annotated[int, Field(description="Messages just stored, not looked through yet; search again shortly.")]

    def as_text(self) -> str:
        """Return one line for each hit, preceded by notes on anything unexpected about them."""
        lines = [UNREAD.format(count=self.unread)] if self.unread else []
        lines += [SOME_WORDS] if self.matched == "some" else []
        return "\n".join((*lines, items(map(vars, self.hits), HIT) or "Nothing was found."))


def search_tool(conversations: ConversationStore) -> ToolSpec:
    """Make the tool."""

    async def handle(arguments: SearchArguments, context: CallContext) -> SearchOutput:
        query = SearchQuery(
            owner=context.owner,
            text=arguments.query,
            continuation_id=arguments.continuation_id,
            role=arguments.role,
            tool=arguments.tool,
            model=arguments.model,
            since=arguments.since,
            until=arguments.until,
            tags=arguments.tags or (),
            metadata=arguments.metadata or {},
        )
        page = await conversations.search(query, limit=arguments.limit, cursor=arguments.cursor)
        shown = take_rows(page.hits, _hit, answer_limit(context.client))
        return SearchOutput(
            matched=page.matched, hits=shown, next_cursor=page.cursor_after(len(shown)), unread=page.unread
        )

    return ToolSpec(
        name="conversation_search",
        title="Search conversations",
        description="Find what was said earlier: stored messages and titles by their words, best match first.",
        arguments=SearchArguments,
        output=SearchOutput,
        handler=handle,
        read_only=True,
    )


def _hit(hit: SearchHit) -> HitOutput:
    return HitOutput(
        continuation_id=hit.continuation_id,
        title=hit.title,
        seq=hit.seq,
        role=hit.role,
        created_at=hit.created_at.isoformat(),
        tool=hit.tool,
        model=hit.model,
        snippet=hit.snippet if len(hit.snippet) <= SNIPPET_CHARS else f"{hit.snippet[:SNIPPET_CHARS]}...",
        rank=hit.rank,
        missing=list(hit.missing),
    )
