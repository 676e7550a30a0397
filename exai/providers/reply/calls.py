"""Collect the tool calls of a streamed answer, whose arguments come in any number of pieces; no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from exai.providers.reply.reading import clean_name

MAX_CALLS: Final = 8
MAX_ARGUMENT_CHARS: Final = 65_536


@dataclass(slots=True)
class ToolCall:
    """A call that the model makes of a tool that it was offered."""

    id: str = ""
    name: str = ""
    arguments: str = ""


def take_calls(message: Mapping[str, Any], calls: dict[int, ToolCall]) -> None:
    """Add the pieces of tool calls in a delta or a message to `calls`."""
    pieces = message.get("tool_calls")
    for position, piece in enumerate(pieces if isinstance(pieces, list) else ()):
        function = piece.get("function") if isinstance(piece, dict) else None
        index = piece.get("index", position) if isinstance(piece, dict) else None
        if not isinstance(function, dict) or type(index) is not int or not 0 <= index < MAX_CALLS:
            continue
        call = calls.setdefault(index, ToolCall())
        call.id = call.id or clean_name(_text(piece.get("id")))
        call.name = call.name or clean_name(_text(function.get("name")))
        call.arguments = (call.arguments + _text(function.get("arguments")))[:MAX_ARGUMENT_CHARS]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
