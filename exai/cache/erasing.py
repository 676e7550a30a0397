"""Removes what Redis holds of conversations that are gone, and the answers of an owner.

Invariant: after `erase` no page that was read from the database earlier can be stored, because its lease is gone too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from exai.cache.answers import answer_keys
from exai.cache.entry import cache_keys
from exai.cache.redis.client import RedisClient
from exai.models import ConversationKey, Owner

ERASE_BATCH: Final = 500


class CacheErasure:
    """Removes keys; without a client there are none, and `is_on` is false."""

    def __init__(self, client: RedisClient | None) -> None:
        self._client = client

    @property
    def is_on(self) -> bool:
        """Return whether there is a Redis to ask; it may be unreachable."""
        return self._client is not None

    async def erase(self, owner: Owner, conversations: Sequence[ConversationKey]) -> None:
        """Remove the entries of these conversations, and all answers of an owner. Raises `CacheError`."""
        if self._client is None:
            return
        group, answers = answer_keys(owner, self._client.groups)
        by_group: dict[int, list[str]] = {group: list(answers)}
        for key in conversations:
            where = cache_keys(key, self._client.groups)
            by_group.setdefault(where.group, []).extend((where.entry, where.lease))
        for group, names in by_group.items():
            for start in range(0, len(names), ERASE_BATCH):
                await self._client.call(group, "DEL", *names[start : start + ERASE_BATCH])
