"""The output of tools that exist only in tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from exai.mcp.core.protocol import ClientInfo
from exai.mcp.features.results import ToolOutput


@dataclass
class Fixed(ToolOutput):
    """A structured answer, a text and further blocks that a test gives."""

    facts: Any
    body: str
    further: list[Any]

    @classmethod
    def of(cls, facts: Any, body: str, further: Sequence[Any] = ()) -> Fixed:
        return cls(facts, body, list(further))

    @classmethod
    def answer_from(cls, stored: Any, _client: ClientInfo) -> Fixed:
        return cls.of({}, stored.content)

    def as_json(self) -> dict[str, Any]:
        return dict(self.facts or {})

    def as_text(self) -> str:
        return self.body

    def blocks(self) -> Sequence[Any]:
        return self.further
