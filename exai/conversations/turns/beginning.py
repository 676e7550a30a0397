"""Begin chat turns: store the question once, and wait for an earlier attempt of the same request.

Invariant: a turn that was begun for a cancelled caller is recorded as failed.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from exai.cache.conversations import ConversationCache
from exai.cache.records import Hit, Miss
from exai.conversations.large import LargeContent
from exai.conversations.refusals import refusal
from exai.conversations.requests import ChatRequest, OnBegun, RunningTurn
from exai.conversations.turns.outcomes import OutcomeWriter
from exai.conversations.turns.result import failure_of
from exai.db.records import TurnBegun, TurnStart
from exai.db.turns import TurnRepository
from exai.errors import Conflict
from exai.models import ConversationKey
from exai.providers.base import Model
from exai.resilience import remaining_s

OUTCOME_RESERVE_S = 2.0
"""Part of a request's time reserved for writing the outcome; the provider's deadline is earlier by it."""

POLL_FIRST_S = 0.1
POLL_MOST_S = 2.0
"""First and longest pause between two polls of a repeated request for the end of the first attempt."""


class Beginning:
    """Begins turns, and gives back the cache leases of those that are refused."""

    def __init__(
        self, repository: TurnRepository, cache: ConversationCache, outcomes: OutcomeWriter, large: LargeContent
    ) -> None:
        self._repository, self._cache, self._outcomes, self._large = repository, cache, outcomes, large

    async def begin(
        self,
        request: ChatRequest,
        model: Model,
        start: TurnStart,
        cached: Hit | Miss | None,
        on_begun: OnBegun | None,
    ) -> TurnBegun:
        """Store the question; a repeated request waits for the first attempt, or resumes it after its lease expired."""
        try:
            while True:
                begun = await self._begin_once(request, model, start)
                if on_begun is not None and begun.started_at is not None and begun.commit is not None:
                    name = begun.commit.conversation.continuation_id
                    on_begun(RunningTurn(begun.turn_id, begun.started_at, name, start.request_key, model.name))
                if begun.status != "pending":
                    break
                await self._wait_for_first_attempt(start, begun)
            if begun.status not in ("started", "resumed", "finished"):
                raise refusal(begun.status, start.continuation_id, begun.current_revision, begun.missing)
        except BaseException:
            if isinstance(cached, Miss) and start.continuation_id is not None:
                key = ConversationKey(start.owner, start.continuation_id)
                self._outcomes.start(self._cache.release(key, cached), "cache-release")
            raise
        return begun

    async def _wait_for_first_attempt(self, start: TurnStart, begun: TurnBegun) -> None:
        """Wait until the attempt that holds the request key has ended or its lease has expired."""
        pause_s = POLL_FIRST_S
        while True:
            left_s = remaining_s(OUTCOME_RESERVE_S)
            if left_s is not None and left_s <= pause_s:
                still_running = Conflict(
                    "still_running",
                    "the first request with this idempotency key is still running",
                    "Call again later with the same key to get its answer",
                )
                if begun.commit is not None:
                    still_running.continuation_id = begun.commit.conversation.continuation_id
                raise still_running
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, POLL_MOST_S)
            seen = await self._repository.state(start.owner, start.request_key)
            state, lease_left_s = seen or ("failed", 0.0)
            if state != "pending" or lease_left_s <= 0:
                return

    async def _begin_once(self, request: ChatRequest, model: Model, start: TurnStart) -> TurnBegun:
        """Begin a turn. If the caller is cancelled meanwhile, record the turn's failure once it is known to exist."""
        task = self._outcomes.start(self._stored(request, start), "turn-begin")
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError as error:
            await self._outcomes.complete(self._record_abandoned(request, model, task, error))
            raise

    async def _stored(self, request: ChatRequest, start: TurnStart) -> TurnBegun:
        return await self._large.send(
            start.owner, request.pieces, lambda along: self._repository.begin(replace(start, along=along))
        )

    async def _record_abandoned(
        self, request: ChatRequest, model: Model, beginning: asyncio.Task[TurnBegun], error: BaseException
    ) -> None:
        """Wait for `beginning`, and record the failure of a turn that it has begun for a cancelled caller."""
        await asyncio.wait({beginning})
        if beginning.cancelled() or beginning.exception() is not None:
            return
        begun = beginning.result()
        if begun.status in ("started", "resumed"):
            await self._outcomes.record(failure_of(request, model, begun, "", error))
