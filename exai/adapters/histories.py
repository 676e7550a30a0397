"""Reading whole histories, and writes that a cancelled caller does not interrupt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from exai.db.filters import ListFilter
from exai.errors import NotFound
from exai.items import readable
from exai.models import MAX_PAGE_MESSAGES, ContinuationId, Conversation, Message, NewMessage, Owner
from exai.store import Conversations
from exai.validation import MAX_LIST, MAX_NUMBER

R = TypeVar("R")

MAX_RESTARTS: Final = 3
"""How often a history is read again from its end because it changed while it was read."""

MAX_TEXT_CHARS: Final = 100_000
"""Of the readable text of an item; the item itself is stored whole."""

BLOCK_MESSAGES: Final = 500
BLOCK_CHARS: Final = 2_000_000


@dataclass(frozen=True, slots=True)
class History:
    """A conversation with its newest messages, oldest first and whole, as of one revision."""

    conversation: Conversation
    messages: tuple[Message, ...]


async def read_history(
    conversations: Conversations, owner: Owner, name: ContinuationId, count: int | None = None
) -> History | None:
    """Read the newest `count` messages, all for None; None if there is no such conversation.

    Costs one call for `MAX_PAGE_MESSAGES` messages. A conversation that changes between two calls is read again.
    """
    for attempt in range(MAX_RESTARTS + 1):
        try:
            history, is_same = await _read(conversations, owner, name, count)
        except NotFound:
            return None
        if is_same or attempt == MAX_RESTARTS:
            return history
    raise AssertionError("the last attempt returns")


async def _read(
    conversations: Conversations, owner: Owner, name: ContinuationId, count: int | None
) -> tuple[History, bool]:
    """Return what is read, and whether all of it is of one revision."""
    pages: list[tuple[Message, ...]] = []
    wanted, before, is_same = (MAX_NUMBER if count is None else count), None, True
    conversation: Conversation | None = None
    while True:
        page = await conversations.read(
            owner, name, limit=max(1, min(wanted, MAX_PAGE_MESSAGES)), before_seq=before, whole=True
        )
        conversation = conversation or page.conversation
        is_same = is_same and page.conversation.revision == conversation.revision
        pages.append(page.messages if wanted else ())
        wanted -= len(page.messages)
        before = page.next_before_seq
        if wanted <= 0 or before is None:
            messages = tuple(message for each in reversed(pages) for message in each)
            return History(conversation, messages), is_same


async def read_header(conversations: Conversations, owner: Owner, name: ContinuationId) -> Conversation | None:
    """Return a conversation without its messages, None if there is none."""
    try:
        return (await conversations.read(owner, name, limit=1)).conversation
    except NotFound:
        return None


def blocks_of(messages: Iterable[NewMessage]) -> Iterator[Sequence[NewMessage]]:
    """Return messages in blocks that one append takes; nearly always it is one."""
    block: list[NewMessage] = []
    chars = 0
    for message in messages:
        size = len(message.content) + len(message.item or "")
        if block and (len(block) == BLOCK_MESSAGES or chars + size > BLOCK_CHARS):
            yield block
            block, chars = [], 0
        block.append(message)
        chars += size
    if block:
        yield block


def shown(text: str) -> str:
    """Return a text as the content of a message: storable, and of limited length."""
    return readable(text[:MAX_TEXT_CHARS])


async def completed(work: Coroutine[Any, Any, R]) -> R:
    """Return the result of a write, which a cancellation of the caller does not interrupt.

    The caller is cancelled once the write has ended.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = cancelled or error
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # Otherwise asyncio reports that it was never retrieved.
        raise cancelled
    return task.result()


async def list_all(conversations: Conversations, owner: Owner, prefix: str) -> AsyncIterator[Conversation]:
    """Yield the conversations whose names begin so, the oldest first, a page at a time."""
    cursor: str | None = None
    while True:
        # By creation: a conversation that changes meanwhile keeps its place.
        page = await conversations.list(
            owner, limit=MAX_LIST, cursor=cursor, only=ListFilter(prefix=prefix), order="created", ascending=True
        )
        for conversation in page.conversations:
            yield conversation
        cursor = page.next_cursor
        if cursor is None:
            return


def moment_of(timestamp: object) -> datetime | None:
    """Return the time that a number of seconds since 1970 or a text in ISO 8601 names, None if it names none."""
    try:
        if isinstance(timestamp, str):
            moment = datetime.fromisoformat(timestamp)
        elif isinstance(timestamp, int | float):
            moment = datetime.fromtimestamp(timestamp, UTC)
        else:
            return None
        return moment.astimezone(UTC) if moment.tzinfo else None
    except (ValueError, OverflowError, OSError):
        return None
