"""The state of one consensus while it runs, and the result that is made of it. No I/O."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Final

from exai.db.records import TurnBegun
from exai.errors import ExaiError
from exai.files.sources import SourcesRead
from exai.models import ContinuationId, Usage
from exai.workflows.consensus.panel import Panel, PanelSeat
from exai.workflows.consensus.prompts import LabelledAnswer, disagreements_in, has_dismissals
from exai.workflows.consensus.requests import ConsensusRequest, ConsensusResult, PanelAnswer, SeatState
from exai.workflows.consensus.turns import Cut, PaidAnswer, Spent, TooLate
from exai.workflows.consensus.watch import PanelWatch

OPENING_CHARS: Final = 600


@dataclass(slots=True)
class ConsensusRun:
    """One call. `key` is the request key of its question, from which the keys of its other turns are made.

    `lost` has what failed calls have cost, and `arbiter_lost` what that of the arbiter has.
    """

    request: ConsensusRequest
    panel: Panel
    question: str
    found: SourcesRead
    key: str
    main: TurnBegun
    name: ContinuationId
    watch: PanelWatch
    cut: Cut = field(default_factory=Cut)
    paid: list[PaidAnswer] = field(default_factory=list)
    answers: dict[int, PaidAnswer] = field(default_factory=dict)
    failures: dict[int, ExaiError] = field(default_factory=dict)
    ranks: dict[int, tuple[float, int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    lost: list[Spent] = field(default_factory=list)
    arbiter_lost: Spent | None = None
    arbiter_error: ExaiError | None = None
    began_s: float = field(default_factory=time.monotonic)

    @property
    def took_s(self) -> float:
        """Return the seconds since the call began."""
        return time.monotonic() - self.began_s

    @property
    def is_whole(self) -> bool:
        """Return whether every member has answered."""
        return len(self.answers) == len(self.panel.seats)

    def lose_arbiter(self, spent: Spent) -> None:
        """Record the cost of a failed call of the arbiter."""
        self.lost.append(spent)
        self.arbiter_lost = spent

    def own_names(self) -> list[str]:
        """Return the names of the members, in the order of their seats."""
        return [seat.name for seat in self.panel.seats]


def judged(run: ConsensusRun, labelled: Sequence[LabelledAnswer], synthesis: PaidAnswer) -> ConsensusResult:
    """Return the result with a synthesis."""
    seqs = {each.label: run.answers[each.index].seq for each in labelled}
    if not has_dismissals(synthesis.content):
        run.notes.append("the arbiter gave no reasons for the points that it dismissed")
    found = disagreements_in(synthesis.content, seqs)
    if found:
        told = "; ".join(
            f"{' and '.join(f'{label} (seq {seqs[label]})' for label in each.labels)} disagree on {each.topic}"
            for each in found
        )
        following = f"Decide yourself: {told}. Read those answers with conversation_get if it matters."
    else:
        following = "Check what would settle the question before you act: that all agree is no proof."
    result = _result(run, labelled, synthesis.content, following)
    return replace(result, model=synthesis.model, finish_reason=synthesis.finish_reason)


def unjudged(run: ConsensusRun, labelled: Sequence[LabelledAnswer]) -> ConsensusResult:
    """Return the result for answers that no arbiter has judged."""
    parts = [
        f"## {each.label} ({run.panel.seats[each.index].name}, seq {run.answers[each.index].seq})\n\n"
        f"{run.answers[each.index].content[:OPENING_CHARS]}"
        for each in labelled
    ]
    content = "There is no synthesis, because the arbiter did not answer. The answers begin:\n\n" + "\n\n".join(parts)
    result = _result(run, labelled, content, "Read the answers with conversation_get and decide yourself.")
    return result if not result.is_complete else replace(result, is_complete=False, next=_again(run, result.next))


def alone(run: ConsensusRun, labelled: Sequence[LabelledAnswer]) -> ConsensusResult:
    """Return the result for a single answer."""
    only = run.answers[labelled[0].index]
    content = (
        f"Only {only.model} of {len(run.panel.seats)} models answered, so there is no synthesis and this is no "
        f"consensus. Its answer:\n\n{only.content}"
    )
    return _result(run, labelled, content, "Treat this as one opinion.")


def _result(run: ConsensusRun, labelled: Sequence[LabelledAnswer], content: str, following: str) -> ConsensusResult:
    labels = {each.index: each.label for each in labelled}
    calls: list[PaidAnswer | Spent] = [*run.paid, *run.lost]
    costs = [each.cost_usd for each in calls if each.cost_usd is not None]
    return ConsensusResult(
        content=content,
        next=following if run.is_whole else _again(run, following),
        continuation_id=run.name,
        seq=0,
        model=None,
        answers=tuple(_panel_answer(run, seat, labels.get(seat.index, "")) for seat in run.panel.seats),
        is_complete=run.is_whole,
        retry_key=run.key,
        read=run.found.read,
        left_out=run.found.left_out,
        notes=tuple(run.notes),
        sources=tuple(dict.fromkeys(source for each in run.paid for source in each.sources)),
        cost_usd=sum(costs, Decimal(0)) if costs else None,
        usage=_sum([each.usage for each in calls if each.usage is not None]),
    )


def _again(run: ConsensusRun, following: str) -> str:
    return (
        f"{following} To ask only what failed, call consensus again with the same arguments and idempotency_key "
        f"{run.key}."
    )


def _panel_answer(run: ConsensusRun, seat: PanelSeat, label: str) -> PanelAnswer:
    answer, error = run.answers.get(seat.index), run.failures.get(seat.index)
    if answer is None:
        state: SeatState = "late" if isinstance(error, TooLate) else "failed"
        code = "not_found" if seat.problem is not None else error.code if error else None
        return PanelAnswer(seat.name, state, stance=seat.stance, error=code, problem=str(error) if error else None)
    rank, judges = run.ranks.get(seat.index, (None, 0))
    return PanelAnswer(
        model=answer.model,
        state="answered",
        label=label,
        stance=seat.stance,
        seq=answer.seq,
        opening=answer.content[:OPENING_CHARS],
        cost_usd=None if answer.cost_usd is None else float(answer.cost_usd),
        input_tokens=answer.usage.input_tokens,
        output_tokens=answer.usage.output_tokens,
        mean_rank=rank,
        judges=judges,
    )


def _sum(usages: Sequence[Usage]) -> Usage:
    return Usage(
        sum(each.input_tokens for each in usages),
        sum(each.output_tokens for each in usages),
        sum(each.cached_tokens for each in usages),
        sum(each.reasoning_tokens for each in usages),
    )
