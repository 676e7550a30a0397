"""Convert the outcome of a turn: to its caller's result, to the stored record, and back for later readers.

Invariant: a stored turn yields the answer that its original caller received, on any daemon. A turn whose daemon is gone
is not reported as running after its lease has expired.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, Literal

from exai.conversations.requests import ChatRequest, ChatResult
from exai.conversations.turns.prompt import FINISH_REASON, REASONING, Asked
from exai.db.records import StoredReply, TurnBegun, TurnEnd
from exai.db.turns import FROM_CACHE, StoredTurn
from exai.errors import ExaiError, ShuttingDown
from exai.files.sources import ChangedFile
from exai.models import AnswerOrigin, Commit, Completion, ContinuationId, NewMessage, TurnId, WebSource
from exai.providers.base import Model

Stage = Literal["running", "answered", "failed", "cancelled", "lost"]

GUIDANCE: Final = "guidance"
"""The field of a turn's metadata with the facts of its request's guidance."""

CHANGED: Final = "changed_files"
"""The field of a turn's metadata with the files that were not the same on disk any more."""

CANCELLED: Final = {"code": "cancelled", "message": "the caller cancelled the request or went away"}
MAX_CAUSE_CHARS: Final = 1_000
ENDED: Final = {"code": "cancelled", "message": "cancelled on request"}


@dataclass(frozen=True, slots=True)
class TurnOutcome:
    """The state of a turn. `result` is set for an answered turn, `error` for a failed or cancelled one.

    A turn is lost if its lease has expired without an outcome, because the daemon that ran it is gone.
    """

    turn_id: TurnId
    tool: str
    stage: Stage
    continuation_id: ContinuationId
    started_at: datetime
    ended_at: datetime | None
    result: ChatResult | None = None
    error: Mapping[str, Any] | None = None


def outcome_of(turn: StoredTurn) -> TurnOutcome:
    """Return the outcome of a stored turn."""
    stage: Stage = "failed"
    result = None
    if turn.reply is not None:
        stage = "answered"
        seconds = (turn.finished_at - turn.started_at).total_seconds() if turn.finished_at else 0.0
        result = result_of(turn.reply, turn.continuation_id, turn.revision, duration_s=seconds, duplicate=False)
    elif turn.state == "pending":
        stage = "running" if turn.lease_left_s > 0 else "lost"
    elif turn.error is not None and turn.error.get("code") == CANCELLED["code"]:
        stage = "cancelled"
    return TurnOutcome(
        turn.turn_id,
        turn.tool,
        stage,
        turn.continuation_id,
        turn.started_at,
        turn.finished_at,
        result,
        turn.error,
    )


def result_of(
    reply: StoredReply, continuation_id: ContinuationId, revision: int, *, duration_s: float, duplicate: bool
) -> ChatResult:
    """Make the answer of a finished turn from its stored form."""
    return ChatResult(
        content=reply.content,
        continuation_id=continuation_id,
        model=reply.model or "",
        provider=reply.metadata.get("provider") or reply.provider or "",
        seq=reply.seq or 0,
        revision=revision,
        usage=reply.usage,
        finish_reason=reply.metadata.get(FINISH_REASON, "stop"),
        duration_ms=duration_s * 1000,
        duplicate=duplicate,
        prompt_tokens_left=reply.metadata.get("prompt_tokens_left"),
        left_out=reply.metadata.get("left_out", 0),
        partial=reply.metadata.get("partial", False),
        unread_events=reply.metadata.get("unread_events", 0),
        notes=tuple(reply.metadata.get("notes", ())),
        cost_usd=reply.cost_usd,
        facts=reply.metadata.get(GUIDANCE, {}),
        instead_of=reply.metadata.get("instead_of"),
        sources=tuple(WebSource(*each) for each in reply.metadata.get("sources", ())),
        origin=_origin(reply.metadata.get(FROM_CACHE)),
        changed_files=changed_of(reply.metadata),
    )


def changed_of(facts: Mapping[str, Any]) -> tuple[ChangedFile, ...]:
    """Return the files that differed from those on disk, from the facts of a turn."""
    return tuple(ChangedFile(**each) for each in facts.get(CHANGED, ()))


def fresh_result(
    completion: Completion,
    facts: Mapping[str, Any],
    finished: Commit,
    *,
    seq: int,
    model: str,
    cost_usd: Decimal | None,
    duration_s: float,
) -> ChatResult:
    """Make the answer of a turn that this process has just finished, from the answer and the facts stored with it.

    Its content is that of the stored message, without large content, as later readers receive it.
    """
    return ChatResult(
        content=finished.added[-1].content if finished.added else completion.content,
        continuation_id=finished.conversation.continuation_id,
        model=model,
        provider=completion.provider,
        seq=seq,
        revision=finished.revision,
        usage=completion.usage,
        finish_reason=completion.finish_reason,
        duration_ms=duration_s * 1000,
        duplicate=False,
        prompt_tokens_left=facts["prompt_tokens_left"],
        left_out=facts.get("left_out", 0),
        partial=completion.is_partial,
        unread_events=completion.unread_events,
        notes=tuple(facts.get("notes", ())),
        cost_usd=cost_usd,
        facts=facts.get(GUIDANCE, {}),
        instead_of=completion.instead_of,
        sources=completion.sources,
        origin=completion.origin,
        changed_files=changed_of(facts),
    )


def facts_of(completion: Completion, asked: Asked, guidance: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the metadata stored with an answer, from which a repeated request is answered."""
    facts: dict[str, Any] = {
        FINISH_REASON: completion.finish_reason,
        "request_id": completion.request_id,
        "prompt_tokens_left": max(asked.left_tokens - completion.usage.output_tokens, 0),
    }
    optional = {
        "left_out": asked.left_out,
        "partial": completion.is_partial,
        "unread_events": completion.unread_events,
        "instead_of": completion.instead_of,
        "sources": [list(each) for each in completion.sources],
        "web_search": searches_of(completion),
        FROM_CACHE: _stored_origin(completion.origin),
        # The turn's row names the provider that was asked first.
        "provider": completion.provider if completion.instead_of else None,
        "notes": [*_said_of(asked), *completion.notes, *_said_of_search(completion)],
        CHANGED: [asdict(each) for each in asked.changed],
        GUIDANCE: guidance,
    }
    return facts | {name: value for name, value in optional.items() if value}


def answer_of(completion: Completion, kind: str = "message") -> NewMessage:
    """Return the message to store for an answer, with kind `partial` if the answer may be incomplete."""
    facts: dict[str, Any] = {
        "model": completion.model,
        "provider": completion.provider,
        FINISH_REASON: completion.finish_reason,
    }
    if completion.origin is not None:
        facts[FROM_CACHE] = _stored_origin(completion.origin)
    if completion.returned_reasoning is not None:
        facts[REASONING] = {"field": completion.returned_reasoning.field, "text": completion.returned_reasoning.text}
    if not completion.is_partial:
        return NewMessage("assistant", completion.content, kind, facts)
    return NewMessage("assistant", completion.content, "partial", {**facts, "notes": list(completion.notes)})


def _stored_origin(origin: AnswerOrigin | None) -> dict[str, Any] | None:
    if origin is None:
        return None
    facts = {"answered_at": origin.answered_at.isoformat(), "model": origin.model}
    return facts if origin.question is None else {**facts, "similarity": origin.similarity, "question": origin.question}


def _origin(stored: Mapping[str, Any] | None) -> AnswerOrigin | None:
    if stored is None:
        return None
    at = datetime.fromisoformat(stored["answered_at"])
    return AnswerOrigin(at, stored["model"], stored.get("similarity"), stored.get("question"))


def searches_of(completion: Completion) -> dict[str, Any] | None:
    """Return the number and cost of the web searches of a turn."""
    if not completion.searches:
        return None
    usd = completion.search_usd
    return {"searches": completion.searches, "cost_usd": None if usd is None else float(usd)}


def _said_of_search(completion: Completion) -> Iterator[str]:
    if completion.searches:
        price = f" for about ${completion.search_usd:.3f}" if completion.search_usd is not None else ""
        yield f"the web was searched{price}; searches: {completion.searches}, sources: {len(completion.sources)}"


def _said_of(asked: Asked) -> Iterator[str]:
    if asked.left_out:
        yield f"{asked.left_out:,} older messages were not shown to the model, because its window is full"
    yield from asked.notes


def failure_of(request: ChatRequest, model: Model, begun: TurnBegun, text: str, error: BaseException) -> TurnEnd:
    """Return the record of a failed attempt: its cause, and the part of the answer that was received.

    If the conversation would consist of its first question alone, a message states why no answer follows. Neither this
    message nor the partial answer is ever sent to a model.
    """
    kept: tuple[NewMessage, ...] = ()
    if text.strip():
        kept = (NewMessage("assistant", text, kind="partial", metadata=_said_of_failure(error)),)
    elif request.continuation_id is None:
        kept = failed_rows(error)
    return TurnEnd(
        owner=request.owner,
        turn_id=begun.turn_id,
        attempt=begun.attempt,
        state="failed",
        messages=kept,
        model=model.name,
        error=cause_of(error),
    )


def failed_rows(error: BaseException) -> tuple[NewMessage, ...]:
    """Return the message that states why there is no answer; it is never sent to a model."""
    facts = _said_of_failure(error)
    return (NewMessage("assistant", f"No answer: {facts['message']}", kind="failed", metadata=facts),)


def _said_of_failure(error: BaseException) -> dict[str, Any]:
    cause = cause_of(error)
    why = str(cause.get("message", f"internal error ({cause.get('type')})"))[:MAX_CAUSE_CHARS]
    return {"error": cause["code"], "message": why}


def kept_of(text: str) -> str:
    """Return a sentence that states which messages a failed turn leaves in its conversation."""
    if not text.strip():
        return "the question is stored in this conversation; no answer follows it"
    return f"the question and the {len(text):,} characters of the answer that came are stored in this conversation"


def cause_of(error: BaseException) -> dict[str, Any]:
    """Return the stored form of the error that ended an attempt."""
    if isinstance(error, ExaiError):
        return error.report()
    if isinstance(error, asyncio.CancelledError):
        if ShuttingDown.code in error.args:
            return cause_of(ShuttingDown())
        return dict(CANCELLED)
    return {"code": "internal", "type": type(error).__name__}
