"""What a turn has received from its model so far, in text and in tokens."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from exai.conversations.turns.prompt import estimate_tokens
from exai.errors import DeadlineExceeded, ProviderBroken, ShuttingDown
from exai.models import Completion, Delta, OnDelta, Usage

_WORKED = (asyncio.CancelledError, DeadlineExceeded, ProviderBroken, ShuttingDown)
"""Ends of a call that the provider has accepted and bills; it bills nothing for a request that it refuses."""


class TurnTally:
    """Forwards deltas to the caller, keeps the text for an answer that breaks off, and counts for the ledger."""

    def __init__(self, on_delta: OnDelta | None) -> None:
        self._on_delta = on_delta
        self._began = time.monotonic()
        self._pieces: list[str] = []
        self._reasoning: list[str] = []
        self._sent_tokens: int | None = None
        self._reported: Usage | None = None
        self.is_estimated = False
        """Whether the tokens of the answer are estimates."""

    @property
    def took_s(self) -> float:
        """Seconds since the turn began."""
        return time.monotonic() - self._began

    @property
    def text(self) -> str:
        """The text of the answer."""
        return "".join(self._pieces)

    def sent(self, tokens: int) -> None:
        """Note that a prompt of an estimated size goes to the model."""
        self._sent_tokens = tokens

    def reported(self, usage: Usage) -> None:
        """Note the provider's own report."""
        self._reported = usage

    def counted(self, completion: Completion) -> Completion:
        """Return the answer, with estimates of its tokens if the provider has reported none."""
        usage = completion.usage
        if self._sent_tokens is None or usage.input_tokens or usage.output_tokens or usage.cost_usd is not None:
            return completion
        self.is_estimated = True
        return replace(completion, usage=_estimated(self._sent_tokens, completion.content, completion.reasoning))

    def spent(self, error: BaseException) -> tuple[Usage | None, bool]:
        """Return the tokens of a call that ended in `error`, None if not billed, and whether they are estimated."""
        if self._reported is not None and self._reported.input_tokens:
            return self._reported, False
        is_answered = bool(self._pieces or self._reasoning)
        if self._sent_tokens is None or not (is_answered or isinstance(error, _WORKED)):
            return None, False
        return _estimated(self._sent_tokens, self.text, "".join(self._reasoning)), True

    async def __call__(self, delta: Delta) -> None:
        """Take a part of the answer."""
        if delta.content:
            self._pieces.append(delta.content)
        if delta.reasoning:
            self._reasoning.append(delta.reasoning)
        if self._on_delta is not None:
            await self._on_delta(delta)


def _estimated(sent_tokens: int, content: str, reasoning: str) -> Usage:
    reasoning_tokens = estimate_tokens(reasoning) if reasoning else 0
    return Usage(sent_tokens, estimate_tokens(content) + reasoning_tokens, 0, reasoning_tokens)
