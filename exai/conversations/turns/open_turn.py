"""A turn that has begun and whose outcome is not written yet."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from exai.cache.records import Hit, Miss
from exai.conversations.requests import ChatRequest
from exai.conversations.turns.tally import TurnTally
from exai.db.records import BudgetClaim, TurnBegun, TurnStart
from exai.models import Commit
from exai.providers.base import Model


@dataclass(frozen=True, slots=True)
class OpenTurn:
    """A turn that has begun. `publication` is the task that publishes its question, once it runs.

    `claim` is the cost that is still to be reserved before the model is asked.
    """

    request: ChatRequest
    model: Model
    start: TurnStart
    claim: BudgetClaim | None
    begun: TurnBegun
    commit: Commit
    cached: Hit | Miss | None
    room_tokens: int
    tally: TurnTally
    publication: asyncio.Task[None] | None = None

    async def published(self) -> None:
        """Wait until the question is in the cache."""
        if self.publication is not None:
            await asyncio.wait({self.publication})
