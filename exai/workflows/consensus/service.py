"""Run a consensus: a blind panel in parallel, an optional ranking, and the synthesis of an arbiter.

Each call of a model is a turn of the one conversation: the question and the synthesis are one, each panellist's answer
and each ranking another. A call therefore costs 2 database round trips, and 2 more for each panellist and judge.

Invariant: nothing is kept in the process between two calls, and no panellist is shown the conversation, another
answer, or anything but the question and its files.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from types import MappingProxyType
from typing import Any, Final

import structlog

from exai import tracing
from exai.conversations.deduplication import content_hash, request_key
from exai.conversations.large import LargeContent
from exai.conversations.requests import OnBegun, RunningTurn, with_files
from exai.conversations.titles import opening
from exai.conversations.turns.attachments import Attachments
from exai.conversations.turns.preparation import OnPreparing
from exai.conversations.turns.prompt import FINISH_REASON, estimate_tokens
from exai.conversations.turns.request import LEASE_S
from exai.conversations.turns.result import GUIDANCE
from exai.db.records import TurnBegun, TurnEnd, TurnStart
from exai.errors import AnswerNotStored, BudgetExceeded, DatabaseError, ExaiError, ProviderUnavailable
from exai.files.pieces import Taken
from exai.files.sources import SourceReader, SourceRequest, SourcesRead
from exai.models import ConversationId, Message, NewMessage, TurnId, Usage
from exai.providers.base import Clocks, Model
from exai.providers.registry import Providers
from exai.settings.load import LimitSettings
from exai.workflows.consensus.asking import MIN_ANSWERS, PanelAsker, turn_of
from exai.workflows.consensus.panel import Panel, PanelChoice
from exai.workflows.consensus.prompts import question_text
from exai.workflows.consensus.requests import TOOL, ConsensusRequest, ConsensusResult, stored_result
from exai.workflows.consensus.results import ConsensusRun
from exai.workflows.consensus.turns import PaidAnswer, PanelTurns, Spent, describe_turn
from exai.workflows.consensus.watch import PanelWatch

MATERIAL_SHARE: Final = 0.6
"""Share of the smallest window of the panel that files may fill."""

NO_FACTS: Final[Mapping[str, Any]] = MappingProxyType({})


log = structlog.get_logger(__name__)


class ConsensusService:
    """Runs consensus calls. Built by `exai.app.open_app`; safe for any number of tasks of one event loop."""

    def __init__(
        self,
        turns: PanelTurns,
        providers: Providers,
        attachments: Attachments,
        sources: SourceReader,
        choice: PanelChoice,
        *,
        large: LargeContent,
        limits: LimitSettings,
        clocks: Clocks | None = None,
    ) -> None:
        self._turns, self._providers, self._attachments = turns, providers, attachments
        self._sources, self._choice, self._limits, self._large = sources, choice, limits, large
        self._clocks = clocks or Clocks()
        self._asker = PanelAsker(turns, providers, self._clocks)

    async def run(
        self,
        request: ConsensusRequest,
        watch: PanelWatch | None = None,
        on_begun: OnBegun | None = None,
        on_preparing: OnPreparing | None = None,
    ) -> ConsensusResult:
        """Ask the panel, and the arbiter once at least two have answered.

        A repeated key asks only the panellists that failed, and then the arbiter again if one of them has answered.
        Raises `InvalidArgument`, `NotConfigured`, `NotFound`, `Conflict`, a `DatabaseError`, or `ProviderUnavailable`
        if no member answered. `on_begun` receives the id of the turn with question and synthesis, and `on_preparing` a
        function that has it begun before its files are read.
        """
        request.validate(self._limits)
        with tracing.turn_span(request.owner, request.continuation_id) as span:
            result, answer = await self._run(request, watch, on_begun, on_preparing)
            describe_turn(span, answer)
            if tracing.is_on():
                for name, value in tracing.conversation_attributes(result.continuation_id).items():
                    span.set(name, value)
            return result

    async def _run(
        self,
        request: ConsensusRequest,
        watch: PanelWatch | None,
        on_begun: OnBegun | None,
        on_preparing: OnPreparing | None,
    ) -> tuple[ConsensusResult, PaidAnswer | None]:
        """Return the result, and the arbiter's answer if one was given now."""
        panel = await self._choice.choose(request)
        rooms = [self._providers.sizing.room(seat.model, None) for seat in panel.seats if seat.model is not None]
        budget_tokens = int(min(rooms) * MATERIAL_SHARE)
        material = SourceRequest(
            request.files,
            directory=request.directory,
            budget_tokens=budget_tokens,
            reread=request.continuation_id if request.reread else None,
        )
        preparation = self._turns.preparation(
            _reserving_start(request), question_text(request.prompt, request.focus), _asked(panel), on_begun
        )
        if on_preparing is not None and (request.files or request.reread):
            on_preparing(preparation.reserve)
        async with preparation.guarded():
            found = await preparation.read(self._sources.read(request.owner, material))
            taken = await self._large.take_from(request.owner, question_text(request.prompt, request.focus))
            question = await self._question(request, found, taken, max(rooms))
            await self._large.store(request.owner, taken.pieces if taken else ())
            start = self._turns.claiming(
                _main_start(preparation.start, request, panel, found, taken),
                self._judge(panel),
                estimate_tokens(question),
                len(panel.seats),
            )
            announce = None if on_begun is None else partial(_announce, on_begun, start, panel)
            main = await self._turns.begin(start, announce)
        if main.commit is None:
            raise AssertionError("a turn that was begun has a conversation")
        name = main.commit.conversation.continuation_id
        watch = watch or PanelWatch()
        run = ConsensusRun(
            request, panel, question, found, start.request_key, main, name, watch, notes=[*found.notes, *panel.notes]
        )
        if main.reply is not None:
            return await self._repeated(run), None
        try:
            async with self._turns.leases.hold(main.turn_id):
                answer, result = await self._consult(run)
        except BaseException as error:
            if isinstance(error, ExaiError):
                error.continuation_id = name
                error.notes = (f"the question and {len(run.answers)} answers are stored in this conversation",)
            await self._turns.outcomes.complete(
                self._turns.fail(start, main, error, spent=run.arbiter_lost, took_s=run.took_s)
            )
            raise
        return await self._turns.outcomes.complete(self._stored(run, start, main, answer, result)), answer

    async def _repeated(self, run: ConsensusRun) -> ConsensusResult:
        """Return the stored result; if calls had failed, ask those again first."""
        reply = run.main.reply
        assert reply is not None  # noqa: S101 - asked for by the caller
        first = stored_result(reply.metadata[GUIDANCE], reply.content, run.name, reply.seq or 0, duplicate=True)
        if first.is_complete:
            return first
        await self._asker.ask(run)
        before = sum(answer.state == "answered" for answer in first.answers)
        if len(run.answers) == before and (first.model is not None or before < MIN_ANSWERS):
            return first
        start = turn_of(run, "synthesis", str(sorted(run.answers)), run.panel.arbiter)
        sent_tokens = estimate_tokens(run.question) + sum(
            estimate_tokens(each.content) for each in run.answers.values()
        )
        start = self._turns.claiming(start, self._judge(run.panel), sent_tokens)
        begun = await self._turns.begin(start)
        if begun.reply is not None:
            reply = begun.reply
            return stored_result(reply.metadata[GUIDANCE], reply.content, run.name, reply.seq or 0, duplicate=True)
        try:
            async with self._turns.leases.hold(begun.turn_id):
                answer, result = await self._asker.conclude(run)
        except BaseException as error:
            await self._turns.outcomes.complete(
                self._turns.fail(start, begun, error, spent=run.arbiter_lost, took_s=run.took_s)
            )
            raise
        if run.arbiter_error is not None:
            await self._turns.outcomes.complete(
                self._turns.fail(start, begun, run.arbiter_error, spent=run.arbiter_lost, took_s=run.took_s)
            )
            return replace(result, seq=first.seq)
        return await self._turns.outcomes.complete(self._stored(run, start, begun, answer, result))

    def _judge(self, panel: Panel) -> Model:
        """Return the arbiter; without one, the dearest member of the panel, which may have to be it."""
        members = [seat.model for seat in panel.seats if seat.model is not None]
        priced = [model for model in members if self._providers.prices.price(model) is not None]
        one = Usage(1, 1)
        dearest = max(priced or members, key=lambda model: self._providers.prices.cost_usd(model, one) or 0)
        return panel.arbiter or dearest

    async def _consult(self, run: ConsensusRun) -> tuple[PaidAnswer | None, ConsensusResult]:
        await self._asker.ask(run)
        if not run.answers:
            first = next(iter(run.failures.values()))
            if all(isinstance(error, BudgetExceeded) for error in run.failures.values()):
                raise first
            said = "; ".join(f"{run.panel.seats[index].name}: {error}" for index, error in sorted(run.failures.items()))
            cure = f"Call again with the same arguments and idempotency_key {run.key}, or with other models"
            raise ProviderUnavailable("the panel", f"none of its {len(run.panel.seats)} models answered ({said})", cure)
        return await self._asker.conclude(run)

    async def _question(
        self, request: ConsensusRequest, found: SourcesRead, taken: Taken | None, room_tokens: int
    ) -> str:
        """Return the one text that all members are sent: the question with the texts of its files."""
        message = _question_row(request, found, taken)
        text = "\n\n".join(filter(None, (message.content, found.left_out_text)))
        message = replace(message, content=text)
        asked = Message(1, "user", message.content, datetime.now(UTC), metadata=message.metadata)
        prompt = await self._attachments.prompt(request.owner, [asked], None, room_tokens, limit_tokens=room_tokens)
        return prompt.messages[-1].content

    async def _stored(
        self, run: ConsensusRun, start: TurnStart, begun: TurnBegun, answer: PaidAnswer | None, result: ConsensusResult
    ) -> ConsensusResult:
        """Store a result as the outcome of its turn."""
        facts: dict[str, Any] = {"workflow": TOOL, FINISH_REASON: result.finish_reason}
        spent = answer or run.arbiter_lost or Spent()
        if answer is not None:
            facts["model"] = answer.model
        try:
            seq, content = await self._turns.finish(
                TurnEnd(
                    start.owner,
                    begun.turn_id,
                    begun.attempt,
                    "finished",
                    (NewMessage("assistant", result.content, "answer", facts),),
                    model=answer.model if answer else None,
                    usage=spent.usage,
                    cost_usd=spent.cost_usd,
                    is_estimated=spent.is_estimated,
                    metadata={FINISH_REASON: result.finish_reason, GUIDANCE: result.as_facts()},
                    took_s=run.took_s,
                )
            )
        except DatabaseError as error:
            log.error("consensus_not_stored", turn=begun.turn_id, error=str(error))
            raise AnswerNotStored(str(error), result.content, run.name) from error
        return replace(result, seq=seq, content=content)


def _announce(on_begun: OnBegun, start: TurnStart, panel: Panel, begun: TurnBegun) -> None:
    """Tell the caller the turn of a panel, which exists in its conversation."""
    if begun.commit is None or begun.started_at is None:
        return
    name = begun.commit.conversation.continuation_id
    on_begun(RunningTurn(begun.turn_id, begun.started_at, name, start.request_key, _asked(panel)))


def _asked(panel: Panel) -> str:
    return f"a panel of {len(panel.seats)} models"


def _reserving_start(request: ConsensusRequest) -> TurnStart:
    """Return the start of the turn with question and synthesis, before its question is known."""
    return TurnStart(
        owner=request.owner,
        continuation_id=request.continuation_id,
        new_conversation_id=ConversationId(str(uuid.uuid4())),
        turn_id=TurnId(str(uuid.uuid4())),
        request_key=request_key(request.idempotency_key),
        request_hash=content_hash(TOOL, *request.identity()),
        tool=TOOL,
        provider=None,
        model=None,
        messages=(),
        lease_s=LEASE_S,
        budget_bytes=0,
        title=opening(request.prompt),
    )


def _question_row(
    request: ConsensusRequest, found: SourcesRead, taken: Taken | None, facts: Mapping[str, Any] = NO_FACTS
) -> NewMessage:
    """Return the message of a question, with its files and without its large content."""
    message = NewMessage("user", question_text(request.prompt, request.focus), "step", facts)
    message = with_files(message, found.files)
    return message if taken is None else taken.applied(message)


def _main_start(
    start: TurnStart, request: ConsensusRequest, panel: Panel, found: SourcesRead, taken: Taken | None
) -> TurnStart:
    """Return the start of the turn with its question and the files that were read."""
    arbiter = panel.arbiter
    facts: dict[str, Any] = {"workflow": TOOL, "panel": [seat.name for seat in panel.seats]}
    facts |= {"read": list(found.read)} if found.read else {}
    facts |= {"left_out": list(found.left_out)} if found.left_out else {}
    return replace(
        start,
        provider=arbiter.provider if arbiter else None,
        model=arbiter.name if arbiter else None,
        messages=(_question_row(request, found, taken, facts),),
        file_ids=tuple(dict.fromkeys((*found.files, *(taken.file_ids if taken else ())))),
        sources=found.sources,
    )
