"""Pages for callers, made of what the cache and the database return."""

from __future__ import annotations

from dataclasses import replace

from exai.cache.records import Hit, Loaded
from exai.db.conversations import ConversationRepository
from exai.errors import DatabaseError
from exai.models import Conversation, Message, Page, Source


def newest_of(found: Hit | Loaded, limit: int, source: Source, *, stale_s: float | None = None) -> Page:
    """Cut the newest `limit` messages out of the newest page."""
    has_older = not found.complete or len(found.messages) > limit
    return page_of(found.conversation, found.messages[-limit:], source, has_older=has_older, stale_s=stale_s)


def page_of(
    conversation: Conversation,
    messages: tuple[Message, ...],
    source: Source,
    *,
    has_older: bool,
    stale_s: float | None = None,
) -> Page:
    """Make a page of consecutive messages, with the cursor of the next older one."""
    next_before_seq = messages[0].seq if messages and has_older else None
    return Page(conversation, messages, next_before_seq, source, stale_s)


async def with_pending(repository: ConversationRepository, page: Page) -> Page | None:
    """Return a cached page with the turns that are running now; without the database, as it was cached.

    None means that one of its turns has ended: the page may lack the answer.
    """
    known = page.conversation.pending
    try:
        pending = await repository.pending(page.conversation.id)
    except DatabaseError:
        return page
    running = {(turn.tool, turn.since) for turn in pending}
    if any((turn.tool, turn.since) not in running for turn in known):
        return None
    return replace(page, conversation=replace(page.conversation, pending=pending))
