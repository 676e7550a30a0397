"""The ledger as a service: what models have cost an owner."""

from __future__ import annotations

from exai.db.ledger import LedgerRepository, UsageQuery, UsageReport
from exai.errors import NotFound


class Ledger:
    """Reports tokens and money. Safe for any number of tasks of one event loop."""

    def __init__(self, repository: LedgerRepository) -> None:
        self._repository = repository

    async def report(self, query: UsageQuery) -> UsageReport:
        """Return the sums of an owner's turns: 1 database round trip.

        Raises `InvalidArgument`, `NotFound` for a conversation that does not exist, or a `DatabaseError`.
        """
        query.validate()
        report = await self._repository.report(query)
        if not report.named:
            raise NotFound("conversation", query.continuation_id or "", "conversation_list lists them")
        return report
