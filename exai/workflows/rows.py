"""Make the rows of a step, of findings, verdicts and plans, and read a result back from stored rows. No I/O.

Invariant: the kind and the metadata of a row state its meaning, and its content states it in words, so that any later
tool can use it, and any model understands it in a prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from exai.conversations.requests import ChatResult
from exai.files.sources import SourcesRead
from exai.models import Completion, NewMessage
from exai.workflows.definitions import Workflow
from exai.workflows.findings import (
    BLOCKING,
    CodeFinding,
    FoundBy,
    PlanStep,
    Verdict,
    findings_in,
    parse_findings,
    plan_in,
    plan_steps,
    verdict_in,
)
from exai.workflows.requests import FindingRow, WorkflowRequest, WorkflowResult

WORKFLOW: Final = "workflow"
BROKEN: Final = "The answer broke off. Call {name} again with this continuation_id to have it completed."
CONTRADICTION: Final = "the model's verdict is pass although it reports a {severity} finding; check that finding first"


def question_of(request: WorkflowRequest, left_out: str = "") -> str:
    """Return the text of the step: the prompt, the fields, and the material that was left out."""
    lines = [request.prompt or ""]
    given = {"Focus": request.focus, "Target": request.target, "Diff": request.diff, "Branch": request.branch}
    lines += [f"{name}: {value}" for name, value in given.items() if value]
    if request.revises is not None:
        lines.append(f"This replaces plan step {request.revises}.")
    return "\n\n".join([*lines, left_out] if left_out else lines)


def step_metadata(workflow: Workflow, request: WorkflowRequest, found: SourcesRead) -> dict[str, Any]:
    """Return the typed facts of a step."""
    given = {
        "focus": request.focus,
        "target": request.target,
        "diff": request.diff,
        "branch": request.branch,
        "revises": request.revises,
        "read": list(found.read),
        "left_out": list(found.left_out),
    }
    return {WORKFLOW: workflow.name, **{name: value for name, value in given.items() if value}}


def preceding_rows(workflow: Workflow, request: WorkflowRequest) -> tuple[NewMessage, ...]:
    """Return the rows of the caller's findings and hypothesis, which are stored before the step."""
    rows = [finding_row(workflow, each, "user", "caller") for each in parse_findings(request.findings)]
    if request.hypothesis:
        facts = {WORKFLOW: workflow.name}
        rows.append(NewMessage("user", f"Hypothesis: {request.hypothesis}", "hypothesis", facts))
    return tuple(rows)


def recorded_rows(workflow: Workflow, request: WorkflowRequest, found: SourcesRead) -> tuple[NewMessage, ...]:
    """Return the rows of a step without a call of a model; those of a plan are its steps."""
    facts, left_out = step_metadata(workflow, request, found), found.left_out_text
    text = question_of(request, left_out)
    before = preceding_rows(workflow, request)
    if workflow.header.reads != "plan":
        return (*before, NewMessage("user", text, "step", facts))
    steps = plan_steps((request.prompt or "").splitlines()) if request.revises is None else ()
    if not steps:
        return (*before, NewMessage("user", text, "plan", facts | numbered(request.revises)))
    texts = [plan_text(each) for each in steps]
    if left_out:
        texts[-1] += f"\n\n{left_out}"
    rows = zip(texts, steps, strict=True)
    return (*before, *(NewMessage("user", text, "plan", facts | numbered(each.number)) for text, each in rows))


def answer_rows(workflow: Workflow, request: WorkflowRequest, completion: Completion) -> tuple[NewMessage, ...]:
    """Return the rows read from an answer, which are stored before it and never sent to a model."""
    return tuple(_read_answer(workflow, request.branch, completion.content, is_whole=is_whole(completion)))


def is_whole(answer: Completion | ChatResult) -> bool:
    """Return whether an answer is known to be complete; only then its last line can be a verdict."""
    partial = answer.is_partial if isinstance(answer, Completion) else answer.partial
    return not partial and answer.finish_reason == "stop"


def _read_answer(workflow: Workflow, branch: str | None, content: str, *, is_whole: bool) -> Iterator[NewMessage]:
    facts: dict[str, Any] = {WORKFLOW: workflow.name}
    if workflow.header.reads == "findings":
        for each in findings_in(content):
            yield finding_row(workflow, each, "assistant", "model")
    elif workflow.header.reads == "plan":
        of = {"branch": branch} if branch else {}
        for step in plan_in(content):
            yield NewMessage("assistant", plan_text(step), "plan", facts | of | numbered(step.number))
    if workflow.header.has_verdict and is_whole and (verdict := verdict_in(content)):
        yield NewMessage("assistant", f"Verdict: {verdict}", "verdict", facts | {"verdict": verdict})


def finding_row(workflow: Workflow, finding: CodeFinding, role: Any, by: FoundBy) -> NewMessage:
    """Return the row of one finding."""
    given = {"severity": finding.severity, "file": finding.file, "line": finding.line}
    facts = {WORKFLOW: workflow.name, "by": by, **{name: value for name, value in given.items() if value is not None}}
    return NewMessage(role, f"Finding: {finding.as_line()}", "finding", facts)


def plan_text(step: PlanStep) -> str:
    """Return a plan step in words."""
    return f"Plan step {step.number}: {step.text}"


def numbered(number: int | None) -> dict[str, Any]:
    """Return the metadata of a plan step's number."""
    return {} if number is None else {"number": number}


def facts_of_call(workflow: Workflow, request: WorkflowRequest, found: SourcesRead, notes: tuple[str, ...]) -> Any:
    """Return the metadata to store with a turn, from which any daemon can make its result again."""
    findings = [each.as_line() for each in parse_findings(request.findings)]
    return {
        WORKFLOW: workflow.name,
        "read": list(found.read),
        "left_out": list(found.left_out),
        "notes": [*found.notes, *notes],
        "given": findings,
        "revises": request.revises,
        "named": bool(request.files or request.diff or request.continuation_id),
    }


def result_of_turn(workflow: Workflow, turn: ChatResult) -> WorkflowResult:
    """Return the result of an asking call, from the turn alone."""
    facts = turn.facts
    found = findings_in(turn.content) if workflow.header.reads == "findings" else ()
    given = parse_findings(facts.get("given", ()))
    verdict = verdict_in(turn.content) if workflow.header.has_verdict and is_whole(turn) else None
    notes = [*facts.get("notes", ()), *turn.notes]
    notes += _said_of_revision(workflow, turn)
    worst = next((each.severity for each in found if each.severity in BLOCKING), None)
    if verdict == "pass" and worst is not None:
        notes.append(CONTRADICTION.format(severity=worst))
    return WorkflowResult(
        workflow=workflow.name,
        content=turn.content,
        next=_next_of(workflow, turn, found, verdict),
        continuation_id=turn.continuation_id,
        seq=turn.seq,
        step=facts.get("step"),
        model=turn.model,
        findings=number_findings(found, given),
        verdict=verdict,
        read=tuple(facts.get("read", ())),
        left_out=tuple(facts.get("left_out", ())),
        notes=tuple(notes),
        cost_usd=turn.cost_usd,
        finish_reason=turn.finish_reason,
        duplicate=turn.duplicate,
        turn=turn,
    )


def _said_of_revision(workflow: Workflow, turn: ChatResult) -> Iterator[str]:
    number = turn.facts.get("revises")
    steps = plan_in(turn.content) if number is not None and workflow.header.reads == "plan" else ()
    if steps and all(step.number != number for step in steps):
        first, last = steps[0].number, steps[-1].number
        yield f"revises: the plan of this answer has no step {number}; its steps are {first} to {last}"


def number_findings(found: tuple[CodeFinding, ...], given: tuple[CodeFinding, ...]) -> tuple[FindingRow, ...]:
    """Return the findings of model and caller; first the model's, numbered as in its answer."""
    by = [*((each, "model") for each in found), *((each, "caller") for each in given)]
    return tuple(FindingRow(number, each, who) for number, (each, who) in enumerate(by, 1))


def _next_of(workflow: Workflow, turn: ChatResult, found: tuple[CodeFinding, ...], verdict: Verdict | None) -> str:
    sentences = workflow.header.next
    if not is_whole(turn):
        return BROKEN.format(name=workflow.name)
    if workflow.header.material and sentences.nothing_read and not turn.facts.get("named"):
        return sentences.nothing_read
    blocking = [str(number) for number, each in enumerate(found, 1) if each.severity in BLOCKING]
    if sentences.blocking and (blocking or verdict == "fix first"):
        return sentences.blocking.replace("{blocking}", _named_findings(blocking))
    return sentences.answered


def _named_findings(numbers: list[str]) -> str:
    if not numbers:
        return "the findings"
    return f"finding{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"
