"""Determine how much of a conversation fits into a model's window; no I/O.

Prompt sizes are estimated without a tokenizer. A correction factor per model is learned from the providers' token
counts, and smaller windows from refusals that state one. This state is kept in the process and for its life only: a
new process starts from the estimate and learns the factor again within a few turns.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from exai.errors import ProviderTooLong
from exai.providers.base import Model, TokenFactor

MIN_OUTPUT_TOKENS: Final = 1_024
"""Tokens reserved for the answer in every window, unless the caller requested fewer."""

MIN_LEARNED_TOKENS: Final = 500
"""In shorter prompts the provider's own additions outweigh the text."""

LEAST_COUNTED_SHARE: Final = 0.3
"""A count below this share of the estimate is not one of the whole prompt: some servers leave out cached tokens."""

MIN_FACTOR: Final = 0.7
MAX_LEARNED_FACTOR: Final = 1.5
"""Largest factor that token counts of accepted prompts give."""

MAX_FACTOR: Final = 4.0
"""Largest factor that a refused prompt gives."""

MIN_COUNTS: Final = 3
"""Number of counted prompts before more is sent than the estimate allows."""

FREE_SHARE: Final = 0.1
"""Share of the window that history leaves free, because the estimate of single texts errs in both directions."""

NEAR_SHARE: Final = 0.9
"""Share of the room above which the provider counts the tokens of a prompt, if it offers that."""

FACTOR_STEP: Final = 0.05
"""The factor is rounded up to such steps, so that the room, and with it the oldest message sent, changes rarely."""

NEWEST_SHARE: Final = 0.3
REFUSED_FACTOR: Final = 1.5
"""Growth of the estimate after a refusal without numbers."""

REFUSED_SHARE: Final = 0.75
"""Maximum share of a refused prompt that is sent next."""

MIN_WINDOW: Final = 512
MAX_MODELS: Final = 1_000


@dataclass(slots=True)
class _Learned:
    provider: str
    factor: float | None = None
    spread: float = 0.0
    counts: int = 0
    floor: float = 0.0
    window: int | None = None


class Sizing:
    """Measured token counts by model, in this process; the least recently used are dropped beyond a limit."""

    def __init__(self) -> None:
        self._models: OrderedDict[str, _Learned] = OrderedDict()

    def window(self, model: Model) -> int:
        """Return the model's window, or the smaller one that a refusal named."""
        learned = self._models.get(model.name)
        return min(model.context_window, learned.window or model.context_window) if learned else model.context_window

    def factor(self, model: Model) -> float:
        """Return the tokens of this model per estimated token, rounded up."""
        learned = self._models.get(model.name)
        if learned is None:
            return 1.0
        least = MIN_FACTOR if learned.counts >= MIN_COUNTS else 1.0
        factor = min(max(learned.factor or 1.0, learned.floor, least), MAX_FACTOR)
        return math.ceil(round(factor / FACTOR_STEP, 6)) * FACTOR_STEP

    def limit(self, model: Model, max_output_tokens: int | None) -> int:
        """Return how many tokens of the estimate fit beside the answer, at least half a window's."""
        return int(self._available(model, max_output_tokens) / self.factor(model))

    def room(self, model: Model, max_output_tokens: int | None) -> int:
        """Return how many tokens of the estimate a prompt with its history may have, less than the limit."""
        return int(self._available(model, max_output_tokens) * (1 - FREE_SHARE) / self.factor(model))

    def is_near_limit(self, model: Model, estimated: int, max_output_tokens: int | None) -> bool:
        """Return whether a prompt is so near the limit that only the provider's own count shows if it fits."""
        return estimated > self.room(model, max_output_tokens) * NEAR_SHARE

    def exceeds(self, model: Model, counted: int, max_output_tokens: int | None) -> ProviderTooLong | None:
        """Return the refusal of a prompt that the provider has counted and that leaves no room for the answer."""
        available = self._available(model, max_output_tokens)
        if counted <= available:
            return None
        return ProviderTooLong(
            model.provider,
            f"counts {counted:,} tokens in the prompt; {model.name} can read {available:,} beside its answer",
            "Send less, ask for less output, or use a model with a larger window",
            sent_tokens=counted,
        )

    def learn(self, model: Model, estimated: int, counted: int) -> None:
        """Record the provider's token count of an accepted prompt."""
        if estimated < MIN_LEARNED_TOKENS or counted < estimated * LEAST_COUNTED_SHARE:
            return
        learned = self._learned(model)
        ratio = counted / estimated
        seen = min(max(ratio, MIN_FACTOR), MAX_LEARNED_FACTOR)
        learned.counts += 1
        before = learned.factor
        if before is not None:
            learned.spread += NEWEST_SHARE * (abs(ratio / before - 1) - learned.spread)
        learned.factor = seen if before is None else before + NEWEST_SHARE * (seen - before)
        learned.floor = max(0.0, learned.floor - NEWEST_SHARE * (learned.floor - seen)) if learned.floor else 0.0

    def less_room(self, model: Model, estimated: int, error: ProviderTooLong, max_output_tokens: int | None) -> int:
        """Adapt to a prompt refused for its length; return the next limit, always smaller than the last."""
        learned = self._learned(model)
        if error.limit_tokens is not None and MIN_WINDOW <= error.limit_tokens < self.window(model):
            learned.window = error.limit_tokens
        if error.sent_tokens is not None and estimated > 0:
            learned.floor = min(max(learned.floor, error.sent_tokens / estimated), MAX_FACTOR)
        elif error.limit_tokens is None or estimated < error.limit_tokens:
            learned.floor = min(max(learned.floor, self.factor(model) * REFUSED_FACTOR), MAX_FACTOR)
        return min(self.room(model, max_output_tokens), int(estimated * REFUSED_SHARE))

    def learned(self, provider: str) -> tuple[TokenFactor, ...]:
        """Return the factors learned from the token counts of one provider's models."""
        return tuple(
            TokenFactor(name, round(learned.factor, 2), round(learned.spread, 2), learned.counts)
            for name, learned in self._models.items()
            if learned.provider == provider and learned.factor is not None
        )

    def _available(self, model: Model, max_output_tokens: int | None) -> int:
        window = self.window(model)
        reserve = max_output_tokens if max_output_tokens is not None else MIN_OUTPUT_TOKENS
        return max(window - reserve, window // 2)

    def _learned(self, model: Model) -> _Learned:
        learned = self._models.setdefault(model.name, _Learned(model.provider))
        self._models.move_to_end(model.name)
        while len(self._models) > MAX_MODELS:
            self._models.popitem(last=False)
        return learned
