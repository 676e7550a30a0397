"""The answer of a call that ends before its model's answer, because the client waits no longer.

Invariant: the turn goes on and is stored, and the answer names the calls that return its outcome.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from exai.mcp.core.protocol import BegunWork
from exai.mcp.features.results import ToolOutput


@dataclass
class UnfinishedOutput(ToolOutput):
    """Answer of every tool that asks a model, at the deadline of its client."""

    next: str
    continuation_id: str
    complete: bool
    model: str
    idempotency_key: str
    content: str

    @classmethod
    def of(cls, work: BegunWork) -> Self:
        """Make the output for a turn that goes on."""
        name, key, model = (work.facts[each] for each in ("continuation_id", "idempotency_key", "model"))
        expects = work.facts["expects"]
        return cls(
            next=(
                f"Do not ask again. In about a minute call conversation_get with continuation_id {name}: {expects}. "
                f"Or repeat this call with idempotency_key {key}, which waits for the answer."
            ),
            continuation_id=name,
            complete=False,
            model=model,
            idempotency_key=key,
            content=f"{model} is still working. Its answer will be stored in the conversation {name}.",
        )

    def as_text(self) -> str:
        """State that the answer is not complete; the head contains the next step."""
        return f"complete: false\n\n{self.content}"
