"""Requests for a consensus, their results, and the stored form of a result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Literal, get_args

from exai.errors import InvalidArgument
from exai.models import ContinuationId, Owner, Usage, WebSource
from exai.settings.load import LimitSettings
from exai.validation import (
    MAX_CONTINUATION_CHARS,
    MAX_KEY_CHARS,
    MAX_MODEL_CHARS,
    check_choice,
    check_flag,
    check_list,
    check_name,
    check_not_blank,
    check_optional_name,
    check_owner,
    check_text,
)

TOOL: Final = "consensus"
MIN_PANEL: Final = 2
MAX_PANEL: Final = 5
MAX_PANEL_FILES: Final = 1_000
MAX_PANEL_FILE_CHARS: Final = 4_096
MAX_FOCUS_CHARS: Final = 20_000

Stances = Literal["none", "for_against"]
Stance = Literal["for", "against", "weigh"]
SeatState = Literal["answered", "failed", "late"]
"""`late` is a panellist whose call was ended so that the others' answers could be used in time."""


@dataclass(frozen=True, slots=True)
class ConsensusRequest:
    """One question to a panel. `models` are its members, by default the configured panel; `files` paths and file ids,
    of which relative ones begin in `directory`.

    `sides` are the stances of the single `models`, in their order, and take precedence over `stances`. A repeated
    `idempotency_key` asks only what failed before.
    """

    owner: Owner
    prompt: str
    files: tuple[str, ...] = ()
    focus: str | None = None
    continuation_id: ContinuationId | None = None
    models: tuple[str, ...] = ()
    stances: Stances = "none"
    sides: tuple[Stance | None, ...] = ()
    rank: bool = False
    web_search: bool = False
    idempotency_key: str | None = None
    directory: Path | None = None
    reread: bool = False

    def validate(self, limits: LimitSettings) -> None:
        """Raise `InvalidArgument` for a value that cannot be used."""
        check_owner(self.owner)
        check_not_blank("prompt", self.prompt, "Give the question for the panel")
        # What exceeds the limit of a message is stored as a file.
        check_text("prompt", self.prompt, limits.append_bytes)
        check_optional_name("focus", self.focus, MAX_FOCUS_CHARS)
        check_optional_name("continuation_id", self.continuation_id, MAX_CONTINUATION_CHARS)
        check_optional_name("idempotency_key", self.idempotency_key, MAX_KEY_CHARS)
        check_list("files", self.files, MAX_PANEL_FILES)
        for place, entry in enumerate(self.files):
            check_name(f"files[{place}]", entry, MAX_PANEL_FILE_CHARS)
        check_list("models", self.models, MAX_PANEL, f"Give {MIN_PANEL} to {MAX_PANEL}")
        for place, name in enumerate(self.models):
            check_name(f"models[{place}]", name, MAX_MODEL_CHARS)
        check_choice("stances", self.stances, get_args(Stances))
        if self.sides and len(self.sides) != len(self.models):
            raise InvalidArgument("sides", f"are {len(self.sides)} for {len(self.models)} models", "Give one for each")
        for place, side in enumerate(self.sides):
            if side is not None:
                check_choice(f"sides[{place}]", side, get_args(Stance))
        check_flag("rank", self.rank)
        check_flag("web_search", self.web_search)
        check_flag("reread", self.reread)

    def identity(self) -> tuple[Any, ...]:
        """Return the fields in which repetitions with one key must agree: the arguments, not the texts of files."""
        return (
            self.continuation_id,
            self.prompt,
            list(self.files),
            self.focus,
            list(self.models),
            self.stances,
            self.rank,
            self.web_search,
            # Left out unless given, so that a request without them keeps its digest.
            *((list(self.sides),) if self.sides else ()),
        )


@dataclass(frozen=True, slots=True)
class PanelAnswer:
    """What became of one panellist. `label` is the letter under which the arbiter saw its answer, "" without one.

    `error` is the class of a failure and `problem` its sentence. `mean_rank` is 1 for the best, over `judges`.
    """

    model: str
    state: SeatState
    label: str = ""
    stance: Stance | None = None
    seq: int | None = None
    opening: str = ""
    error: str | None = None
    problem: str | None = None
    cost_usd: float | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    mean_rank: float | None = None
    judges: int = 0


@dataclass(frozen=True, slots=True)
class ConsensusResult:
    """The result of one call. `model` is the arbiter, None without a synthesis, whose absence `content` then states.

    `cost_usd` is the price of all calls of this consensus, None if no price is known. `usage` sums their tokens.
    `is_complete` is false if a repetition with `retry_key` would ask something again.
    """

    content: str
    next: str
    continuation_id: ContinuationId
    seq: int
    model: str | None
    answers: tuple[PanelAnswer, ...]
    is_complete: bool
    retry_key: str
    read: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    sources: tuple[WebSource, ...] = ()
    cost_usd: Decimal | None = None
    usage: Usage = field(default_factory=Usage)
    finish_reason: str = "stop"
    duplicate: bool = False

    def as_facts(self) -> dict[str, Any]:
        """Return the metadata to store with the turn."""
        return {
            "next": self.next,
            "model": self.model,
            "answers": [asdict(answer) for answer in self.answers],
            "is_complete": self.is_complete,
            "retry_key": self.retry_key,
            "read": list(self.read),
            "left_out": list(self.left_out),
            "notes": list(self.notes),
            "sources": [list(each) for each in self.sources],
            "cost_usd": None if self.cost_usd is None else str(self.cost_usd),
            "usage": asdict(self.usage),
            "finish_reason": self.finish_reason,
        }


def stored_result(
    facts: Mapping[str, Any], content: str, continuation_id: ContinuationId, seq: int, *, duplicate: bool
) -> ConsensusResult:
    """Return the result of a stored turn, as its caller received it."""
    cost = facts["cost_usd"]
    return ConsensusResult(
        content=content,
        next=facts["next"],
        continuation_id=continuation_id,
        seq=seq,
        model=facts["model"],
        answers=tuple(PanelAnswer(**each) for each in facts["answers"]),
        is_complete=facts["is_complete"],
        retry_key=facts["retry_key"],
        read=tuple(facts["read"]),
        left_out=tuple(facts["left_out"]),
        notes=tuple(facts["notes"]),
        sources=tuple(WebSource(*each) for each in facts["sources"]),
        cost_usd=None if cost is None else Decimal(cost),
        usage=Usage(**facts["usage"]),
        finish_reason=facts["finish_reason"],
        duplicate=duplicate,
    )
