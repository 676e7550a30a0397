"""Compare a sample of cache hits with the database, in the background.

Invariant: a hit counts as stale only if the entry still differs from the database after more than one staleness bound.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Final, TypeAlias

import structlog

from exai.cache.entry import Shown, same_page
from exai.cache.records import CacheLookup, Hit, Load, Loaded, Miss
from exai.errors import ExaiError, NotFound
from exai.models import ConversationKey, Recorder
from exai.resilience import Random
from exai.settings.load import CacheSettings

CHECK_MARGIN: Final = 1.5
"""Time between the two comparisons, in staleness bounds."""

Read: TypeAlias = Callable[[ConversationKey], Awaitable[CacheLookup]]
Same: TypeAlias = Callable[[Shown, Shown], bool]
Release: TypeAlias = Callable[[ConversationKey, Miss], Awaitable[None]]

log = structlog.get_logger(__name__)


class Verifier:
    """Verifies one hit at a time. `read` and `release` are those of the cache."""

    def __init__(
        self, read: Read, release: Release, settings: CacheSettings, recorder: Recorder, *, rand: Random
    ) -> None:
        self._read, self._release = read, release
        self._settings, self._recorder, self._rand = settings, recorder, rand
        self._checking: asyncio.Task[None] | None = None

    def sample(self, key: ConversationKey, hit: Hit, load: Load, is_same: Same = same_page) -> None:
        """Compare one in `verify_one_in` hits with the database by `is_same`, in a background task, one at a time."""
        one_in = self._settings.verify_one_in
        idle = self._checking is None or self._checking.done()
        if one_in and idle and self._rand() * one_in < 1:
            self._checking = asyncio.create_task(
                self._compare(key, hit, load, is_same), name="cache-check", context=Context()
            )

    async def _compare(self, key: ConversationKey, hit: Hit, load: Load, is_same: Same) -> None:
        """Count the check, and count and log the hit if it was stale."""
        try:
            reason = await self._stale_reason(key, hit, load, is_same)
        except ExaiError:
            # The database is unavailable, which its own metrics report.
            return
        self._recorder.count("cache_checks_total")
        if reason is not None:
            self._recorder.count("cache_stale_total", reason=reason)
            log.error("cache_stale", owner=key[0], continuation_id=key[1], reason=reason)

    async def _stale_reason(self, key: ConversationKey, hit: Hit, load: Load, is_same: Same) -> str | None:
        """Return how a hit differs from the database, None if it agrees.

        A difference counts only if it persists for more than one bound, since staleness within the bound is allowed.
        """
        then = await _load(load)
        if _difference(hit, then, is_same) is None:
            return None
        await asyncio.sleep(self._settings.max_staleness_s * CHECK_MARGIN)
        again = await self._read(key)
        if isinstance(again, Miss):
            await self._release(key, again)
        if not isinstance(again, Hit):
            return None
        # The entry must contain by now what it lacked a bound ago. If the conversation was missing in the database, it
        # may since have been restored, at a later revision, or created anew with another id.
        is_there = then is not None and then.conversation.id == hit.conversation.id
        least = then.conversation.revision if then is not None and is_there else hit.revision + 1
        if again.conversation.id == hit.conversation.id and again.revision < least:
            return "old"
        reason = _difference(again, await _load(load), is_same)
        return None if reason == "old" else reason

    async def close(self) -> None:
        """Cancel the comparison that runs."""
        if self._checking is not None:
            self._checking.cancel()
            await asyncio.wait({self._checking})


async def _load(load: Load) -> Loaded | None:
    """Return the page from the database, None for a missing conversation."""
    try:
        return await load()
    except NotFound:
        return None


def _difference(hit: Hit, loaded: Loaded | None, is_same: Same) -> str | None:
    """Return how a hit differs from the database: "old", "ahead", or "differs" at the same revision; None if equal."""
    if loaded is None or loaded.conversation.id != hit.conversation.id:
        return "old"
    if loaded.conversation.revision != hit.revision:
        return "ahead" if loaded.conversation.revision < hit.revision else "old"
    shown = (hit.conversation, hit.messages), (loaded.conversation, loaded.messages)
    return None if is_same(*shown) else "differs"
