"""Retention and the word index, for the commands of an operator: all owners at once."""

from __future__ import annotations

from exai.conversations.indexing import Indexing
from exai.db.answers import AnswerRepository
from exai.db.lifecycle import BATCH, DAY_S, CurationRepository
from exai.settings.load import AnswerSettings
from exai.validation import check_duration

MAX_IDLE_DAYS = 36_500


class Maintenance:
    """Purges conversations and indexes words."""

    def __init__(
        self, repository: CurationRepository, indexing: Indexing, answers: AnswerRepository, settings: AnswerSettings
    ) -> None:
        self._repository, self._indexing = repository, indexing
        self._answers, self._answers_age_s = answers, settings.ttl_hours * 3_600

    async def prune(self, *, idle_days: float | None = None) -> int:
        """Purge conversations deleted long enough ago; with `idle_days` mark idle conversations as deleted first.

        Expired answers of the answer cache are removed. Returns the number of purged conversations. Used by
        `exai prune`; every step is one bounded statement.
        Raises `InvalidArgument` for a number of days that would delete everything, or nothing ever.
        """
        if idle_days is not None:
            check_duration("idle_days", idle_days, MAX_IDLE_DAYS)
            while await self._repository.expire_idle(None, idle_s=idle_days * DAY_S) >= BATCH:
                pass
        removed = 0
        while (batch := await self._repository.purge()) > 0:
            removed += batch
        await self._repository.prune_removed()
        await self._answers.prune(age_s=self._answers_age_s)
        return removed

    async def index_words(self) -> None:
        """Index all queued messages now instead of in the background, so that searches are fast afterwards.

        Raises `DatabaseError`.
        """
        await self._indexing.finish()
