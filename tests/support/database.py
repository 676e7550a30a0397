"""Pools and requests as the database tests need them."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from exai.db.conversations import ConversationRepository
from exai.db.driver.pool import Database, open_pool
from exai.db.lifecycle import IdempotencyKey
from exai.db.records import AppendStart, TurnEnd, TurnStart
from exai.models import (
    LOCAL_OWNER,
    ContinuationId,
    Conversation,
    ConversationId,
    ConversationKey,
    Message,
    NewMessage,
    TurnId,
)
from exai.resilience import Clock
from exai.settings.load import DatabaseSettings
from tests.support.counters import Counters

POOL_SIZE = 4
PLENTY_BYTES = 1_000_000


@asynccontextmanager
async def opened(
    url: str, *, recorder: Counters | None = None, clock: Clock = time.monotonic, **settings: float
) -> AsyncIterator[Database]:
    """A pool on `url`."""
    chosen = DatabaseSettings.model_validate({"url": url, "pool_size": POOL_SIZE, **settings})
    async with open_pool(chosen, recorder=recorder or Counters(), clock=clock) as database:
        yield database


def new_id() -> str:
    return str(uuid.uuid4())


def once(key: str | None = None, digest: str = "hash") -> IdempotencyKey:
    """One attempt of a change, with a key of its own or a given one."""
    return IdempotencyKey(key or new_id(), digest, "test", TurnId(new_id()))


def appending(continuation_id: str | None, *contents: str, key: str | None = None, **other: Any) -> AppendStart:
    """An append of user messages with a key of its own."""
    return AppendStart(
        **{
            "owner": LOCAL_OWNER,
            "continuation_id": None if continuation_id is None else ContinuationId(continuation_id),
            "new_conversation_id": ConversationId(new_id()),
            "turn_id": TurnId(new_id()),
            "request_key": key or new_id(),
            "request_hash": "hash",
            "tool": "append",
            "messages": [NewMessage("user", content) for content in contents],
            **other,
        }
    )


def beginning(continuation_id: str | None, *contents: str, key: str | None = None, **other: Any) -> TurnStart:
    """A turn that asks a model, with a key of its own."""
    return TurnStart(
        **{
            "owner": LOCAL_OWNER,
            "continuation_id": None if continuation_id is None else ContinuationId(continuation_id),
            "new_conversation_id": ConversationId(new_id()),
            "turn_id": TurnId(new_id()),
            "request_key": key or new_id(),
            "request_hash": "hash",
            "tool": "chat",
            "provider": "kimi",
            "model": "model",
            "messages": [NewMessage("user", content) for content in contents],
            "lease_s": 60.0,
            "budget_bytes": PLENTY_BYTES,
            **other,
        }
    )


def ending(turn_id: str, *contents: str, attempt: int = 1, **other: Any) -> TurnEnd:
    """The outcome of an attempt: finished, with the contents as the assistant's messages."""
    return TurnEnd(
        **{
            "owner": LOCAL_OWNER,
            "turn_id": TurnId(turn_id),
            "attempt": attempt,
            "state": "finished",
            "messages": [NewMessage("assistant", content) for content in contents],
            "model": "model",
            **other,
        }
    )


async def conversation_of(repository: ConversationRepository, *contents: str) -> Conversation:
    """A new conversation that holds these user messages."""
    result = await repository.append(appending(None, *contents))
    assert result.commit is not None
    return result.commit.conversation


async def contents_of(repository: ConversationRepository, continuation_id: str, limit: int = 500) -> list[str]:
    page = await repository.read_page(ConversationKey(LOCAL_OWNER, ContinuationId(continuation_id)), limit=limit)
    assert_consecutive(page.messages)
    return [message.content for message in page.messages]


def assert_consecutive(messages: tuple[Message, ...]) -> None:
    """No hole, no repeat, no reordering."""
    if messages:
        first = messages[0].seq
        assert [message.seq for message in messages] == list(range(first, first + len(messages)))
