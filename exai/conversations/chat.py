"""Chat turns: ask a model, read the result of a turn on any daemon, cancel it.

Invariant: every method takes an owner, accesses only that owner's rows, and costs at most the round trips that its
docstring states.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from exai import tracing
from exai.background import running
from exai.conversations.large import LargeContent
from exai.conversations.requests import ChatRequest, ChatResult, OnBegun
from exai.conversations.turns.preparation import OnPreparing
from exai.conversations.turns.result import ENDED, TurnOutcome, outcome_of
from exai.conversations.turns.turn import ChatTurns
from exai.db.turns import TurnRepository
from exai.models import OnDelta, Owner, TurnId
from exai.settings.load import LimitSettings
from exai.tracing import turn_span
from exai.validation import check_owner


def _describe(span: tracing.ActiveSpan, request: ChatRequest, result: ChatResult) -> None:
    for name, value in tracing.conversation_attributes(result.continuation_id).items():
        span.set(name, value)
    span.set(tracing.RESPONSE_MODEL, result.model)
    span.set(tracing.PROVIDER, result.provider)
    span.set(tracing.COST_USD, None if result.cost_usd is None else float(result.cost_usd))
    span.set(tracing.DUPLICATE, result.duplicate or None)
    if result.usage is not None:
        tracing.set_usage(span, result.usage)
    tracing.set_content(span, tracing.INPUT_MESSAGES, request.prompt)
    tracing.set_content(span, tracing.OUTPUT_MESSAGES, result.content)


class ChatService:
    """Chat turns, from their validation on. Safe for any number of tasks of one event loop."""

    def __init__(
        self, turns: ChatTurns, repository: TurnRepository, large: LargeContent, limits: LimitSettings
    ) -> None:
        self._turns, self._repository, self._large, self._limits = turns, repository, large, limits

    async def run(
        self,
        request: ChatRequest,
        on_delta: OnDelta | None = None,
        on_begun: OnBegun | None = None,
        on_preparing: OnPreparing | None = None,
    ) -> ChatResult:
        """Call a model and store question and answer: 2 database round trips, independent of the conversation's length.

        A call that asks the answer cache and misses costs one more if a budget is set, and two more where similar
        questions are compared: the search, and keeping the answer.

        The answer is committed on return. If the model fails, the question stays, the failure is recorded with the
        turn, and the conversation can continue; a request with the same `idempotency_key` runs the turn again.
        `on_delta` receives the answer as it streams, `on_begun` the turn id for `result` and `cancel` on any daemon.
        For a request that reads files first, `on_preparing` receives a function that has the turn begun before they are
        read, for a caller that can wait no longer: 1 round trip more.

        Raises `InvalidArgument`, `NotFound`, `Conflict`, `NotConfigured`, a `ProviderError`, a `DatabaseError` or
        `DeadlineExceeded`.
        """
        request = await self._without_large(request)
        request.validate(self._limits)
        with turn_span(request.owner, request.continuation_id) as span:
            result = await self._turns.run(self._checked(request), on_delta, on_begun, on_preparing)
            if tracing.is_on():
                _describe(span, request, result)
            return result

    async def _without_large(self, request: ChatRequest) -> ChatRequest:
        """Return a request without its large content.

        Instructions beyond the limit are refused later: a model follows what it is shown as a system prompt, not what
        is in a file, and no window holds as much.
        """
        taken = await self._large.take_from(request.owner, request.prompt)
        if taken is not None:
            request = replace(request, prompt=taken.content, taken=taken)
        taken = await self._large.take_encoded(request.owner, request.system)
        return request if taken is None else replace(request, system=taken.content, system_taken=taken)

    def _checked(self, request: ChatRequest) -> ChatRequest:
        """Return the request with what it becomes after the reading of files validated as well."""
        prepare, limits = request.prepare, self._limits
        if prepare is None:
            return request

        async def prepared() -> ChatRequest:
            complete = await self._without_large(await prepare())
            complete.validate(limits)
            return complete

        return replace(request, prepare=prepared)

    async def result(self, owner: Owner, turn_id: str) -> TurnOutcome | None:
        """Return the state and the result of a turn of any daemon: 1 database round trip.

        None if this owner has no turn with that id, or its conversation is deleted. Raises `DatabaseError`.
        """
        check_owner(owner)
        turn = await self._repository.read(owner, turn_id)
        return None if turn is None else outcome_of(turn)

    async def cancel(self, owner: Owner, turn_id: str) -> bool:
        """Cancel a running turn: 1 database round trip.

        The model call is stopped at once if it runs in this process, and otherwise by its daemon at the next lease
        renewal. Returns False if this owner has no turn with that id. Raises `DatabaseError`.
        """
        check_owner(owner)
        # The statement checks the owner, so it comes first.
        is_known = await self._repository.cancel(owner, turn_id, ENDED)
        if is_known:
            self._turns.leases.end(TurnId(turn_id))
        return is_known

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Renew the leases of turns; on exit, wait until outcomes in flight are written."""
        async with running("turn-leases", self._turns.leases.run()):
            try:
                yield
            finally:
                await self._turns.outcomes.drain()
