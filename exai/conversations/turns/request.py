"""Build the statement that begins a turn, and the history that its model receives. No I/O."""

from __future__ import annotations

import uuid
from dataclasses import replace

from exai.cache.records import Hit, Miss
from exai.conversations.deduplication import content_hash, request_key
from exai.conversations.requests import ChatRequest, chat_messages
from exai.conversations.turns.prompt import MAX_BYTES_PER_TOKEN, estimate_tokens
from exai.db.records import BudgetClaim, CachedRange, TurnBegun, TurnStart
from exai.models import CompletionRequest, ConversationId, Message, Prompt, Thinking, TurnId
from exai.providers.base import Model

LEASE_S = 60.0
"""Duration of a turn lease, after which a request with the same idempotency key can resume a dead daemon's turn."""


def reserving_start(request: ChatRequest) -> TurnStart:
    """Return the claim of a turn whose question is not known yet, with a generated key if the caller gave none."""
    return TurnStart(
        owner=request.owner,
        continuation_id=request.continuation_id,
        new_conversation_id=ConversationId(str(uuid.uuid4())),
        turn_id=TurnId(str(uuid.uuid4())),
        request_key=request_key(request.idempotency_key),
        request_hash=_request_hash(request),
        tool=request.tool,
        provider=None,
        model=None,
        messages=(),
        lease_s=LEASE_S,
        budget_bytes=0,
        title=request.title_or_opening,
        expected_revision=request.expected_revision,
        counts_steps=request.guidance is not None,
    )


def turn_start(
    request: ChatRequest,
    model: Model,
    room_tokens: int,
    cached: Hit | Miss | None,
    claim: BudgetClaim | None = None,
    *,
    reserved: TurnStart | None = None,
) -> TurnStart:
    """Return the claim of a turn with its question and the messages that the cache has.

    It has the ids of the one that is `reserved`, or could be, for the request.
    """
    return replace(
        reserved or reserving_start(request),
        provider=model.provider,
        model=model.name,
        messages=chat_messages(request),
        budget_bytes=room_tokens * MAX_BYTES_PER_TOKEN,
        file_ids=request.linked_files,
        sources=request.sources,
        known=_known(cached),
        claim=claim,
    )


def whole_prompt_tokens(request: ChatRequest) -> int | None:
    """Return the size of all that the model will receive; None if it depends on more than question and system."""
    depends = request.continuation_id is not None or request.linked_files or request.guidance is not None
    if depends or request.max_output_tokens is not None:
        return None
    return estimate_tokens(request.prompt) + (estimate_tokens(request.system) if request.system else 0)


def _request_hash(request: ChatRequest) -> str:
    if request.guidance is not None:
        return content_hash(request.tool, request.continuation_id, *request.guidance.identity)
    # Left out of the digest unless asked for, so that a request without it keeps its digest.
    searches = ("web_search",) if request.web_search else ()
    return content_hash(
        request.tool,
        request.continuation_id,
        request.prompt,
        request.system,
        request.model,
        request.max_output_tokens,
        request.thinking,
        request.named or request.files,
        *searches,
    )


def _known(cached: Hit | Miss | None) -> CachedRange | None:
    if not isinstance(cached, Hit) or not cached.messages:
        return None
    size_bytes = sum(len(message.content.encode()) for message in cached.messages)
    return CachedRange(cached.revision, cached.messages[0].seq, cached.messages[-1].seq, size_bytes)


def history_of(begun: TurnBegun, cached: Hit | Miss | None) -> tuple[Message, ...]:
    """Return the history before the question: the cached messages, unless superseded, and those of the statement."""
    known = cached.messages if isinstance(cached, Hit) and not begun.full else ()
    question = begun.commit.added or () if begun.commit is not None else ()
    return (*known, *begun.history, *question)


def completion_request(request: ChatRequest, model: Model, messages: list[Prompt]) -> CompletionRequest:
    """Return the request to `model` with these messages."""
    return CompletionRequest(
        model=model.name,
        messages=messages,
        max_output_tokens=request.max_output_tokens,
        thinking=thinking_of(request, model),
        web_search=request.web_search,
    )


def thinking_of(request: ChatRequest, model: Model) -> Thinking | None:
    """Return the level of reasoning to ask for: the one named, else the preferred one if the model supports it."""
    preferred = request.guidance.effort if request.guidance else None
    return request.thinking or (preferred if preferred in model.thinking else None)
