"""Minimal Redis commands for the same bytes: the lower bound of cached reads in `exai bench`.

Invariant: it is the obvious implementation: `redis.asyncio` with its own pool, one GET, one `orjson.loads`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final

import orjson
from redis.asyncio import Redis

from exai.cache.entry import cache_keys
from exai.models import ContinuationId, ConversationKey, Message, Owner
from exai.pages import encode_page

EXPIRY_S: Final = 3_600
"""Keys of a killed run expire."""


class CacheFloor:
    """Bare commands. Made by `open_cache_floor`."""

    def __init__(self, client: Redis) -> None:
        self._client = client

    async def put(self, name: str, messages: Iterable[Message]) -> None:
        """Store the bytes that the cache holds of this page."""
        await self._client.set(_key(name), b"[%b]" % encode_page(messages), ex=EXPIRY_S)

    async def get(self, name: str) -> int:
        """Read and decode a page, and return how many messages it has."""
        found: Any = await self._client.get(_key(name))
        return len(orjson.loads(found))

    async def round_trip(self) -> None:
        """Make one round trip without work."""
        await self._client.ping()

    async def forget(self, owner: Owner, continuation_ids: Iterable[ContinuationId]) -> None:
        """Delete the cache entries of these conversations, so that the next reads are misses."""
        keys = [cache_keys(ConversationKey(owner, each), groups=1) for each in continuation_ids]
        await self._client.delete(*(key for each in keys for key in (each.entry, each.lease)))

    async def remove(self, names: Iterable[str]) -> None:
        """Remove the pages put here."""
        await self._client.delete(*(_key(name) for name in names))


def _key(name: str) -> str:
    return f"exai:bench:{name}"


@asynccontextmanager
async def open_cache_floor(url: str) -> AsyncIterator[CacheFloor]:
    """Open a client with its own default pool."""
    async with Redis.from_url(url) as client:
        yield CacheFloor(client)
