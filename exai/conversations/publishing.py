"""Publish a committed change: to the cache first, then to the listeners in this process.

Invariant: a change is acknowledged only after `publish` has returned. Redis then holds no older entry, or, if it could
not be updated, this process accepts none for one staleness bound. A listener that reads at once receives the change.
"""

from __future__ import annotations

from exai.cache.conversations import ConversationCache
from exai.cache.records import PreloadedPage
from exai.conversations.changes import Notices
from exai.models import Commit


class Publisher:
    """The step after every commit, for services of any kind. Never raises, except for cancellation."""

    def __init__(self, cache: ConversationCache, notices: Notices) -> None:
        self._cache, self._notices = cache, notices

    async def publish(self, commit: Commit, *, preloaded: PreloadedPage | None = None) -> bool:
        """Apply a commit to the cache, then notify the listeners: 1 Redis round trip.

        `preloaded` is the newest page, read by the statement that committed the change. Returns whether Redis was
        updated. Cancelling is safe for the cache; listeners are then notified by the next poll for changes.
        """
        is_applied = await self._cache.apply(commit, preloaded=preloaded)
        self._notices.announce(commit)
        return is_applied

    def announce(self, commit: Commit) -> None:
        """Notify the listeners of a new conversation under a generated name, of which no entry can exist."""
        self._notices.announce(commit)
