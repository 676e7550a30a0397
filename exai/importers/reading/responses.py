"""Items of OpenAI's Responses interface, which Codex and the Agents SDK store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from exai.importers.reading.contents import Content, read_content
from exai.models import Role

ROLES: Final[Mapping[str, Role]] = {
    "user": "user",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
}
MAX_KIND_CHARS: Final = 100


def role_and_kind(item: Mapping[str, Any]) -> tuple[Role, str]:
    """Return the role and the kind of an item; an item without a role is by the model, or a tool's output."""
    kind, role = item.get("type"), item.get("role")
    if isinstance(role, str) and role in ROLES:
        return ROLES[role], "message"
    if not isinstance(kind, str) or not kind:
        return "assistant", "item"
    return ("tool" if kind.endswith("_output") else "assistant"), kind[:MAX_KIND_CHARS]


def item_content(item: Mapping[str, Any]) -> Content:
    """Return what an item shows."""
    kind = item.get("type")
    if isinstance(kind, str) and kind.endswith("_output") and "output" in item:
        output = item["output"]
        if isinstance(output, Mapping) and "content" in output:
            output = output["content"]
        return read_content(output if isinstance(output, str | list) else {"output": output})
    if isinstance(item.get("content"), str | list) and item["content"]:
        return read_content(item["content"])
    return read_content(item)
