"""Single calls of a model within a consensus, each a turn of its own: leased, with its outcome, tokens and cost.

Invariant: the outcome of every turn that has begun is written, as in `exai.conversations.turns.turn`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import structlog

from exai import tracing
from exai.conversations.publishing import Publisher
from exai.conversations.refusals import refusal
from exai.conversations.requests import OnBegun
from exai.conversations.turns.budgets import Budgets
from exai.conversations.turns.leases import TurnLeases
from exai.conversations.turns.outcomes import OutcomeWriter
from exai.conversations.turns.preparation import Preparation
from exai.conversations.turns.prompt import FINISH_REASON, estimate_tokens
from exai.conversations.turns.result import MAX_CAUSE_CHARS, cause_of, searches_of
from exai.conversations.turns.tally import TurnTally
from exai.db.records import TurnBegun, TurnEnd, TurnFinished, TurnStart
from exai.db.turns import TurnRepository
from exai.errors import Conflict, DatabaseError, ExaiError, ProviderBroken
from exai.models import Completion, CompletionRequest, Delta, NewMessage, Prompt, Thinking, Usage, WebSource
from exai.providers.base import Model
from exai.providers.registry import Providers
from exai.resilience import remaining_s, with_deadline

RESERVE_S = 2.0
"""Part of a request's time reserved for writing outcomes."""

POLL_S = 0.2
LATE = "late"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PaidAnswer:
    """An answer with its place in the conversation, which is None if it could not be stored."""

    content: str
    model: str
    seq: int | None
    usage: Usage
    cost_usd: Decimal | None
    finish_reason: str = "stop"
    sources: tuple[WebSource, ...] = ()
    is_estimated: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Spent:
    """The cost of a failed call."""

    usage: Usage | None = None
    cost_usd: Decimal | None = None
    is_estimated: bool = False


@dataclass(frozen=True, slots=True)
class ModelCall:
    """One call of a model: the turn to begin, the model with its prompt, and the kind of the row with its answer.

    `on_lost` receives the cost of the call if it fails.
    """

    start: TurnStart
    model: Model
    messages: Sequence[Prompt]
    kind: str
    facts: dict[str, Any]
    effort: Thinking
    on_chars: Callable[[int], None]
    on_lost: Callable[[Spent], None]
    web_search: bool = False


class PanelTurns:
    """Begins, answers and ends turns that are not those of a chat."""

    def __init__(
        self,
        repository: TurnRepository,
        leases: TurnLeases,
        outcomes: OutcomeWriter,
        publisher: Publisher,
        providers: Providers,
        *,
        budgets: Budgets,
    ) -> None:
        self._repository, self.leases, self.outcomes = repository, leases, outcomes
        self._publisher, self._providers, self._budgets = publisher, providers, budgets

    def claiming(
        self, start: TurnStart, model: Model, sent_tokens: int, answers: int = 0, *, web_search: bool = False
    ) -> TurnStart:
        """Return the start of a turn with what its call has to reserve, for a prompt that also holds `answers`.

        Raises `InvalidArgument` for a model without a price while a budget is set.
        """
        tokens = sent_tokens + answers * (self._budgets.answer_tokens(model) or 0)
        claim = self._budgets.claim_of(model, tokens, web_search=web_search)
        return start if claim is None else replace(start, claim=claim, provider=model.provider, model=model.name)

    def preparation(self, start: TurnStart, question: str, asked: str, on_begun: OnBegun | None) -> Preparation:
        """Return the part of a turn before its question is known; `asked` names who is asked."""
        return Preparation(
            *(self._repository, self.outcomes, self.leases, self._publisher, start),
            question=question,
            asked=asked,
            on_begun=on_begun,
        )

    async def begin(self, start: TurnStart, on_begun: Callable[[TurnBegun], None] | None = None) -> TurnBegun:
        """Begin a turn; a repeated request waits for the first attempt. Raises if it is refused.

        `on_begun` receives the turn as soon as it exists, also while the first attempt still runs.
        """
        while True:
            task = self.outcomes.start(self._repository.begin(start), "consensus-begin")
            try:
                begun = await asyncio.shield(task)
            except asyncio.CancelledError as error:
                await self.outcomes.complete(self._abandon(start, task, error))
                raise
            if on_begun is not None and begun.started_at is not None and begun.commit is not None:
                on_begun(begun)
            if begun.status != "pending":
                break
            await self._wait_for_end(start)
        if begun.status not in ("started", "resumed", "finished") or begun.commit is None:
            raise refusal(begun.status, start.continuation_id, begun.current_revision, begun.missing)
        if begun.status != "resumed":
            # A turn without a question changes the revision and adds nothing, which no cached page can express.
            commit = begun.commit if start.messages else replace(begun.commit, added=None)
            await self._publisher.publish(commit)
        return begun

    async def _wait_for_end(self, start: TurnStart) -> None:
        while True:
            left_s = remaining_s(RESERVE_S)
            if left_s is not None and left_s <= POLL_S:
                raise Conflict(
                    "still_running",
                    "the first request with this idempotency key is still running",
                    "Call again later with the same key to get its answer",
                )
            await asyncio.sleep(POLL_S)
            state, lease_left_s = await self._repository.state(start.owner, start.request_key) or ("failed", 0.0)
            if state != "pending" or lease_left_s <= 0:
                return

    async def _abandon(self, start: TurnStart, beginning: asyncio.Task[TurnBegun], error: BaseException) -> None:
        await asyncio.wait({beginning})
        if not beginning.cancelled() and beginning.exception() is None:
            begun = beginning.result()
            if begun.status in ("started", "resumed"):
                await self.fail(start, begun, error)

    async def fail(
        self,
        start: TurnStart,
        begun: TurnBegun,
        error: BaseException,
        messages: Sequence[NewMessage] = (),
        spent: Spent | None = None,
        *,
        took_s: float | None = None,
    ) -> int | None:
        """Record the failure of an attempt; return the number of the last row stored with it."""
        spent = spent or Spent()
        end = TurnEnd(
            start.owner,
            begun.turn_id,
            begun.attempt,
            "failed",
            messages,
            model=start.model,
            usage=spent.usage,
            cost_usd=spent.cost_usd,
            is_estimated=spent.is_estimated,
            error=cause_of(error),
            took_s=took_s,
        )
        return await self._published(await self.outcomes.record(end))

    async def _published(self, finished: TurnFinished | None) -> int | None:
        if finished is None or finished.commit is None:
            return None
        if finished.commit.added:
            await self._publisher.publish(finished.commit)
        return finished.seq

    async def finish(self, end: TurnEnd) -> tuple[int, str]:
        """Store the outcome of an answered turn and publish it; return the number of its answer, and what is stored.

        That is the answer without large content.
        """
        finished = await self.outcomes.store(end)
        if finished.commit is None:
            raise Conflict(
                "superseded", "this request was ended or taken over meanwhile", "Call again with the same key"
            )
        await self._published(finished)
        stored = finished.commit.added or ()
        return finished.seq or 0, stored[-1].content if stored else end.messages[-1].content

    async def ask(self, call: ModelCall, cut: Cut) -> PaidAnswer:
        """Ask a model, or return its answer to an earlier attempt: 2 database round trips.

        Raises `TooLate` once `cut` has been made; otherwise as `Providers.complete`.
        """
        with tracing.turn_span(call.start.owner, call.start.continuation_id) as span:
            answer = await self._asked(call, cut)
            describe_turn(span, answer)
            return answer

    async def _asked(self, call: ModelCall, cut: Cut) -> PaidAnswer:
        tokens = sum(estimate_tokens(message.content) for message in call.messages)
        begun = await self.begin(self.claiming(call.start, call.model, tokens, web_search=call.web_search))
        if begun.reply is not None:
            reply = begun.reply
            finish_reason = reply.metadata.get(FINISH_REASON, "stop")
            return PaidAnswer(
                reply.content, reply.model or "", reply.seq, reply.usage, reply.cost_usd, str(finish_reason)
            )
        tally = _tally_of(call, tokens)
        try:
            async with self.leases.hold(begun.turn_id), cut.limit(call.model.name):
                completion = await self.complete(call, tally)
        except BaseException as error:
            await self.outcomes.complete(self._fail_call(call, begun, tally, error))
            raise
        return await self.outcomes.complete(self._store(call, begun, tally.counted(completion), tally))

    async def answer_of(self, call: ModelCall) -> PaidAnswer:
        """Ask a model within a turn that the caller ends itself."""
        tally = _tally_of(call, sum(estimate_tokens(message.content) for message in call.messages))
        try:
            completion = await self.complete(call, tally)
        except BaseException as error:
            self._spent(call, tally, error)
            raise
        return self._paid(call, tally.counted(completion), tally)

    async def complete(self, call: ModelCall, tally: TurnTally) -> Completion:
        """Call the model. Raises `ProviderBroken` for an answer that is none."""
        effort = call.effort if call.effort in call.model.thinking else None
        request = CompletionRequest(
            call.model.name,
            call.messages,
            max_output_tokens=self._budgets.answer_tokens(call.model),
            thinking=effort,
            web_search=call.web_search,
        )
        with with_deadline(remaining_s(RESERVE_S)):
            completion = await self._providers.complete(call.model, request, tally, may_replace=False)
        tally.reported(completion.usage)
        if not completion.content.strip() or completion.finish_reason == "content_filter":
            raise ProviderBroken(
                completion.provider,
                f"the model ended without an answer (finish reason {completion.finish_reason})",
                "Ask another model",
                partial=completion.content,
                request_id=completion.request_id,
            )
        return completion

    async def _store(self, call: ModelCall, begun: TurnBegun, completion: Completion, tally: TurnTally) -> PaidAnswer:
        paid = self._paid(call, completion, tally)
        facts = {"model": completion.model, "provider": completion.provider, **call.facts}
        try:
            seq, _ = await self.finish(
                TurnEnd(
                    call.start.owner,
                    begun.turn_id,
                    begun.attempt,
                    "finished",
                    (NewMessage("assistant", completion.content, call.kind, facts),),
                    model=paid.model,
                    usage=paid.usage,
                    cost_usd=paid.cost_usd,
                    is_estimated=paid.is_estimated,
                    metadata={
                        FINISH_REASON: completion.finish_reason,
                        "request_id": completion.request_id,
                        "web_search": searches_of(completion),
                    },
                    took_s=tally.took_s,
                )
            )
        except DatabaseError as error:
            # The answer has been paid for, and the others can still be compared with it.
            log.error("panel_answer_not_stored", turn=begun.turn_id, error=str(error))
            return paid
        return replace(paid, seq=seq)

    def _paid(self, call: ModelCall, completion: Completion, tally: TurnTally) -> PaidAnswer:
        model = self._providers.answered(call.model, completion)
        cost = self._providers.total_usd(call.model, completion)
        return PaidAnswer(
            completion.content,
            model.name,
            None,
            completion.usage,
            cost,
            completion.finish_reason,
            tuple(completion.sources),
            tally.is_estimated or self._providers.prices.is_assumed(model, completion.usage),
            tuple(completion.notes),
        )

    def _spent(self, call: ModelCall, tally: TurnTally, error: BaseException) -> Spent:
        """Return the cost of a call that ended in `error`, and report it."""
        # A member that is late has been working, as one whose caller has left.
        usage, is_estimated = tally.spent(asyncio.CancelledError() if isinstance(error, TooLate) else error)
        is_estimated = is_estimated or (usage is not None and self._providers.prices.is_assumed(call.model, usage))
        spent = Spent(usage, self._providers.prices.cost_usd(call.model, usage) if usage else None, is_estimated)
        call.on_lost(spent)
        return spent

    async def _fail_call(self, call: ModelCall, begun: TurnBegun, tally: TurnTally, error: BaseException) -> None:
        text, spent = tally.text, self._spent(call, tally, error)
        if isinstance(error, asyncio.CancelledError) and not text.strip():
            await self.fail(call.start, begun, error, spent=spent, took_s=tally.took_s)
            return
        cause = cause_of(error)
        why = str(cause.get("message", cause["code"]))[:MAX_CAUSE_CHARS]
        facts = {"model": call.model.name, "error": cause["code"], "message": why, **call.facts}
        kind, content = ("partial", text) if text.strip() else ("failed", f"No answer from {call.model.name}: {why}")
        messages = (NewMessage("assistant", content, kind, facts),)
        await self.fail(call.start, begun, error, messages, spent, took_s=tally.took_s)


class TooLate(ExaiError):
    """A model's call was ended, so that the others' answers could be used in time."""

    code = LATE

    def __str__(self) -> str:
        return f"{self.args[0]} had not answered when the time for the panel was over"


class Cut:
    """Ends the calls that are still running when the others' answers have to be used."""

    def __init__(self) -> None:
        self._scopes: set[asyncio.Timeout] = set()
        self.is_made = False

    def make(self) -> None:
        """End all calls under this cut, and those that begin later at once."""
        self.is_made = True
        for scope in self._scopes:
            scope.reschedule(asyncio.get_running_loop().time())

    @asynccontextmanager
    async def limit(self, name: str) -> AsyncIterator[None]:
        """Raise `TooLate` for the call of the model `name` when the cut is made."""
        scope = asyncio.timeout(0 if self.is_made else None)
        self._scopes.add(scope)
        try:
            async with scope:
                yield
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise TooLate(name) from error
        finally:
            self._scopes.discard(scope)


def describe_turn(span: tracing.ActiveSpan, answer: PaidAnswer | None) -> None:
    """Set the model, the tokens and the cost of a turn."""
    if answer is None or not tracing.is_on():
        return
    span.set(tracing.REQUEST_MODEL, answer.model)
    span.set(tracing.COST_USD, None if answer.cost_usd is None else float(answer.cost_usd))
    tracing.set_usage(span, answer.usage)


def _tally_of(call: ModelCall, sent_tokens: int) -> TurnTally:
    async def count(delta: Delta) -> None:
        call.on_chars(len(delta.content) + len(delta.reasoning))

    tally = TurnTally(count)
    tally.sent(sent_tokens)
    return tally
