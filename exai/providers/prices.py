"""The cost of tokens today, by the price of a model, the provider's own report, or an assumed price."""

from __future__ import annotations

from decimal import Decimal
from typing import Final

from exai.models import Usage
from exai.providers.base import Clocks, Model, Price, Pricing

REPORTS_COST: Final = "openrouter"


class Prices:
    """The prices of all models on the present day."""

    def __init__(self, pricing: Pricing, clocks: Clocks) -> None:
        self._pricing, self._clocks = pricing, clocks

    def price(self, model: Model) -> Price | None:
        """Return the price of a model today, or the one that is assumed for models without."""
        return self._own(model) or self._pricing.assumed

    def is_affordable(self, model: Model) -> bool:
        """Return whether the model may be asked: it has a price, or no budget requires one."""
        return not self._pricing.is_required or self.price(model) is not None

    def cost_usd(self, model: Model, usage: Usage) -> Decimal | None:
        """Return the price of `usage` today, None if it is unknown.

        What OpenRouter reports is what it charges. The amount that another endpoint reports may be in another currency,
        so it is used only for models without a price of their own.
        """
        price = self._own(model)
        if usage.cost_usd is not None and (price is None or model.provider == REPORTS_COST):
            return usage.cost_usd
        price = price or self._pricing.assumed
        return None if price is None else price.cost_usd(usage)

    def is_assumed(self, model: Model, usage: Usage) -> bool:
        """Return whether the cost of `usage` rests on the assumed price."""
        return self._own(model) is None and usage.cost_usd is None and self._pricing.assumed is not None

    def _own(self, model: Model) -> Price | None:
        return model.price_on(self._clocks.now().date())
