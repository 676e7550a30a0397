"""Budgets of money for conversations and owners.

A turn reserves the highest likely cost in the statement that begins it, so that turns which begin at once on any
daemon cannot overspend together; the end of the turn replaces the reservation by the cost. A reservation ends with the
turn's lease, so that a lost daemon keeps nothing reserved. While a budget is set, an answer without a limit of its own
gets that of the reservation.

Invariant: a budget costs no round trip. While one is set, no model without a price is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Final

from exai.conversations.requests import ChatRequest
from exai.conversations.turns.prompt import estimate_tokens
from exai.db.records import BudgetClaim, BudgetLimits
from exai.errors import InvalidArgument
from exai.models import Usage
from exai.providers.base import Model, Price, Pricing
from exai.providers.registry import Providers
from exai.settings.load import BudgetSettings

LEAST_BYTES_PER_TOKEN: Final = 2
"""Of texts of any kind, except encoded binaries, so that a reservation is rather too high."""


def limits_of(settings: BudgetSettings) -> BudgetLimits:
    """Return the budgets that are set."""
    return BudgetLimits(settings.conversation_usd, settings.owner_day_usd, settings.owner_month_usd)


def pricing_of(settings: BudgetSettings) -> Pricing:
    """Return what holds for models without a known price."""
    given, answered = settings.unpriced_input_usd, settings.unpriced_output_usd
    if given is None and answered is None:
        return Pricing(None, limits_of(settings).are_set)
    input_usd = Decimal(str(answered if given is None else given))
    output_usd = Decimal(str(given if answered is None else answered))
    return Pricing(Price(input_usd, output_usd, input_usd), limits_of(settings).are_set)


class Budgets:
    """The configured budgets, the same for each owner and each conversation."""

    def __init__(self, settings: BudgetSettings, providers: Providers) -> None:
        self._limits, self._answer_tokens, self._providers = limits_of(settings), settings.answer_tokens, providers

    def answer_tokens(self, model: Model) -> int | None:
        """Return the limit of an answer without one of its own; None if no budget is in force.

        Raises `InvalidArgument` for a model without a price while a budget is set.
        """
        return min(self._answer_tokens, model.max_output_tokens) if self._is_limited(model) else None

    def bounded(self, request: ChatRequest, model: Model) -> ChatRequest:
        """Return the request with a limit of the answer, if a budget is in force and it has none.

        Raises `InvalidArgument` for a model without a price while a budget is set.
        """
        answer_tokens = self.answer_tokens(model)
        if answer_tokens is None or request.max_output_tokens is not None:
            return request
        return replace(request, max_output_tokens=answer_tokens)

    def claim(self, bounded: ChatRequest, model: Model) -> BudgetClaim | None:
        """Return the amount that a turn has to reserve; None if no budget applies."""
        if not self._is_limited(model) or bounded.max_output_tokens is None:
            return None
        instructions = bounded.guidance.instructions if bounded.guidance else None
        sent = sum(estimate_tokens(text) for text in (bounded.prompt, bounded.system, instructions) if text)
        return self._claim(
            self._providers.may_answer(model), sent, bounded.max_output_tokens, web_search=bounded.web_search
        )

    def claim_of(self, model: Model, prompt_tokens: int, *, web_search: bool = False) -> BudgetClaim | None:
        """Return the amount for one call of `model`, without stored history, to reserve; None if no budget applies.

        Raises `InvalidArgument` for a model without a price while a budget is set.
        """
        answer_tokens = self.answer_tokens(model)
        if answer_tokens is None:
            return None
        return self._claim([model], prompt_tokens, answer_tokens, web_search=web_search)

    def _claim(
        self, models: Sequence[Model], prompt_tokens: int, answer_tokens: int, *, web_search: bool
    ) -> BudgetClaim:
        """Return the claim for the dearest of the models that may answer; those without a price are not asked."""
        searches = (self._providers.most_search_usd(each) for each in models if web_search)
        return BudgetClaim(
            prompt_usd=max(self._cost_usd(each, prompt_tokens, 0) for each in models),
            answer_usd=max(self._cost_usd(each, 0, answer_tokens) for each in models)
            + max(searches, default=Decimal(0)),
            byte_usd=max(self._cost_usd(each, 1, 0) for each in models) / LEAST_BYTES_PER_TOKEN,
            limits=self._limits,
        )

    def _is_limited(self, model: Model) -> bool:
        if not self._limits.are_set:
            return False
        if self._providers.prices.price(model) is None:
            raise InvalidArgument(
                "model",
                f"{model.name} has no known price, so that the budgets of EXAI_BUDGETS__* cannot cover it",
                "Use a model with a price, which listmodels shows; state its price in EXAI_PROVIDERS__MODELS_FILE; or "
                "set EXAI_BUDGETS__UNPRICED_INPUT_USD and EXAI_BUDGETS__UNPRICED_OUTPUT_USD, to 0 if it is free",
            )
        return any(self._cost_usd(each, 1, 1) > 0 for each in self._providers.may_answer(model))

    def _cost_usd(self, model: Model, input_tokens: int, output_tokens: int) -> Decimal:
        price = self._providers.prices.price(model)
        return Decimal(0) if price is None else price.cost_usd(Usage(input_tokens, output_tokens))
