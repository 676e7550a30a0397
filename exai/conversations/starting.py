"""What the store is told when a turn begins, and what the model may be told of what was there before.

Nothing here does I/O.
"""

from __future__ import annotations

import uuid

from exai.cache.records import Hit, Miss
from exai.conversations.prompt import BYTES_PER_TOKEN
from exai.conversations.requests import ChatRequest, chat_messages, content_hash, request_key
from exai.db.conversations import CachedRange, TurnBegun, TurnStart
from exai.models import ConversationId, Message, TurnId
from exai.providers.base import Model

LEASE_S = 60.0
"""A turn whose daemon is gone can be taken over with its idempotency key after this time."""


def turn_start(request: ChatRequest, model: Model, room_tokens: int, cached: Hit | Miss | None) -> TurnStart:
    """Return the claim of a turn: a new key where the caller gave none, and what the cache has spared."""
    return TurnStart(
        owner=request.owner,
        continuation_id=request.continuation_id,
        new_conversation_id=ConversationId(str(uuid.uuid4())),
        turn_id=TurnId(str(uuid.uuid4())),
        request_key=request_key(request.idempotency_key),
        request_hash=content_hash(
            request.tool,
            request.continuation_id,
            request.prompt,
            request.system,
            request.model,
            request.max_output_tokens,
            request.thinking,
            request.files,
        ),
        tool=request.tool,
        provider=model.provider,
        model=model.name,
        messages=chat_messages(request),
        lease_s=LEASE_S,
        budget_bytes=room_tokens * BYTES_PER_TOKEN,
        title=request.title_or_opening,
        file_ids=request.files,
        expected_revision=request.expected_revision,
        known=_known(cached),
    )


def _known(cached: Hit | Miss | None) -> CachedRange | None:
    if not isinstance(cached, Hit) or not cached.messages:
        return None
    size_bytes = sum(len(message.content.encode()) for message in cached.messages)
    return CachedRange(cached.revision, cached.messages[0].seq, cached.messages[-1].seq, size_bytes)


def history_of(begun: TurnBegun, cached: Hit | Miss | None) -> tuple[Message, ...]:
    """All that the model may be told: what was cached, unless it is of no use, and what the statement brought."""
    known = cached.messages if isinstance(cached, Hit) and not begun.full else ()
    return (*known, *begun.history, *begun.stored)
