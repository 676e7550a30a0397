"""Determine how much of a conversation fits into a model's window; no I/O.

Prompt sizes are estimated without a tokenizer. A correction factor per model is learned from the providers' token
counts, and smaller windows from refusals that state one. This state is kept for the life of the process.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from exai.errors import ProviderTooLong
from exai.providers.base import Model

MIN_OUTPUT_TOKENS: Final = 1_024
"""Tokens reserved for the answer in every window, unless the caller requested fewer."""

MIN_LEARNED_TOKENS: Final = 500
"""In shorter prompts the provider's own additions outweigh the text."""

MIN_FACTOR: Final = 0.7
MAX_FACTOR: Final = 4.0
MIN_COUNTS: Final = 3
"""Number of counted prompts before more is sent than the estimate allows."""

MARGIN: Final = 1.1
"""Safety margin on the factor, which is an average that about half of the prompts exceed."""

NEWEST_SHARE: Final = 0.3
REFUSED_FACTOR: Final = 1.5
"""Growth of the estimate after a refusal without numbers."""

REFUSED_SHARE: Final = 0.75
"""Maximum share of a refused prompt that is sent next."""

MIN_WINDOW: Final = 512
MAX_MODELS: Final = 1_000


@dataclass(slots=True)
class _Learned:
    factor: float | None = None
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
        """Return the tokens of this model per estimated token, with a safety margin."""
        learned = self._models.get(model.name)
        if learned is None or (learned.factor is None and not learned.floor):
            return 1.0
        least = MIN_FACTOR if learned.counts >= MIN_COUNTS else 1.0
        return min(max((learned.factor or 1.0) * MARGIN, learned.floor, least), MAX_FACTOR)

    def room(self, model: Model, max_output_tokens: int | None) -> int:
        """Return how many tokens of the estimate a prompt may have, at least half a window's."""
        window = self.window(model)
        reserve = max_output_tokens if max_output_tokens is not None else MIN_OUTPUT_TOKENS
        return int(max(window - reserve, window // 2) / self.factor(model))

    def learn(self, model: Model, estimated: int, counted: int) -> None:
        """Record the provider's token count of an accepted prompt."""
        if estimated < MIN_LEARNED_TOKENS or counted <= 0:
            return
        learned = self._learned(model)
        seen = min(max(counted / estimated, MIN_FACTOR / 2), MAX_FACTOR)
        learned.counts += 1
        before = learned.factor
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

    def _learned(self, model: Model) -> _Learned:
        learned = self._models.setdefault(model.name, _Learned())
        self._models.move_to_end(model.name)
        while len(self._models) > MAX_MODELS:
            self._models.popitem(last=False)
        return learned
