"""Requests to the workflow engine and their results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from decimal import Decimal
from pathlib import Path
from typing import Any

from exai.conversations.requests import ChatResult
from exai.models import CacheUse, ContinuationId, Owner
from exai.settings.load import LimitSettings
from exai.validation import (
    MAX_MODEL_CHARS,
    check_flag,
    check_list,
    check_name,
    check_not_blank,
    check_optional_name,
    check_optional_number,
    check_revision_of,
    check_text,
)
from exai.workflows.findings import CodeFinding, Verdict

MAX_GIVEN_FINDINGS = 100
MAX_SHORT_CHARS = 20_000
MAX_PLAN_STEPS = 9_999


@dataclass(frozen=True, slots=True)
class WorkflowRequest:
    """One call of a workflow. With `ask_model` false its step is stored and no model is asked.

    `files` are paths, directories, globs and file ids, `directory` is where relative ones begin. `diff` is read
    if given. The fields after it are those of single workflows. With `reread` the files of the conversation that have
    changed on disk are read again.
    """

    owner: Owner
    prompt: str | None = None
    files: tuple[str, ...] = ()
    focus: str | None = None
    findings: tuple[str, ...] = ()
    continuation_id: ContinuationId | None = None
    model: str | None = None
    ask_model: bool = True
    diff: str | None = None
    hypothesis: str | None = None
    target: str | None = None
    revises: int | None = None
    branch: str | None = None
    directory: Path | None = None
    idempotency_key: str | None = None
    expected_revision: int | None = None
    cache: CacheUse = "off"
    reread: bool = False

    def validate(self, limits: LimitSettings, *, needs_prompt: bool) -> None:
        """Raise `InvalidArgument` for a value that the engine cannot use; the rest is checked with the turn."""
        if needs_prompt or self.prompt is not None:
            check_not_blank("prompt", self.prompt, "Say what is wanted and why")
            # What exceeds the limit of a message is stored as a file.
            check_text("prompt", self.prompt, limits.append_bytes)
        check_list("findings", self.findings, MAX_GIVEN_FINDINGS, "Give the most important ones")
        for name in ("focus", "diff", "hypothesis", "target", "branch"):
            value = getattr(self, name)
            if value is not None:
                check_name(name, value, MAX_SHORT_CHARS)
        for place, finding in enumerate(self.findings):
            check_text(f"findings[{place}]", finding, limits.message_bytes)
        check_optional_number("revises", self.revises, 1, MAX_PLAN_STEPS)
        check_revision_of(self.continuation_id, self.expected_revision)
        check_optional_name("model", self.model, MAX_MODEL_CHARS)
        check_flag("ask_model", self.ask_model)
        check_flag("reread", self.reread)

    def identity(self) -> tuple[Any, ...]:
        """Return the fields in which repetitions with one key must agree: the arguments, not the texts of files."""
        others = ("owner", "continuation_id", "idempotency_key", "expected_revision", "directory", "cache", "reread")
        values = (getattr(self, each.name) for each in fields(self) if each.name not in others)
        return tuple(list(value) if isinstance(value, tuple) else value for value in values)


@dataclass(frozen=True, slots=True)
class FindingRow:
    """A finding with its number in the result, and who made it: `model` or `caller`."""

    id: int
    finding: CodeFinding
    by: str


@dataclass(frozen=True, slots=True)
class WorkflowResult:
    """The result of one call. `turn` is None for a recorded step. `step` counts the calls of this workflow.

    `read` and `left_out` list the files and changes that were read and left out. `verdict` is None without one.
    """

    workflow: str
    content: str
    next: str
    continuation_id: ContinuationId
    seq: int
    step: int | None
    model: str | None
    findings: tuple[FindingRow, ...] = ()
    verdict: Verdict | None = None
    read: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    cost_usd: Decimal | None = None
    finish_reason: str = "stop"
    duplicate: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)
    turn: ChatResult | None = None
