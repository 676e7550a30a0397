"""Retention and the word index, for the commands of an operator: all owners at once."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable

from exai.conversations.indexing import Indexing
from exai.db.answers import AnswerRepository
from exai.db.checkpoints.repository import CheckpointRepository
from exai.db.lifecycle import BATCH, DAY_S, CurationRepository
from exai.models import Owner
from exai.settings.load import AnswerSettings, RetentionSettings
from exai.validation import check_duration

MAX_IDLE_DAYS = 36_500


class Maintenance:
    """Purges conversations and indexes words."""

    def __init__(
        self,
        repository: CurationRepository,
        indexing: Indexing,
        answers: AnswerRepository,
        settings: AnswerSettings,
        retention: RetentionSettings,
        *,
        checkpoints: CheckpointRepository,
    ) -> None:
        self._repository, self._indexing, self._retention = repository, indexing, retention
        self._checkpoints = checkpoints
        self._answers, self._answers_age_s = answers, settings.ttl_hours * 3_600

    async def prune(self, *, idle_days: float | None = None) -> int:
        """Purge conversations deleted long enough ago; with `idle_days` mark idle conversations as deleted first.

        Threads of checkpoints that are idle, or whose time has come, are removed at once. Expired answers of the answer
        cache are removed. Returns the number of purged conversations. Used by
        `exai prune`; every step is one bounded statement.
        Raises `InvalidArgument` for a number of days that would delete everything, or nothing ever.
        """
        if idle_days is not None:
            check_duration("idle_days", idle_days, MAX_IDLE_DAYS)
        await self.expire()
        if idle_days is not None:
            while await self._repository.expire_idle(None, idle_s=idle_days * DAY_S) >= BATCH:
                pass
            await _all(functools.partial(self._checkpoints.expire, idle_s=idle_days * DAY_S))
        removed = 0
        while (batch := await self._repository.purge()) > 0:
            removed += batch
        await self._repository.prune_removed()
        await self._answers.prune(age_s=self._answers_age_s)
        return removed

    async def rehearse(self, *, idle_days: float | None = None) -> tuple[int, int]:
        """Return how many conversations `prune` would remove, and how many it would mark as deleted; changes nothing.

        One statement for each, and for each owner with a time of its own. Raises as `prune`.
        """
        if idle_days is not None:
            check_duration("idle_days", idle_days, MAX_IDLE_DAYS)
        marked = await self._repository.count_due()
        for owner, days in self._retention.owners.items():
            if (shortest := _shortest(days or None, idle_days)) is not None:
                marked += await self._repository.count_idle(Owner(owner), idle_s=shortest * DAY_S)
        if (shortest := _shortest(self._retention.idle_days, idle_days)) is not None:
            but = [Owner(owner) for owner in self._retention.owners]
            marked += await self._repository.count_idle(None, idle_s=shortest * DAY_S, but=but)
        return await self._repository.count_purgeable(), marked

    async def rehearse_threads(self, *, idle_days: float | None = None) -> int:
        """Return the number of threads whose checkpoints `prune` would remove; changes nothing."""
        number = await self._checkpoints.count_expiring()
        for owner, days in self._retention.owners.items():
            if (shortest := _shortest(days or None, idle_days)) is not None:
                number += await self._checkpoints.count_expiring(Owner(owner), idle_s=shortest * DAY_S)
        if (shortest := _shortest(self._retention.idle_days, idle_days)) is not None:
            but = [Owner(owner) for owner in self._retention.owners]
            number += await self._checkpoints.count_expiring(idle_s=shortest * DAY_S, but=but)
        return number

    async def expire(self) -> int:
        """Mark conversations as deleted whose own time, or that of the settings, has come; return their number.

        Checkpoints of such threads are removed.

        Every step is one bounded statement. Raises `DatabaseError`.
        """
        marked = await _all(self._repository.expire_due)
        for owner, days in self._retention.owners.items():
            if days:
                expire = functools.partial(self._repository.expire_idle, Owner(owner), idle_s=days * DAY_S)
                marked += await _all(expire)
        if self._retention.idle_days is not None:
            but = [Owner(owner) for owner in self._retention.owners]
            idle_s = self._retention.idle_days * DAY_S
            marked += await _all(functools.partial(self._repository.expire_idle, None, idle_s=idle_s, but=but))
        await self._expire_threads()
        return marked

    async def _expire_threads(self) -> None:
        """Remove checkpoints of threads whose own time, or that of the settings, has come."""
        await _all(self._checkpoints.expire)
        for owner, days in self._retention.owners.items():
            if days:
                await _all(functools.partial(self._checkpoints.expire, Owner(owner), idle_s=days * DAY_S))
        if self._retention.idle_days is not None:
            but = [Owner(owner) for owner in self._retention.owners]
            idle_s = self._retention.idle_days * DAY_S
            await _all(functools.partial(self._checkpoints.expire, None, idle_s=idle_s, but=but))
        await _all(self._checkpoints.purge)

    async def retain(self) -> tuple[int, int]:
        """Do what daemons do about retention; return how many conversations were marked, and how many removed.

        Without settings only those are removed whose own time came a week ago; all others wait for `prune`.
        """
        marked = await self.expire()
        only_expired = self._retention == RetentionSettings()
        removed = 0
        while batch := await self._repository.purge(only_expired=only_expired):
            removed += batch
        return marked, removed

    async def index_words(self) -> None:
        """Index all queued messages now instead of in the background, so that searches are fast afterwards.

        Raises `DatabaseError`.
        """
        await self._indexing.finish()


def _shortest(*days: float | None) -> float | None:
    return min((each for each in days if each is not None), default=None)


async def _all(mark: Callable[[], Awaitable[int]]) -> int:
    """Repeat a statement until it has marked less than it may; return the sum."""
    total = 0
    while (marked := await mark()) >= BATCH:
        total += marked
    return total + marked
