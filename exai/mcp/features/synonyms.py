"""Names that models give to arguments and roles, because other tools use them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from exai.mcp.core.jsonrpc import Json

SYNONYMS: Final[Mapping[str, tuple[str, ...]]] = {
    "prompt": ("question", "query", "message", "input", "text", "user_prompt", "instruction", "step"),
    "query": ("q", "words", "search", "search_query", "prompt", "text", "keywords"),
    "continuation_id": ("conversation_id", "conversation", "thread_id", "chat_id", "session_id", "id"),
    "file_id": ("id", "file"),
    "file_ids": ("files", "ids", "file_id"),
    "files": ("file_ids", "file", "file_id", "paths", "path", "file_paths", "absolute_file_paths", "relevant_files"),
    "system": ("system_prompt", "system_message", "instructions"),
    "model": ("model_name", "model_id"),
    "max_output_tokens": ("max_tokens", "max_completion_tokens"),
    "thinking": ("thinking_mode", "reasoning_effort", "effort"),
    "content": ("text", "body", "data"),
    "content_base64": ("base64", "data_base64", "blob"),
    "name": ("filename", "file_name"),
    "path": ("file_path", "filepath"),
    "part": ("title", "query", "search", "text", "name"),
    "media_type": ("mime_type", "content_type"),
    "messages": ("message",),
    "text": ("content", "data", "export", "markdown", "jsonl"),
    "limit": ("max_results", "count", "page_size", "top_k"),
    "cursor": ("next_cursor", "page_token"),
    "before_seq": ("next_before_seq",),
    "after_seq": ("next_after_seq",),
    "after": ("next_after",),
    "char_offset": ("next_char_offset", "next_offset"),
    "offset": ("next_offset",),
    "tags": ("tag", "labels"),
    "title": ("name",),
    "at_seq": ("seq",),
    "expected_revision": ("revision",),
    "since": ("after", "from", "start"),
    "until": ("before", "to", "end"),
    "role": ("sender", "author"),
}
"""Synonyms that models use for an argument, most likely first."""

ROLES: Final[Mapping[str, str]] = {
    "human": "user",
    "ai": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "developer": "system",
    "function": "tool",
}
"""The roles of messages, by their names in other systems."""

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def argument_for(name: str, properties: Json, found: Json) -> str | None:
    """Return the argument that has this synonym and no value yet; the most likely one if there are several."""
    free = [target for target in properties if found.get(target) in (None, "")]
    targets = [target for target in free if name in SYNONYMS.get(target, ())]
    ranks = [SYNONYMS[target].index(name) for target in targets]
    return targets[ranks.index(min(ranks))] if ranks else None


def own_spelling(name: str) -> str:
    """Return a name in the spelling of this project's schemas."""
    return _CAMEL.sub("_", name.strip()).replace("-", "_").replace(" ", "_").lower()
