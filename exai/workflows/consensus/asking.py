"""Ask the members of a panel, let them rank each other's answers, and let the arbiter conclude.

Invariant: no member is shown the conversation, another answer (except to rank it), or anything but the question and its
files. Each member's answer and each ranking is a turn of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from exai.conversations.deduplication import content_hash
from exai.conversations.turns.prompt import estimate_tokens
from exai.conversations.turns.request import LEASE_S
from exai.db.records import TurnStart
from exai.errors import Conflict, DatabaseError, ExaiError, InvalidArgument
from exai.models import ConversationId, Prompt, TurnId
from exai.providers.base import Clocks, Model
from exai.providers.registry import Providers
from exai.resilience import remaining_s
from exai.workflows.consensus.panel import PanelSeat
from exai.workflows.consensus.prompts import (
    judged_text,
    label_answers,
    mean_ranks,
    panel_instructions,
    ranks_in,
    text_of,
)
from exai.workflows.consensus.requests import TOOL, ConsensusResult
from exai.workflows.consensus.results import ConsensusRun, alone, judged, unjudged
from exai.workflows.consensus.turns import Cut, ModelCall, PaidAnswer, PanelTurns, TooLate

SYNTHESIS_S: Final = 30.0
SYNTHESIS_SHARE: Final = 0.5
"""Part of the time that is kept for the synthesis, which ends the calls of panellists who have not answered."""

MIN_JUDGED: Final = 3
MIN_ANSWERS: Final = 2


class PanelAsker:
    """Makes the calls of a consensus."""

    def __init__(self, turns: PanelTurns, providers: Providers, clocks: Clocks) -> None:
        self._turns, self._providers, self._clocks = turns, providers, clocks

    async def ask(self, run: ConsensusRun) -> None:
        """Ask all members at once; those that have answered before are not asked again."""
        tasks = [asyncio.create_task(self._ask_seat(run, seat), name="panellist") for seat in run.panel.seats]
        async with self._cutting(run.cut):
            await _all_of(tasks)

    @asynccontextmanager
    async def _cutting(self, cut: Cut) -> AsyncIterator[None]:
        """Make the cut when the rest of the request's time is needed for the synthesis."""
        left_s = remaining_s()
        if left_s is None:
            yield
            return
        pause_s = left_s - min(SYNTHESIS_S, left_s * SYNTHESIS_SHARE)

        async def cut_later() -> None:
            await self._clocks.sleep(pause_s)
            cut.make()

        task = asyncio.create_task(cut_later(), name="consensus-cut")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _ask_seat(self, run: ConsensusRun, seat: PanelSeat) -> None:
        if seat.model is None:
            run.failures[seat.index] = seat.problem or InvalidArgument("models", "cannot be asked", "Name another")
            return
        instructions = panel_instructions(seat.stance)
        room_tokens = self._providers.sizing.room(seat.model, None)
        if estimate_tokens(run.question) + estimate_tokens(instructions) > room_tokens:
            run.failures[seat.index] = InvalidArgument(
                f"models[{seat.index}]", f"the question does not fit into {seat.name}", "Give fewer files"
            )
            return
        key = f"{seat.name} ({seat.index + 1})" if run.own_names().count(seat.name) > 1 else seat.name
        call = ModelCall(
            turn_of(run, "panel", str(seat.index), seat.model),
            seat.model,
            [Prompt("system", instructions), Prompt("user", run.question)],
            "opinion",
            {"workflow": TOOL, "panellist": seat.index, **({"stance": seat.stance} if seat.stance else {})},
            "high",
            run.watch.begin(key),
            run.lost.append,
            self._searches(run, seat.model),
        )
        try:
            answer = await self._turns.ask(call, run.cut)
        except (Conflict, DatabaseError):
            raise
        except ExaiError as error:
            run.failures[seat.index] = error
            await run.watch.end(key, "is late" if isinstance(error, TooLate) else f"failed ({error.code})")
            return
        run.answers[seat.index] = answer
        run.paid.append(answer)
        run.notes += [f"{answer.model}: {note}" for note in answer.notes]
        await run.watch.end(key, "answered")

    def _searches(self, run: ConsensusRun, model: Model) -> bool:
        """Return whether a member searches the web; one whose provider cannot answers without."""
        if not run.request.web_search:
            return False
        try:
            self._providers.check(model, web_search=True)
        except InvalidArgument:
            run.notes.append(f"{model.name} cannot search the web, and answered without")
            return False
        return True

    async def conclude(self, run: ConsensusRun) -> tuple[PaidAnswer | None, ConsensusResult]:
        """Rank the answers if asked to, and let the arbiter write the synthesis; with one answer there is none."""
        seed = f"{run.main.turn_id}"
        given = [
            (index, answer.content, run.panel.seats[index].stance) for index, answer in sorted(run.answers.items())
        ]
        labelled = label_answers(given, seed, run.own_names(), run.question)
        if len(labelled) < MIN_ANSWERS:
            return None, alone(run, labelled)
        if run.request.rank:
            await self._rank(run, given)
        arbiter = await self._arbiter(run)
        ranks = {index: rank for index, (rank, _) in run.ranks.items()}
        room_tokens = self._providers.sizing.room(arbiter, None) - estimate_tokens(text_of("arbiter"))
        shown = judged_text(run.question, labelled, _mark(seed), room_tokens, ranks)
        count = run.watch.begin(f"arbiter {arbiter.name}")
        call = ModelCall(
            turn_of(run, "arbiter", "", arbiter),
            arbiter,
            [Prompt("system", text_of("arbiter")), Prompt("user", shown)],
            "answer",
            {},
            "high",
            count,
            run.lose_arbiter,
        )
        try:
            synthesis = await self._turns.answer_of(call)
        except (Conflict, DatabaseError):
            raise
        except ExaiError as error:
            await run.watch.end(f"arbiter {arbiter.name}", f"failed ({error.code})")
            run.notes.append(f"the arbiter {arbiter.name} did not answer: {error}")
            run.arbiter_error = error
            return None, unjudged(run, labelled)
        run.paid.append(synthesis)
        await run.watch.end(f"arbiter {arbiter.name}", "answered")
        return synthesis, judged(run, labelled, synthesis)

    async def _arbiter(self, run: ConsensusRun) -> Model:
        if run.panel.arbiter is not None:
            if run.panel.arbiter.name in run.own_names():
                run.notes.append(f"the arbiter {run.panel.arbiter.name} is a member of the panel")
            return run.panel.arbiter
        name = run.panel.strongest([run.panel.seats[index].name for index in run.answers])
        run.notes.append(f"the arbiter {name} is a member of the panel, because no other model is configured")
        return await self._providers.find(name)

    async def _rank(self, run: ConsensusRun, given: Sequence[tuple[int, str, Any]]) -> None:
        """Let each member rank the others' answers, which it receives shuffled and without names."""
        if len(given) < MIN_JUDGED:
            run.notes.append(f"the answers were not ranked, because only {len(given)} came and none judges its own")
            return
        if run.cut.is_made:
            run.notes.append("the answers were not ranked, because no time was left")
            return
        judges = [seat for seat in run.panel.seats if seat.index in run.answers]
        tasks = [asyncio.create_task(self._judge(run, seat, given), name="judge") for seat in judges]
        async with self._cutting(run.cut):
            orders = await _all_of(tasks)
        usable = [order for order in orders if order is not None]
        if len(usable) < len(judges):
            run.notes.append(f"{len(judges) - len(usable)} of {len(judges)} rankings are missing or not as asked for")
        run.ranks = mean_ranks(usable)

    async def _judge(
        self, run: ConsensusRun, seat: PanelSeat, given: Sequence[tuple[int, str, Any]]
    ) -> dict[int, float] | None:
        if seat.model is None:
            return None
        others = [each for each in given if each[0] != seat.index]
        seed = f"{run.main.turn_id}:{seat.index}"
        labelled = label_answers(others, seed, run.own_names(), run.question)
        room_tokens = self._providers.sizing.room(seat.model, None) - estimate_tokens(text_of("ranking"))
        shown = judged_text(run.question, labelled, _mark(seed), room_tokens)
        key = f"judge {seat.index + 1} {seat.name}"
        facts = {"workflow": TOOL, "panellist": seat.index, "order": {each.label: each.index for each in labelled}}
        call = ModelCall(
            turn_of(run, "rank", f"{seat.index}:{sorted(run.answers)}", seat.model),
            seat.model,
            [Prompt("system", text_of("ranking")), Prompt("user", shown)],
            "ranking",
            facts,
            "low",
            run.watch.begin(key),
            run.lost.append,
        )
        try:
            answer = await self._turns.ask(call, run.cut)
        except (Conflict, DatabaseError):
            raise
        except ExaiError as error:
            await run.watch.end(key, f"failed ({error.code})")
            return None
        run.paid.append(answer)
        await run.watch.end(key, "ranked")
        ranks = ranks_in(answer.content, [each.label for each in labelled])
        return None if ranks is None else {each.index: ranks[each.label] for each in labelled}


def turn_of(run: ConsensusRun, what: str, which: str, model: Model | None) -> TurnStart:
    """Return the start of another turn of this consensus; the same `what` and `which` is the same turn."""
    digest = hashlib.sha256(f"{run.key}\n{what}\n{which}".encode()).hexdigest()
    return TurnStart(
        owner=run.request.owner,
        continuation_id=run.name,
        new_conversation_id=ConversationId(str(uuid.uuid4())),
        turn_id=TurnId(str(uuid.uuid4())),
        request_key=f"consensus:{digest}",
        request_hash=content_hash(TOOL, what, which, *run.request.identity()),
        tool=TOOL,
        provider=model.provider if model else None,
        model=model.name if model else None,
        messages=(),
        lease_s=LEASE_S,
        budget_bytes=0,
    )


def _mark(seed: str) -> str:
    """Return a mark that no author of an answer can guess."""
    return hashlib.sha256(f"mark {seed} {uuid.uuid4()}".encode()).hexdigest()[:8]


async def _all_of(tasks: Sequence[asyncio.Task[Any]]) -> list[Any]:
    """Wait for all tasks; if one fails or the caller is cancelled, end the others first."""
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
