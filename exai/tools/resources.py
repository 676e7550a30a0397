"""Resources that clients read by URI instead of by tool: conversations and files.

Invariant: a URI shows its owner what the tools would show, bounded in size; data of other owners is
indistinguishable from data that does not exist.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import unquote

import orjson

from exai.conversations import ConversationStore
from exai.db.filters import WITH_MESSAGES
from exai.errors import InvalidArgument, NotFound
from exai.files.service import FileService
from exai.mcp.core.jsonrpc import INVALID_PARAMS, RpcError
from exai.mcp.core.protocol import CallContext, Feature
from exai.mcp.features.resources import Listing, ResourceContents, ResourceRegistry, ResourceSpec
from exai.models import ContinuationId, Conversation, FileId, Owner, Page
from exai.settings.load import Described
from exai.tools.conversations.outputs import ConversationOutput, take_messages
from exai.tools.limits import size_limit
from exai.tools.prompts import CONVERSATION, JSON_TYPE, conversation_uri

FILE = "exai://files/"
SETTINGS = "exai://settings"
"""The settings in effect, for the page. They are the operator's, so that one owner among several does not see them."""

LIST_PAGE = 50
CONVERSATION_CHARS = 100_000
"""Maximum size of a conversation's messages in one read; conversation_get returns the rest."""

FILE_BYTES = 500_000
"""Maximum size of a file in one read: as base64 it still fits into one message."""

TEMPLATES = (
    ResourceSpec(
        CONVERSATION + "{id}",
        "conversation",
        "Conversation",
        "A stored conversation's newest messages, by continuation_id.",
        JSON_TYPE,
    ),
    ResourceSpec(FILE + "{id}", "file", "File", "A stored file, by file_id.", "application/octet-stream"),
)


def resource_feature(
    conversations: ConversationStore, files: FileService, described: Callable[[], Sequence[Described]] | None = None
) -> Feature:
    """Make the feature with the resources; `described` returns the settings, if callers may read them."""
    reading = _ResourceLister(conversations, files, described)
    return ResourceRegistry(TEMPLATES, reading.read, reading.list, announces=True).feature()


class _ResourceLister:
    def __init__(
        self,
        conversations: ConversationStore,
        files: FileService,
        described: Callable[[], Sequence[Described]] | None,
    ) -> None:
        self._conversations = conversations
        self._files = files
        self._described = described

    async def list(self, cursor: str | None, context: CallContext) -> Listing:
        """List conversations, latest change first; 1 database round trip."""
        page = await self._conversations.list(context.owner, limit=LIST_PAGE, cursor=cursor, only=WITH_MESSAGES)
        return Listing([_listed(each) for each in page.conversations], page.next_cursor)

    async def read(self, uri: str, context: CallContext) -> Sequence[ResourceContents]:
        """Return the contents of a URI; empty for an unknown one."""
        try:
            if uri.startswith(CONVERSATION):
                return [await self._conversation(uri, context.owner)]
            if uri.startswith(FILE):
                return [await self._file(uri, context.owner)]
        except (NotFound, InvalidArgument):
            return []
        if uri == SETTINGS and self._described is not None:
            lines = [line._asdict() for line in self._described()]
            return [ResourceContents(uri, orjson.dumps({"settings": lines}).decode(), JSON_TYPE)]
        return []

    async def _conversation(self, uri: str, owner: Owner) -> ResourceContents:
        page = await self._conversations.read(owner, ContinuationId(unquote(uri.removeprefix(CONVERSATION))))
        return ResourceContents(uri, orjson.dumps(_bounded(page)).decode(), JSON_TYPE)

    async def _file(self, uri: str, owner: Owner) -> ResourceContents:
        file = await self._files.get(owner, FileId(uri.removeprefix(FILE)))
        if file.size_bytes > FILE_BYTES:
            problem = f"{uri} has {file.size_bytes} bytes, {FILE_BYTES} can be read at once; file_get reads it in parts"
            raise RpcError(INVALID_PARAMS, problem, {"uri": uri})
        part = await self._files.read_part(owner, file.id, 0, FILE_BYTES)
        return ResourceContents(uri, part.data if part.text is None else part.text, file.media_type)


def _listed(conversation: Conversation) -> ResourceSpec:
    key = conversation.continuation_id
    changed = conversation.updated_at.isoformat(timespec="seconds")
    tags = f", tagged {', '.join(conversation.tags)}" if conversation.tags else ""
    failed = ", without an answer to its first question" if conversation.newest_kind == "failed" else ""
    return ResourceSpec(
        conversation_uri(key),
        key,
        conversation.title or "",
        f"{conversation.title or 'Without a title'}: {conversation.last_seq} messages, changed {changed}{tags}{failed}",
        JSON_TYPE,
    )


def _bounded(page: Page) -> dict[str, Any]:
    shown, next_before_seq = take_messages(page, size_limit(CONVERSATION_CHARS))
    return {
        **ConversationOutput.of(page.conversation).as_json(),
        "next_before_seq": next_before_seq,
        "messages": shown,
        "stale_s": page.stale_s,
    }
