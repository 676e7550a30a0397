"""Run one chat turn: store the question, call the model, store the answer, and update the cache after each commit.

A turn costs two statements and three Redis calls. Two Redis calls would suffice, but the question is applied at once,
because a reconciliation during the model's answer would otherwise drop the entry of every conversation with a running
turn.

Invariant: the outcome of every turn that has begun is written, whether it ends by an answer, a provider's error, a
deadline or the caller's cancellation (`exai.conversations.turns.outcomes`).
"""

from __future__ import annotations

import time
from collections.abc import Awaitable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import structlog

from exai.cache.conversations import ConversationCache
from exai.cache.records import Hit, Miss, PreloadedPage
from exai.conversations.large import LargeContent
from exai.conversations.publishing import Publisher
from exai.conversations.requests import ChatRequest, ChatResult, OnBegun
from exai.conversations.turns.answers import AnswerCache, Recalled
from exai.conversations.turns.attachments import Attachments
from exai.conversations.turns.beginning import OUTCOME_RESERVE_S, Beginning
from exai.conversations.turns.budgets import Budgets
from exai.conversations.turns.disk import DiskComparison
from exai.conversations.turns.leases import TurnLeases
from exai.conversations.turns.open_turn import OpenTurn
from exai.conversations.turns.outcomes import OnTurnEnd, OutcomeWriter
from exai.conversations.turns.preparation import OnPreparing, Preparation
from exai.conversations.turns.prompt import Asked, check_fits
from exai.conversations.turns.request import (
    completion_request,
    history_of,
    reserving_start,
    turn_start,
    whole_prompt_tokens,
)
from exai.conversations.turns.result import answer_of, facts_of, failure_of, fresh_result, kept_of, result_of
from exai.conversations.turns.tally import TurnTally
from exai.db.answers import AnswerPlace
from exai.db.records import TurnBegun, TurnEnd, TurnStart
from exai.db.turns import TurnRepository
from exai.errors import (
    AnswerNotStored,
    Conflict,
    ExaiError,
    ProviderBroken,
    ProviderTooLong,
)
from exai.models import (
    PAGE_MESSAGES,
    Commit,
    Completion,
    ConversationKey,
    Delta,
    OnDelta,
    Prompt,
    Usage,
)
from exai.providers.completion.counting import CountFailed
from exai.providers.registry import Providers
from exai.resilience import remaining_s, with_deadline

MAX_SHRINKS = 5
"""How often one turn shortens a prompt that is too long for its model."""

log = structlog.get_logger(__name__)


class ChatTurns:
    """Runs chat turns. `leases` renews the leases of those that wait for a model; `outcomes` writes their outcomes."""

    def __init__(
        self,
        repository: TurnRepository,
        cache: ConversationCache,
        providers: Providers,
        attachments: Attachments,
        publisher: Publisher,
        *,
        budgets: Budgets,
        answers: AnswerCache,
        disk: DiskComparison,
        large: LargeContent,
        on_end: OnTurnEnd | None = None,
    ) -> None:
        self._repository, self._cache, self._providers = repository, cache, providers
        self._attachments, self._publisher, self._budgets = attachments, publisher, budgets
        self._answers, self._disk = answers, disk
        self.leases, self.outcomes = TurnLeases(repository), OutcomeWriter(repository, large, on_end)
        self._beginning = Beginning(repository, cache, self.outcomes, large)

    async def run(
        self,
        request: ChatRequest,
        on_delta: OnDelta | None,
        on_begun: OnBegun | None = None,
        on_preparing: OnPreparing | None = None,
    ) -> ChatResult:
        """Answer one question. Guarantees and errors are those of `ChatService.run`."""
        started = time.monotonic()
        if request.prepare is None:
            turn = await self._begin(request, on_delta, on_begun)
        else:
            turn = await self._prepare(request, request.prepare(), on_delta, on_begun, on_preparing)
        begun, commit = turn.begun, turn.commit
        if begun.reply is not None:
            # The process that answered first may have died before it updated the cache.
            await self._publisher.publish(commit)
            name, seconds = commit.conversation.continuation_id, time.monotonic() - started
            return result_of(begun.reply, name, commit.revision, duration_s=seconds, duplicate=True)
        # Not awaited: the cache is updated while the model answers. `_publish_finished` waits for it, since the answer
        # can only be added to an entry that contains the question.
        publication = self.outcomes.start(self._publish_begun(begun, commit, turn.cached), "cache-begun")
        turn = replace(turn, publication=publication)
        model = turn.model
        completion, seq, finished, facts = await self._answer(turn)
        usage, cost_usd = self._billed(turn, completion)
        return fresh_result(
            replace(completion, usage=usage),
            facts,
            finished,
            seq=seq,
            model=self._providers.answered(model, completion).name,
            cost_usd=cost_usd,
            duration_s=time.monotonic() - started,
        )

    async def _prepare(
        self,
        request: ChatRequest,
        reading: Awaitable[ChatRequest],
        on_delta: OnDelta | None,
        on_begun: OnBegun | None,
        on_preparing: OnPreparing | None,
    ) -> OpenTurn:
        """Read the files of a request, and begin its turn; until then `on_preparing` can have it reserved."""
        preparation = Preparation(
            *(self._repository, self.outcomes, self.leases, self._publisher, reserving_start(request)),
            question=request.whole_prompt,
            asked=request.model,
            on_begun=on_begun,
        )
        if on_preparing is not None:
            on_preparing(preparation.reserve)
        async with preparation.guarded():
            return await self._begin(await preparation.read(reading), on_delta, on_begun, preparation.start)

    async def _begin(
        self,
        request: ChatRequest,
        on_delta: OnDelta | None,
        on_begun: OnBegun | None,
        reserved: TurnStart | None = None,
    ) -> OpenTurn:
        """Begin the turn of a question, whose files are stored."""
        model = await self._providers.find(request.model)
        model = await self._providers.prepare(model, prompt_tokens=whole_prompt_tokens(request))
        self._providers.check(
            model,
            max_output_tokens=request.max_output_tokens,
            thinking=request.thinking,
            web_search=request.web_search,
        )
        sizing = self._providers.sizing
        bounded = self._budgets.bounded(request, model)
        room_tokens = sizing.room(model, bounded.max_output_tokens)
        instructions = request.guidance.instructions if request.guidance else None
        limit_tokens = sizing.limit(model, request.max_output_tokens)
        system = "\n".join(filter(None, (request.system, instructions)))
        check_fits(request.prompt, system, limit_tokens, request.taken_tokens)
        cached = await self._read_cache(request)
        claim = self._budgets.claim(bounded, model)
        # An answer of the answer cache costs nothing, so that it needs no budget.
        claim, later = (None, claim) if self._answers.may_find(request) else (claim, None)
        start = turn_start(request, model, room_tokens, cached, claim, reserved=reserved)
        begun = await self._beginning.begin(request, model, start, cached, on_begun)
        if begun.commit is None:
            raise AssertionError("a turn that was begun has a conversation")
        return OpenTurn(bounded, model, start, later, begun, begun.commit, cached, room_tokens, TurnTally(on_delta))

    async def _read_cache(self, request: ChatRequest) -> Hit | Miss | None:
        if request.continuation_id is None:
            return None
        found = await self._cache.read(ConversationKey(request.owner, request.continuation_id))
        return found if isinstance(found, Hit | Miss) else None

    async def _answer(self, turn: OpenTurn) -> tuple[Completion, int, Commit, dict[str, Any]]:
        continuation_id = turn.commit.conversation.continuation_id
        try:
            completion, asked, recalled = await self._leased_answer(turn, turn.room_tokens)
            completion = turn.tally.counted(completion)
        except BaseException as error:
            if isinstance(error, ExaiError):
                error.continuation_id, error.notes = continuation_id, (kept_of(turn.tally.text),)
            await self.outcomes.complete(self._fail(turn, error))
            raise
        guidance = turn.request.guidance
        facts = facts_of(completion, asked, {**guidance.facts, "step": turn.begun.step} if guidance else None)
        facts |= turn.tally.facts()
        try:
            stored = await self.outcomes.complete(self._finish(turn, completion, facts, recalled.place))
        except Conflict as error:
            error.continuation_id = continuation_id
            raise
        except Exception as error:
            # The answer has been paid for, so it is returned to the caller inside the error, even after a defect.
            reason = str(error) if isinstance(error, ExaiError) else type(error).__name__
            log.exception("answer_not_stored", turn=turn.begun.turn_id, reason=reason)
            not_stored = AnswerNotStored(reason, completion.content, continuation_id)
            # After a retryable error no failure is written: the answer may be stored already (unknown outcome), or the
            # database may be away. A repeated request resumes a turn that is still pending once its lease has expired.
            if not isinstance(error, ExaiError) or not error.retryable:
                await self.outcomes.complete(self._fail(turn, not_stored))
            raise not_stored from error
        if stored is None:
            # The conversation of the answer was deleted since, so the model is asked as if there were none.
            return await self._answer(replace(turn, request=replace(turn.request, cache="refresh")))
        seq, finished = stored
        if completion.origin is not None:
            await turn.tally(Delta(content=completion.content))
        place = AnswerPlace(turn.commit.conversation.id, turn.begun.last_seq or 0, seq, turn.begun.turn_id)
        not_kept = await self._answers.keep(turn.request, recalled, completion, turn.model, place)
        return completion, seq, finished, {**facts, "notes": [*facts.get("notes", ()), *filter(None, [not_kept])]}

    async def _leased_answer(self, turn: OpenTurn, room_tokens: int) -> tuple[Completion, Asked, Recalled]:
        """Call the model under the turn's lease, unless the answer cache has the answer; return answer and prompt.

        Raises `Conflict` if the turn was ended elsewhere.
        """
        async with self.leases.hold(turn.begun.turn_id):
            asked = await self._prompt(turn, room_tokens)
            recalled = await self._recalled(turn, asked.messages)
            if recalled.completion is not None:
                async with self._disk.beside(turn.request, asked) as conclude:
                    return recalled.completion, await conclude(asked), recalled
            async with self._disk.beside(turn.request, asked) as conclude:
                completion, sent = await self._fitting_answer(turn, asked, room_tokens)
                sent = await conclude(sent)
        if sent.messages != asked.messages:
            recalled = replace(recalled, name=None, question=None)
        return completion, sent._replace(notes=(*sent.notes, *recalled.notes)), recalled

    async def _recalled(self, turn: OpenTurn, messages: list[Prompt]) -> Recalled:
        """Ask the answer cache; reserve the cost of the turn after a miss. Raises `BudgetExceeded`."""
        recalled = await self._answers.find(
            turn.request, turn.model, completion_request(turn.request, turn.model, messages)
        )
        turn.tally.embedding = recalled.embedding
        if turn.claim is not None and recalled.completion is None:
            history = history_of(turn.begun, turn.cached)
            size_bytes = sum(len(each.content.encode()) for each in history if each.seq < (turn.begun.first_seq or 1))
            await self._repository.reserve(turn.start, turn.begun, turn.claim, size_bytes)
        return recalled

    async def _fitting_answer(self, turn: OpenTurn, asked: Asked, room_tokens: int) -> tuple[Completion, Asked]:
        """Call the model, and again with less history while it refuses the prompt as too long and it can be cut."""
        sizing = self._providers.sizing
        for _ in range(MAX_SHRINKS):
            try:
                asked = await self._counted(turn, asked, room_tokens - asked.left_tokens)
                turn.tally.sent(int((room_tokens - asked.left_tokens) * sizing.factor(turn.model)))
                completion = await self._ask(turn, asked.messages)
            except ProviderTooLong as error:
                sent_tokens = room_tokens - asked.left_tokens
                room_tokens = sizing.less_room(turn.model, sent_tokens, error, turn.request.max_output_tokens)
                less = await self._prompt(turn, room_tokens)
                if less.messages == asked.messages:
                    raise
                asked = less
            else:
                if completion.instead_of is None and not asked.has_images:
                    sizing.learn(turn.model, room_tokens - asked.left_tokens, completion.usage.input_tokens)
                left_tokens = int(asked.left_tokens * sizing.factor(turn.model))
                return completion, asked._replace(left_tokens=left_tokens)
        return await self._ask(turn, asked.messages), asked

    async def _counted(self, turn: OpenTurn, asked: Asked, sent_tokens: int) -> Asked:
        """Let the provider count a prompt near the limit, if it offers that. Raises `ProviderTooLong` if it is over."""
        sizing, most = self._providers.sizing, turn.request.max_output_tokens
        if asked.has_images or not sizing.is_near_limit(turn.model, sent_tokens, most):
            return asked
        try:
            counted = await self._providers.count_tokens(turn.model, asked.messages)
        except CountFailed as error:
            note = f"the prompt's size is an estimate, because {turn.model.provider} did not count it: {error}"
            return asked._replace(notes=(*asked.notes, note))
        if counted is not None and (refused := sizing.exceeds(turn.model, counted, most)) is not None:
            raise refused
        return asked

    async def _prompt(self, turn: OpenTurn, room_tokens: int) -> Asked:
        """Return the messages for the model."""
        history, guidance = history_of(turn.begun, turn.cached), turn.request.guidance
        return await self._attachments.prompt(
            turn.request.owner,
            guidance.select(history) if guidance and guidance.select else history,
            turn.begun.system,
            room_tokens,
            limit_tokens=self._providers.sizing.limit(turn.model, turn.request.max_output_tokens),
            model=turn.model,
            conversation_id=turn.commit.conversation.id,
        )

    async def _ask(self, turn: OpenTurn, prompt: list[Prompt]) -> Completion:
        """Call the model within the request's deadline minus `OUTCOME_RESERVE_S`. Raises for an empty answer."""
        asked = completion_request(turn.request, turn.model, prompt)
        with with_deadline(remaining_s(OUTCOME_RESERVE_S)):
            completion = await self._providers.complete(turn.model, asked, turn.tally)
        turn.tally.reported(completion.usage)
        if not completion.content.strip():
            said = "".join(f"; {note}" for note in completion.notes)
            raise ProviderBroken(
                completion.provider,
                f"the model ended without an answer (finish reason {completion.finish_reason}){said}",
                "Allow more output tokens or less thinking" if completion.finish_reason == "length" else "Ask again",
                request_id=completion.request_id,
            )
        return completion

    async def _finish(
        self, turn: OpenTurn, completion: Completion, facts: dict[str, Any], origin: AnswerPlace | None
    ) -> tuple[int, Commit] | None:
        """Store an answer; return its number, None for one of the answer cache whose `origin` no longer exists."""
        guidance = turn.request.guidance
        derived = guidance.read_answer(completion) if guidance and guidance.read_answer else ()
        answer = answer_of(completion, "answer" if guidance else "message")
        model = self._providers.answered(turn.model, completion)
        usage, cost_usd = self._billed(turn, completion)
        finished = await self.outcomes.store(
            TurnEnd(
                owner=turn.request.owner,
                turn_id=turn.begun.turn_id,
                attempt=turn.begun.attempt,
                state="finished",
                messages=(*derived, answer),
                model=model.name,
                usage=usage,
                cost_usd=cost_usd,
                is_estimated=turn.tally.has_estimates
                or (completion.origin is None and self._providers.prices.is_assumed(model, completion.usage)),
                metadata=facts,
                took_s=turn.tally.took_s,
                origin=None if origin is None else (origin.conversation_id, origin.seq, origin.turn_id),
            )
        )
        if finished.status == "stale":
            return None
        if finished.commit is None:
            raise Conflict(
                "superseded",
                "a later attempt with the same idempotency key has taken this turn over",
                "Call again with the same key to get its answer",
            )
        await self._publish_finished(turn, finished.commit)
        return finished.seq or 0, finished.commit

    def _billed(self, turn: OpenTurn, completion: Completion) -> tuple[Usage, Decimal | None]:
        """Return what a turn cost in tokens and money: its answer, and the vector of its question."""
        return turn.tally.with_embedding(completion.usage, self._providers.total_usd(turn.model, completion))

    async def _fail(self, turn: OpenTurn, error: BaseException) -> None:
        usage, is_estimated = turn.tally.spent(error)
        spent, cost_usd = usage, None if usage is None else self._providers.prices.cost_usd(turn.model, usage)
        if turn.tally.embedding is not None:
            spent, cost_usd = turn.tally.with_embedding(usage or Usage(), Decimal(0) if usage is None else cost_usd)
        failure = replace(
            failure_of(turn.request, turn.model, turn.begun, turn.tally.text, error),
            usage=spent,
            cost_usd=cost_usd,
            is_estimated=is_estimated or (usage is not None and self._providers.prices.is_assumed(turn.model, usage)),
            took_s=turn.tally.took_s,
        )
        finished = await self.outcomes.record(failure)
        if finished is not None and finished.commit is not None and finished.commit.added:
            await self._publish_finished(turn, finished.commit)
        # The error says that the question is stored, and the caller may read the conversation at once, so the cache
        # must contain the question before the error is raised.
        await turn.published()

    async def _publish_begun(self, begun: TurnBegun, commit: Commit, cached: Hit | Miss | None) -> None:
        """Publish the question; after a miss, store the complete newest page under the miss's lease."""
        if begun.status != "started":
            if isinstance(cached, Miss):
                await self._cache.release(commit.key, cached)
            return
        preloaded = None
        if isinstance(cached, Miss) and begun.full:
            newest = (*begun.history, *(commit.added or ()))[-PAGE_MESSAGES:]
            preloaded = PreloadedPage(cached, newest, complete=newest[0].seq == 1)
        await self._publisher.publish(commit, preloaded=preloaded)

    async def _publish_finished(self, turn: OpenTurn, commit: Commit) -> None:
        await turn.published()
        await self._publisher.publish(commit)
