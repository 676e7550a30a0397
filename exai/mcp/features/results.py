"""Results of tool calls: an output is declared once and gives the schema, the structured answer and the text.

Invariant: structure and text are each a complete answer, because some clients show their model only one of the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import orjson

from exai.errors import ExaiError
from exai.mcp.core.errors import error_facts
from exai.mcp.core.jsonrpc import Json
from exai.mcp.features.texts import UNDERSTOOD, headed, headed_facts

MAX_REPEATED_BYTES: Final = 480_000
"""Maximum error content repeated as text; a longer one does not fit into a message twice."""

ABOUT_ERRORS: Final = frozenset({"name", "model", "title", "metadata"})
"""Fields of an error that identify its subject, as its sentence does; no next call needs them."""


class ToolOutput:
    """Base of the answers of all tools, which are dataclasses. The fields, in order, are the structured answer.

    A field holds JSON or another dataclass; `Annotated` gives it a description. Handlers make the values, so these are
    not validated. None of the dataclasses has slots, because orjson writes those without them as fast as dicts. An
    output with notes for its caller declares `notes: list[str]`; every answer receives `understood` if arguments were
    not taken literally.
    """

    def as_json(self) -> dict[str, Any]:
        """Return the structured answer; it is empty for a tool that answers with text alone."""
        return dict(self.__dict__)

    def as_text(self) -> str:
        """Return the content of the text, which follows the head and the notes (`exai.mcp.features.texts`).

        Every tool's output defines it, which the registry checks; one that is only a part of others need not.
        """
        return ""

    def head(self) -> Json:
        """Return fields for the head of the text that are not at the top of the structured answer."""
        return {}

    def blocks(self) -> Sequence[Json]:
        """Return MCP content blocks after the text, such as images and links."""
        return ()


def call_result(output: ToolOutput, notes: Sequence[str] = ()) -> Json:
    """Return the `CallToolResult` for a handler's output; `notes` say how the arguments were understood."""
    facts = output.as_json()
    if notes and facts:
        facts[UNDERSTOOD] = [*notes, *facts.get(UNDERSTOOD, ())]
    return _shape(facts, output.as_text(), output.head(), output.blocks())


def error_result(error: ExaiError) -> Json:
    """Return the `CallToolResult` for a deliberate error of a tool."""
    return failed_result(error_facts(error))


def failed_result(facts: Json) -> Json:
    """Return the `CallToolResult` for an error's facts; an answer that exists only in the error is repeated as text."""
    text, content = str(facts["message"]), facts.get("content")
    if isinstance(content, str) and len(orjson.dumps(content)) <= MAX_REPEATED_BYTES:
        text = f"{text}\n\n{content}".strip()
    head = {name: value for name, value in facts.items() if name not in ABOUT_ERRORS}
    return _shape({"error": facts}, text, head, is_error=True)


def _shape(
    facts: Json, text: str, head: Json, blocks: Sequence[Json] = (), *, is_error: bool = False
) -> dict[str, Any]:
    if facts or head:
        text = headed(facts, text, head)
    shape: dict[str, Any] = {"content": [{"type": "text", "text": text}, *blocks] if text else [*blocks]}
    if facts:
        shape["structuredContent"] = headed_facts(facts)
    shape["isError"] = is_error
    return shape
