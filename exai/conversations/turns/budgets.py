"""Budgets of money for conversations and owners.

A turn reserves the highest likely cost in the statement that begins it, so that turns which begin at once on any
daemon cannot overspend together; the end of the turn replaces the reservation by the cost. While a budget is set, an
answer without a limit of its own gets that of the reservation.

Invariant: a budget costs no round trip. Models without a known price are not limited.
"""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Final

from exai.conversations.requests import ChatRequest
from exai.conversations.turns.prompt import estimate_tokens
from exai.db.records import BudgetClaim
from exai.models import Usage
from exai.providers.base import Model
from exai.providers.registry import Providers
from exai.settings.load import BudgetSettings

LEAST_BYTES_PER_TOKEN: Final = 2
"""Of texts of any kind, except encoded binaries, so that a reservation is rather too high."""


class Budgets:
    """The configured budgets, the same for each owner and each conversation."""

    def __init__(self, settings: BudgetSettings, providers: Providers) -> None:
        self._settings, self._providers = settings, providers

    def bounded(self, request: ChatRequest, model: Model) -> ChatRequest:
        """Return the request with a limit of the answer, if a budget is in force and it has none."""
        if request.max_output_tokens is not None or not self._is_limited(model):
            return request
        return replace(request, max_output_tokens=min(self._settings.answer_tokens, model.max_output_tokens))

    def claim(self, bounded: ChatRequest, model: Model) -> BudgetClaim | None:
        """Return what a turn has to reserve; None if no budget applies."""
        if not self._is_limited(model) or bounded.max_output_tokens is None:
            return None
        instructions = bounded.guidance.instructions if bounded.guidance else None
        sent = sum(estimate_tokens(text) for text in (bounded.prompt, bounded.system, instructions) if text)
        return BudgetClaim(
            fixed_usd=self._cost_usd(model, sent, bounded.max_output_tokens),
            byte_usd=self._cost_usd(model, 1, 0) / LEAST_BYTES_PER_TOKEN,
            conversation_usd=self._settings.conversation_usd,
            day_usd=self._settings.owner_day_usd,
            month_usd=self._settings.owner_month_usd,
        )

    def _is_limited(self, model: Model) -> bool:
        limits = (self._settings.conversation_usd, self._settings.owner_day_usd, self._settings.owner_month_usd)
        return any(limit is not None for limit in limits) and self._cost_usd(model, 1, 1) > 0

    def _cost_usd(self, model: Model, input_tokens: int, output_tokens: int) -> Decimal:
        return self._providers.cost_usd(model, Usage(input_tokens, output_tokens)) or Decimal(0)
