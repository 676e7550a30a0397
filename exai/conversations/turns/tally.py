"""The text and the tokens that a turn has received from its model so far."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from decimal import Decimal
from typing import Any, Final

from exai.conversations.turns.prompt import estimate_tokens
from exai.errors import Conflict, DeadlineExceeded, ProviderBroken, ShuttingDown
from exai.models import Completion, Delta, OnDelta, Usage
from exai.providers.embeddings import EmbeddingCost
from exai.providers.prices import REPORTS_COST

_WORKED = (asyncio.CancelledError, Conflict, DeadlineExceeded, ProviderBroken, ShuttingDown)
"""Ends of a call that the provider has accepted and bills; it bills nothing for a request that it refuses. A `Conflict`
ends the call of a turn that was cancelled in the database (`exai.conversations.turns.leases`)."""

MOST_TOKENS: Final = 8 * 1_048_576
"""More than a request can have, searches included; a larger report is a defect, and no budget has to bear it."""


class TurnTally:
    """Forwards deltas to the caller, keeps the text for an answer that breaks off, and counts for the ledger."""

    def __init__(self, on_delta: OnDelta | None) -> None:
        self._on_delta = on_delta
        self._began = time.monotonic()
        self._pieces: list[str] = []
        self._reasoning: list[str] = []
        self._sent_tokens: int | None = None
        self._reported: Usage | None = None
        self.embedding: EmbeddingCost | None = None
        """The cost of the question's vector, if one was made."""

        self.is_estimated = False
        """Whether the tokens of the answer are estimates."""

    @property
    def has_estimates(self) -> bool:
        """Whether tokens of the answer or of the question's vector are estimates, or the vector has no price."""
        vector = self.embedding
        return self.is_estimated or (vector is not None and (vector.is_estimated or vector.cost_usd is None))

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
        """Return the answer, with estimates of the tokens that the provider has not reported, or not credibly."""
        usage = completion.usage
        if self._sent_tokens is None:
            return completion
        if not (usage.input_tokens or usage.output_tokens) and completion.provider != REPORTS_COST:
            # Without tokens an amount says nothing; that of OpenRouter is its bill.
            usage = replace(usage, cost_usd=None)
        elif usage.cost_usd is not None and not (usage.input_tokens or usage.output_tokens):
            return completion
        credible = _credible(usage, _estimated(self._sent_tokens, completion.content, completion.reasoning))
        self.is_estimated = _differ(usage, credible)
        return completion if credible == completion.usage else replace(completion, usage=credible)

    def with_embedding(self, usage: Usage, cost_usd: Decimal | None) -> tuple[Usage, Decimal | None]:
        """Return tokens and cost with those of the question's vector."""
        vector = self.embedding
        if vector is None:
            return usage, cost_usd
        total_usd = None if cost_usd is None else cost_usd + (vector.cost_usd or 0)
        return replace(usage, input_tokens=usage.input_tokens + vector.tokens), total_usd

    def facts(self) -> dict[str, Any]:
        """Return what is stored of the question's vector with the turn."""
        vector = self.embedding
        if vector is None:
            return {}
        usd = None if vector.cost_usd is None else float(vector.cost_usd)
        return {"embedding": {"model": vector.model, "tokens": vector.tokens, "cost_usd": usd}}

    def spent(self, error: BaseException) -> tuple[Usage | None, bool]:
        """Return the tokens of a call that ended in `error`, None if not billed, and whether they are estimated."""
        is_reported = self._reported is not None and self._reported.input_tokens > 0
        is_answered = bool(self._pieces or self._reasoning)
        if self._sent_tokens is None or not (is_reported or is_answered or isinstance(error, _WORKED)):
            return None, False
        likely = _estimated(self._sent_tokens, self.text, "".join(self._reasoning))
        if self._reported is None or not is_reported:
            return likely, True
        credible = _credible(self._reported, likely)
        return credible, _differ(self._reported, credible)

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


def _credible(reported: Usage, likely: Usage) -> Usage:
    """Return a report with likely numbers in place of those that are missing, or that no request can have."""
    sent = reported.input_tokens if 0 < reported.input_tokens <= MOST_TOKENS else likely.input_tokens
    answered = reported.output_tokens if 0 < reported.output_tokens <= MOST_TOKENS else likely.output_tokens
    return replace(
        reported,
        input_tokens=sent,
        output_tokens=answered,
        cached_tokens=min(reported.cached_tokens, sent),
        reasoning_tokens=min(reported.reasoning_tokens, answered),
    )


def _differ(one: Usage, other: Usage) -> bool:
    return (one.input_tokens, one.output_tokens) != (other.input_tokens, other.output_tokens)
