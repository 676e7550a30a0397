"""Workflows as data: one Markdown file each in `texts/`, with a TOML header and the expert's instructions below it.

Invariant: everything in which one workflow differs from another is in its file; the engine knows no workflow's name.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from exai.models import Thinking

FENCE: Final = "+++\n"
MAX_INSTRUCTION_CHARS: Final = 2_800

CommonField = Literal["files", "focus", "findings", "continuation_id", "model", "ask_model"]
FurtherField = Literal["diff", "hypothesis", "target", "revises", "branch"]
Reads = Literal["findings", "plan", "none"]
"""A field that is read from a fenced block of the model's answer."""


class NextSentences(BaseModel):
    """What the caller should do next, by outcome. `{blocking}` stands for the blocking findings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recorded: str
    answered: str
    blocking: str | None = None
    nothing_read: str | None = None


class WorkflowHeader(BaseModel):
    """The header of a workflow's file.

    `material` states that the workflow is about files, so that one without any is worth a remark. `diff_default` is the
    diff that is read if none is named. `also` are its fields beside the common ones, `without` the common ones that it
    lacks. `prompt` describes the prompt of a workflow that can do without one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    description: Annotated[str, Field(max_length=499)]
    effort: Thinking
    reads: Reads
    material: bool
    has_verdict: bool = False
    diff_default: str | None = None
    also: tuple[FurtherField, ...] = ()
    without: tuple[CommonField, ...] = ()
    prompt: str | None = None
    next: NextSentences


@dataclass(frozen=True, slots=True)
class Workflow:
    """One workflow. `instructions` are sent with its questions, and are never stored."""

    name: str
    header: WorkflowHeader
    instructions: str


@cache
def load_workflows() -> Mapping[str, Workflow]:
    """Return all workflows by name. Raises `ValueError` for a file that is not as the engine needs it."""
    found = files(__package__) / "texts"
    texts = {item.name.removesuffix(".md"): item.read_text("utf-8") for item in found.iterdir() if item.is_file()}
    shared = {item.name.removesuffix(".md"): item.read_text("utf-8") for item in (found / "shared").iterdir()}
    return {name: parse_workflow(name, text, shared) for name, text in sorted(texts.items())}


def instructions_by_name() -> Mapping[str, str]:
    """Return the instructions of all workflows."""
    return {name: workflow.instructions for name, workflow in load_workflows().items()}


def parse_workflow(name: str, text: str, shared: Mapping[str, str]) -> Workflow:
    """Return the workflow of a file. `shared` holds the grammars of the parts of answers, by name."""
    before, header, instructions = [*text.split(FENCE, 2), "", ""][:3]
    if before.strip() or not instructions.strip():
        raise ValueError(f"workflow {name}: the file needs a header between two lines of +++, and instructions")
    try:
        parsed = WorkflowHeader.model_validate(tomllib.loads(header))
    except ValueError as error:
        raise ValueError(f"workflow {name}: {error}") from error
    parts = [instructions]
    if parsed.reads != "none":
        parts.append(shared[parsed.reads])
    if parsed.has_verdict:
        parts.append(shared["verdict"])
    whole = "\n\n".join(part.strip() for part in parts)
    if len(whole) > MAX_INSTRUCTION_CHARS:
        raise ValueError(f"workflow {name}: the instructions have {len(whole)} characters")
    return Workflow(name, parsed, whole)
