"""The ledger as a service: what models have cost an owner."""

from __future__ import annotations

from exai.db.ledger import BudgetState, LedgerRepository, UsageQuery, UsageReport
from exai.db.records import BudgetLimits
from exai.errors import NotFound
from exai.models import Owner


class Ledger:
    """Reports tokens and money. Safe for any number of tasks of one event loop."""

    def __init__(self, repository: LedgerRepository, limits: BudgetLimits) -> None:
        self._repository, self._limits = repository, limits

    async def report(self, query: UsageQuery) -> UsageReport:
        """Return the sums of an owner's turns: 1 database round trip.

        Raises `InvalidArgument`, `NotFound` for a conversation that does not exist, or a `DatabaseError`.
        """
        query.validate()
        report = await self._repository.report(query, self._limits)
        if not report.named:
            raise NotFound("conversation", query.continuation_id or "", "conversation_list lists them")
        return report

    async def budgets(self, owner: Owner) -> tuple[BudgetState, ...]:
        """Return the state of an owner's budgets: 1 database round trip if one is set. Raises a `DatabaseError`."""
        return await self._repository.budgets(owner, self._limits)
