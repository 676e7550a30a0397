"""Readable texts of the entries of Claude Code's transcripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from exai.adapters.histories import shown
from exai.items import dump_item
from exai.models import Role
from exai.validation import MAX_KIND_CHARS

SPEAKERS: Final[Mapping[str, Role]] = {"user": "user", "assistant": "assistant"}
TEXT_FIELDS: Final = ("summary", "customTitle", "aiTitle", "lastPrompt", "content", "text")
"""Where entries have readable text that are no messages."""


def entry_text(entry: Mapping[str, Any]) -> tuple[Role, str, str]:
    """Return role, kind and text of an entry, for readers: its texts, calls of tools and their results."""
    kind, message = entry.get("type"), entry.get("message")
    role = SPEAKERS.get(kind) if isinstance(kind, str) else None
    if role is None or not isinstance(message, Mapping):
        lines = [text for name in TEXT_FIELDS if isinstance(text := entry.get(name), str)]
        return "system", shown(str(kind or "entry"))[:MAX_KIND_CHARS] or "entry", "\n".join(lines)
    content = message.get("content")
    blocks = content if isinstance(content, list) else [{"type": "text", "text": content}]
    types = {block.get("type") for block in blocks if isinstance(block, Mapping)}
    is_result = types == {"tool_result"}
    kind = "tool_result" if is_result else "tool_use" if types == {"tool_use"} else "message"
    return "tool" if is_result else role, kind, "\n".join(_texts(blocks))


def _texts(blocks: Sequence[Any]) -> list[str]:
    texts = [_block_text(block) for block in blocks if isinstance(block, Mapping)]
    return [text for text in texts if text]


def _block_text(block: Mapping[str, Any]) -> str:
    kind, content = block.get("type"), block.get("content")
    if kind == "tool_use":
        return f"{block.get('name')}({dump_item(block.get('input'))})"
    if kind == "tool_result":
        if isinstance(content, str):
            return content
        parts = content if isinstance(content, list) else []
        return "\n".join(str(part["text"]) for part in parts if isinstance(part, Mapping) and "text" in part)
    text = block.get("text")
    return text if isinstance(text, str) else ""
