"""The tools that ask a model as an expert: one for each workflow, with one contract.

Invariant: every tool takes the same few arguments, of which only `prompt` is required, and returns the same fields,
whether a model was asked, a step was recorded, or a stored turn is read later.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import Field, create_model
from pydantic.json_schema import SkipJsonSchema

from exai.conversations import ChatResult
from exai.mcp.core.protocol import ClientInfo
from exai.mcp.features.results import ToolOutput
from exai.mcp.features.tools import Arguments, CallContext, ToolSpec
from exai.models import ContinuationId
from exai.tools.answers import CacheArgument, OriginOutput
from exai.tools.chat import ChangedFileOutput
from exai.tools.limits import ALWAYS_LOADED, NO_CLIENT, Size, answer_limit, size_of, take_rows, take_text
from exai.tools.progress import AnswerProgress
from exai.workflows import Workflow, WorkflowRequest, WorkflowResult, WorkflowService, load_workflows
from exai.workflows.findings import Severity, Verdict
from exai.workflows.requests import FindingRow
from exai.workflows.rows import WORKFLOW, result_of_turn

LISTED: Final = 0.16
"""Largest share of an answer that each of the lists beside the content takes: findings, what was read and left out."""

ALWAYS: Final = frozenset({"codereview"})
"""Workflows whose schema clients should load at their start."""

COMMON: Final[Mapping[str, Any]] = {
    "files": (
        list[str] | None,
        Field(None, description="Paths, directories, globs, path:10-80 or file_ids; the server reads them."),
    ),
    "focus": (str | None, Field(None, description="What matters most.")),
    "findings": (
        list[str] | None,
        Field(None, description="What you found, one line each: 'high: SQL from input (db.py:42)'."),
    ),
    "continuation_id": (
        ContinuationId | None,
        Field(None, description="Continue this conversation, of any tool."),
    ),
    "model": (str | None, Field(None, description="A name of listmodels. Left out: the default.")),
    "reread": (bool, Field(False, description="Read changed files again.")),
    "ask_model": (bool, Field(True, description="false: only record this as a step.")),
}
FURTHER: Final[Mapping[str, Any]] = {
    "diff": (
        str | None,
        Field(
            None,
            description="'uncommitted', 'staged', 'unstaged' or a git range such as main...HEAD; the server reads it.",
        ),
    ),
    "hypothesis": (str | None, Field(None, description="The cause you suspect.")),
    "target": (str | None, Field(None, description="Function, class or module to trace.")),
    "revises": (int | None, Field(None, ge=1, description="Number of the plan step that this replaces.")),
    "branch": (str | None, Field(None, description="Name of an alternative to plan beside the main one.")),
}
PROMPT: Final = "What is wanted and why; later, what you found since."
DIFF_DEFAULT: Final = " Left out: {diff}."


class WorkflowArguments(Arguments):
    """Base of the arguments: what is accepted but not listed, because every client pays for a listed schema."""

    idempotency_key: SkipJsonSchema[str | None] = None
    expected_revision: SkipJsonSchema[int | None] = None
    cache: SkipJsonSchema[CacheArgument | None] = None


@dataclass
class FindingOutput:
    """One finding; `by` is model or caller."""

    id: int
    severity: Severity | None
    text: str
    file: str | None
    line: int | None
    by: str

    @classmethod
    def of(cls, row: FindingRow) -> Self:
        """Make the output for a finding."""
        found = row.finding
        return cls(row.id, found.severity, found.text, found.file, found.line, row.by)


@dataclass
class WorkflowOutput(ToolOutput):
    """Answer of every tool that asks a model as an expert."""

    content: str
    next: Annotated[str, Field(description="What to do now.")]
    continuation_id: str
    seq: int
    step: Annotated[int | None, Field(description="How many times this tool was called in the conversation.")]
    complete: bool
    model: str | None
    verdict: Verdict | None
    findings: list[FindingOutput]
    read: list[str]
    left_out: list[str]
    understood: list[str]
    next_offset: int | None
    cost_usd: float | None
    duplicate: bool
    from_cache: OriginOutput | None
    changed_files: list[ChangedFileOutput]
    notes: list[str]

    @classmethod
    def of(cls, result: WorkflowResult, client: ClientInfo = NO_CLIENT) -> Self:
        """Make the output for a result; what exceeds the answers that the client shows is cut."""
        limit = answer_limit(client)
        listed = limit.share(LISTED)
        findings = take_rows(result.findings, FindingOutput.of, listed)
        read, left_out = some_lines(result.read, listed), some_lines(result.left_out, listed)
        notes = [*result.notes, *_unlisted(result, len(findings))]
        changed = take_rows(result.turn.changed_files if result.turn else (), ChangedFileOutput.of, listed)
        content, next_offset = take_text(
            result.content, 0, limit - size_of([findings, read, left_out, changed, notes, result.next])
        )
        continued = "" if next_offset is None else (
            f"The answer continues: call conversation_get with this continuation_id, seq {result.seq} and char_offset "
            f"{next_offset}. Then: "
        )  # fmt: skip
        return cls(
            content=content,
            next=continued + result.next,
            continuation_id=result.continuation_id,
            seq=result.seq,
            step=result.step,
            complete=True,
            model=result.model,
            verdict=result.verdict,
            findings=findings,
            read=read,
            left_out=left_out,
            understood=[],
            next_offset=next_offset,
            cost_usd=None if result.cost_usd is None else float(result.cost_usd),
            duplicate=result.duplicate,
            from_cache=OriginOutput.of(result.turn.origin if result.turn else None),
            changed_files=changed,
            notes=notes,
        )

    @classmethod
    def of_turn(cls, turn: ChatResult, client: ClientInfo = NO_CLIENT) -> Self:
        """Make the output for a stored turn."""
        return cls.of(result_of_turn(load_workflows()[turn.facts[WORKFLOW]], turn), client)

    def as_text(self) -> str:
        """Return the answer, followed by the files that were read."""
        return "\n\n".join([self.content, *self._after()])

    def _after(self) -> Iterator[str]:
        if self.read:
            yield f"Read: {'; '.join(self.read)}"
        if self.left_out:
            yield f"Left out: {'; '.join(self.left_out)}"


def workflow_tools(service: WorkflowService) -> tuple[ToolSpec, ...]:
    """Make the tools of all workflows."""
    return tuple(_tool(workflow, service) for workflow in load_workflows().values())


def _tool(workflow: Workflow, service: WorkflowService) -> ToolSpec:
    async def handle(arguments: Arguments, context: CallContext) -> WorkflowOutput:
        progress = AnswerProgress(context, workflow.name)
        request = _request(arguments, context)
        context.doing(f"{workflow.name}: reading files" if request.files or request.diff else workflow.name)
        result = await service.run(workflow.name, request, progress.on_delta, progress.on_begun, context.preparing)
        return WorkflowOutput.of(result, context.client)

    return ToolSpec(
        name=workflow.name,
        title=workflow.header.title,
        description=workflow.header.description,
        arguments=arguments_of(workflow),
        output=WorkflowOutput,
        handler=handle,
        open_world=True,
        joins_identical=True,
        answer_from=WorkflowOutput.of_turn,
        timeout_s=None,
        meta=ALWAYS_LOADED if workflow.name in ALWAYS else {},
    )


def arguments_of(workflow: Workflow) -> type[Arguments]:
    """Return the arguments of a workflow's tool: the common ones that it has, and its own."""
    header = workflow.header
    prompt: Any = (str, Field(description=PROMPT))
    if header.prompt is not None:
        prompt = (str | None, Field(None, description=header.prompt))
    own = {name: FURTHER[name] for name in header.also}
    if header.diff_default is not None:
        kind, described = own["diff"]
        default = DIFF_DEFAULT.format(diff=header.diff_default)
        own["diff"] = (kind, Field(None, description=described.description.removesuffix(".") + "." + default))
    common = {name: declared for name, declared in COMMON.items() if name not in header.without}
    name = f"{workflow.name.title()}Arguments"
    made: type[Arguments] = create_model(name, __base__=WorkflowArguments, prompt=prompt, **common, **own)
    return made


def _request(arguments: Arguments, context: CallContext) -> WorkflowRequest:
    given = {name: value for name, value in dict(arguments).items() if value is not None}
    for name in ("files", "findings"):
        given[name] = tuple(given.get(name, ()))
    return WorkflowRequest(owner=context.owner, directory=directory_of_caller(context), **given)


def directory_of_caller(context: CallContext) -> Path | None:
    """Return the directory in which the client works, if it is known."""
    return Path(context.directory) if context.directory else None


def some_lines(lines: Sequence[str], limit: Size) -> list[str]:
    """Return as many lines as fit, with the number of the others and where they are."""
    shown = take_rows(lines, str, limit)
    if len(shown) == len(lines):
        return shown
    return [*shown, f"and {len(lines) - len(shown):,} more, in the metadata of the question (conversation_export)"]


def _unlisted(result: WorkflowResult, listed: int) -> Iterator[str]:
    if listed < len(result.findings):
        yield (
            f"{len(result.findings) - listed:,} more findings are messages of their own; conversation_get with this "
            f"continuation_id and before_seq {result.seq} has them"
        )
