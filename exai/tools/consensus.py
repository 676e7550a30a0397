"""The `consensus` tool: one question to several models at once, and a synthesis of their answers by another model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Self

from pydantic import Field, model_validator
from pydantic.json_schema import SkipJsonSchema

from exai.conversations import ChatResult
from exai.errors import shown
from exai.mcp.core.protocol import ClientInfo
from exai.mcp.features.results import ToolOutput
from exai.mcp.features.tools import Arguments, CallContext, ToolSpec
from exai.models import ContinuationId
from exai.tools.chat import SourceOutput, UsageOutput
from exai.tools.limits import ALWAYS_LOADED, NO_CLIENT, answer_limit, size_of, take_rows, take_text
from exai.tools.progress import AnswerProgress
from exai.tools.workflow import directory_of_caller, some_lines
from exai.workflows.consensus import ConsensusRequest, ConsensusResult, ConsensusService, PanelAnswer
from exai.workflows.consensus.requests import Stance, stored_result
from exai.workflows.consensus.watch import PanelWatch

LISTED: Final = 0.1
"""Largest share of an answer that each list takes: what was read, what was left out, the pages of searches."""

NOT_SHOWN: Final = "findings: ignored, because the panel answers from the question and its files alone"

EXPECTED: Final = (
    "its message of kind answer will be the synthesis; messages of kind opinion are the panel's answers, and one of "
    "kind failed states why there is none"
)

SIDES: Final[Mapping[str, Stance]] = {
    **dict.fromkeys(("for", "support", "supporting", "supportive", "favor", "favour", "pro", "advocate"), "for"),
    **dict.fromkeys(("against", "oppose", "opposing", "critical", "critic", "con", "contra", "challenge"), "against"),
    **dict.fromkeys(("neutral", "weigh", "balanced", "both"), "weigh"),
}
"""Words for the stances of single models."""

ONE_OF_EACH: Final = ("for", "against")
OF_SEAT: Final = ("model", "name", "stance")
"""Fields of a model that is given as an object."""


class ConsensusArguments(Arguments):
    """Arguments of `consensus`."""

    prompt: str = Field(description="The question or proposal, with all that the panel must know.")
    files: list[str] | None = Field(
        None, description="Paths, directories, globs, path:10-80 or file_ids; the server reads them."
    )
    focus: str | None = Field(None, description="What matters most.")
    continuation_id: ContinuationId | None = Field(
        None, description="Continue this conversation, of any tool; the panel does not see it."
    )
    models: list[str] | None = Field(None, description="2 to 5, also the same twice. Left out: the best configured.")
    stances: Literal["none", "for_against"] = Field(
        "none", description="for_against: the first argues for, the second against, others weigh."
    )
    rank: bool = Field(False, description="Let each also rank the others' answers; one more call per model.")
    web_search: bool = Field(False, description="Let those search the web whose provider can.")
    idempotency_key: SkipJsonSchema[str | None] = None
    reread: SkipJsonSchema[bool | None] = None
    findings: SkipJsonSchema[Any] = None
    sides: SkipJsonSchema[list[Stance | None] | None] = None
    ignored: SkipJsonSchema[list[str] | None] = None

    @model_validator(mode="before")
    @classmethod
    def _names_of(cls, given: Any) -> Any:
        """Accept models as objects with name and stance, as other systems ask for them."""
        models = given.get("models") if isinstance(given, dict) else None
        if not isinstance(models, list) or not any(isinstance(each, dict) for each in models):
            return given
        seats = [each if isinstance(each, dict) else {"model": each} for each in models]
        sides = [_side(place, seat.get("stance")) for place, seat in enumerate(seats)]
        taken = {**given, "models": [seat.get("model", seat.get("name")) for seat in seats]}
        if tuple(sides[: len(ONE_OF_EACH)]) == ONE_OF_EACH and not {*sides[len(ONE_OF_EACH) :]} & {*ONE_OF_EACH}:
            taken.setdefault("stances", "for_against")
        elif any(sides):
            taken["sides"] = sides
        unknown = [
            f"models[{place}].{name}" for place, seat in enumerate(seats) for name in seat if name not in OF_SEAT
        ]
        return {**taken, "ignored": unknown} if unknown else taken


def _side(place: int, stance: Any) -> Stance | None:
    """Return the stance that a word means, None for none. Raises `ValueError` for another word."""
    word = "" if stance is None else str(stance).strip().lower()
    if word in ("", "none", "null"):
        return None
    if word not in SIDES:
        raise ValueError(f"models[{place}].stance is {shown(word)}; a stance is for, against or neutral")
    return SIDES[word]


@dataclass
class PanelAnswerOutput:
    """One panellist: `answered`, `failed` or `late`, and how its answer begins."""

    label: str
    model: str
    seq: int | None
    state: str
    stance: str | None
    error: str | None
    problem: str | None
    opening: str
    mean_rank: float | None
    judges: int
    cost_usd: float | None

    @classmethod
    def of(cls, answer: PanelAnswer) -> Self:
        """Make the output for a panellist."""
        names = cls.__dataclass_fields__
        return cls(**{name: getattr(answer, name) for name in names})


@dataclass
class ConsensusOutput(ToolOutput):
    """Answer of `consensus`."""

    content: str
    next: str
    continuation_id: str
    seq: int
    complete: bool
    model: str | None
    answers: list[PanelAnswerOutput]
    read: list[str]
    left_out: list[str]
    understood: list[str]
    next_offset: int | None
    cost_usd: float | None
    usage: UsageOutput
    sources: list[SourceOutput]
    duplicate: bool
    notes: list[str]

    @classmethod
    def of(cls, result: ConsensusResult, client: ClientInfo = NO_CLIENT) -> Self:
        """Make the output for a result; a long synthesis is cut to what the client shows."""
        usage = result.usage
        answers = [PanelAnswerOutput.of(each) for each in result.answers]
        limit = answer_limit(client)
        listed = limit.share(LISTED)
        read, left_out = some_lines(result.read, listed), some_lines(result.left_out, listed)
        sources = take_rows(result.sources, SourceOutput.of, listed)
        notes = list(result.notes)
        if len(sources) < len(result.sources):
            notes.append(f"{len(result.sources) - len(sources):,} more sources are left out; the answers name them")
        beside = size_of([answers, read, left_out, sources, result.next, notes])
        content, next_offset = take_text(result.content, 0, limit - beside)
        following = result.next
        if next_offset is not None:
            following = (
                f"The synthesis continues: conversation_get with this continuation_id, seq {result.seq} and "
                f"char_offset {next_offset} has the rest. {following}"
            )
        return cls(
            content=content,
            next=following,
            continuation_id=result.continuation_id,
            seq=result.seq,
            complete=True,
            model=result.model,
            answers=answers,
            read=read,
            left_out=left_out,
            understood=[],
            next_offset=next_offset,
            cost_usd=None if result.cost_usd is None else float(result.cost_usd),
            usage=UsageOutput(usage.input_tokens, usage.output_tokens, usage.cached_tokens, usage.reasoning_tokens),
            sources=sources,
            duplicate=result.duplicate,
            notes=notes,
        )

    @classmethod
    def of_turn(cls, turn: ChatResult, client: ClientInfo = NO_CLIENT) -> Self:
        """Make the output for a stored turn."""
        result = stored_result(turn.facts, turn.content, turn.continuation_id, turn.seq, duplicate=turn.duplicate)
        return cls.of(result, client)

    def as_text(self) -> str:
        """Return the synthesis, the models that answered, and the files that were read."""
        return "\n\n".join([self.content, *self._after()])

    def _after(self) -> Iterator[str]:
        yield "The panel:\n" + "\n".join(_line(each) for each in self.answers)
        if self.read:
            yield f"Read: {'; '.join(self.read)}"
        if self.sources:
            yield "\n".join(["Sources:", *(f"- {each.title} {each.url}" for each in self.sources)])
        if self.left_out:
            yield f"Left out: {'; '.join(self.left_out)}"


def consensus_tool(service: ConsensusService) -> ToolSpec:
    """Make the `consensus` tool."""

    async def handle(arguments: ConsensusArguments, context: CallContext) -> ConsensusOutput:
        watch = PanelWatch(context.progress, context.doing)
        on_begun = AnswerProgress(context, expects=EXPECTED).on_begun
        result = await service.run(_consensus_request(arguments, context), watch, on_begun, context.preparing)
        output = ConsensusOutput.of(result, context.client)
        said = [NOT_SHOWN] if arguments.findings else []
        said += [f"{each[:100]}: ignored" for each in arguments.ignored or ()]
        if arguments.sides:
            given = ", ".join(each or "none" for each in arguments.sides)
            said.append(f"models: the stances of single models are {given}")
        return replace(output, understood=said)

    return ToolSpec(
        name="consensus",
        title="Ask several models",
        description=(
            "Second opinion of several models at once: 2 to 5 answer the same question without seeing each other or "
            "the conversation, and another model says where they agree, where they differ and what to dismiss. For "
            "decisions, designs, disputed claims. Nothing is changed on disk. A model that fails does not stop the "
            "others; each answer can be read by its seq with conversation_get."
        ),
        arguments=ConsensusArguments,
        output=ConsensusOutput,
        handler=handle,
        open_world=True,
        joins_identical=True,
        answer_from=ConsensusOutput.of_turn,
        timeout_s=None,
        meta=ALWAYS_LOADED,
    )


def _consensus_request(arguments: ConsensusArguments, context: CallContext) -> ConsensusRequest:
    given: dict[str, Any] = {name: value for name, value in dict(arguments).items() if value is not None}
    for name in ("findings", "ignored"):
        given.pop(name, None)
    for name in ("files", "models", "sides"):
        given[name] = tuple(given.get(name, ()))
    return ConsensusRequest(owner=context.owner, directory=directory_of_caller(context), **given)


def _line(answer: PanelAnswerOutput) -> str:
    stance = f", {answer.stance}" if answer.stance else ""
    if answer.state != "answered":
        return f"- {answer.model}{stance}: {answer.state} ({answer.error}): {answer.problem}"
    rank = f", mean rank {answer.mean_rank:.1f} of {answer.judges} judges" if answer.mean_rank is not None else ""
    return f"- {answer.label} = {answer.model}{stance}, seq {answer.seq}{rank}"
