"""Readable texts of the events of Google's ADK."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exai.adapters.histories import shown
from exai.items import dump_item
from exai.models import Role


def event_text(event: Mapping[str, Any]) -> tuple[Role, str, str]:
    """Return role, kind and text of an event, for readers: its texts, calls of tools and their results."""
    parts = (event.get("content") or {}).get("parts") or []
    texts = [text for part in parts if (text := _part_text(part))]
    is_result = bool(parts) and all("function_response" in part for part in parts)
    is_call = bool(parts) and all("function_call" in part for part in parts)
    role: Role = "tool" if is_result else "user" if event.get("author") == "user" else "assistant"
    kind = "tool_result" if is_result else "tool_use" if is_call else "message"
    return role, kind, shown("\n".join(texts))


def _part_text(part: Mapping[str, Any]) -> str:
    if call := part.get("function_call"):
        return f"{call.get('name')}({dump_item(call.get('args'))})"
    if result := part.get("function_response"):
        return dump_item(result.get("response"))
    text = part.get("text")
    return text if isinstance(text, str) else ""
