"""The ledger: tokens and money of an owner's turns, which the rows of the turns hold.

Invariant: a report is one statement, and its total covers every turn that the query selects, listed or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final, Literal, get_args

import asyncpg

from exai.db.driver.pool import Database
from exai.db.records import BudgetLimits
from exai.models import ContinuationId, Owner
from exai.validation import (
    MAX_CONTINUATION_CHARS,
    check_choice,
    check_optional_name,
    check_owner,
    check_time,
    check_zone,
)

UsageKey = Literal["model", "tool", "day", "conversation", "turn"]

UTC_ZONE: Final = "UTC"
MAX_GROUPS: Final = 200
"""Maximum number of groups in a report; its total also covers the others."""


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """A report by `by`, of the turns started from `since` (inclusive) to `until` (exclusive).

    `zone` is the time zone whose days are meant, by its name in the IANA database.
    """

    owner: Owner
    by: UsageKey = "model"
    since: datetime | None = None
    until: datetime | None = None
    continuation_id: ContinuationId | None = None
    zone: str = UTC_ZONE

    def validate(self) -> None:
        """Raise `InvalidArgument` for a value that no report can have."""
        check_zone("time_zone", self.zone)
        check_owner(self.owner)
        check_choice("by", self.by, get_args(UsageKey))
        check_time("since", self.since)
        check_time("until", self.until)
        check_optional_name("continuation_id", self.continuation_id, MAX_CONTINUATION_CHARS)


@dataclass(frozen=True, slots=True)
class UsageSum:
    """The sum of some turns. `key` is what they have in common, None for all; `title` that of its conversation.

    `failed` and `pending` count turns without an answer. `estimated` counts turns whose tokens the provider did not
    report, `unpriced` those of models without a known price, which the cost lacks. `from_cache` counts answers of the
    answer cache, which have cost nothing. `continuation_id` is the conversation of a single turn.
    """

    key: str | None
    title: str | None
    turns: int
    failed: int
    pending: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cost_usd: Decimal
    estimated: int
    unpriced: int
    from_cache: int
    continuation_id: ContinuationId | None = None


@dataclass(frozen=True, slots=True)
class BudgetState:
    """A budget: 'conversation', 'day' or 'month'. `spent_usd` and `reserved_usd` are None without a conversation.

    Running turns have reserved `reserved_usd`. The period ends, and the next begins with nothing spent, at `resets_at`.
    """

    name: str
    limit_usd: Decimal
    spent_usd: Decimal | None = None
    reserved_usd: Decimal | None = None
    resets_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class UsageReport:
    """Sums by group, the latest day or turn or the highest cost first, and the sum of all.

    `groups` counts also unlisted ones. `named` is false if the owner has no conversation of the query's name. `budgets`
    are those that are set.
    """

    sums: tuple[UsageSum, ...]
    total: UsageSum
    groups: int
    named: bool
    budgets: tuple[BudgetState, ...]


class LedgerRepository:
    """Reads the ledger, in Postgres; each method accesses only the given owner's rows."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def report(self, query: UsageQuery, limits: BudgetLimits) -> UsageReport:
        """Return the sums of the query and the state of the budgets: 1 round trip. Raises `DatabaseError`."""
        rows = await self._database.fetch(
            "usage",
            query.owner,
            query.by,
            query.since,
            query.until,
            query.continuation_id,
            MAX_GROUPS,
            limits.as_json() if limits.are_set else None,
            query.zone,
        )
        *groups, total = [row for row in rows if row["part"] != "budget"]
        states = _states([row for row in rows if row["part"] == "budget"], limits)
        return UsageReport(tuple(map(_sum, groups)), _sum(total), total["groups"], total["named"], states)

    async def budgets(self, owner: Owner, limits: BudgetLimits) -> tuple[BudgetState, ...]:
        """Return the state of an owner's budgets: 1 round trip, none if no budget is set. Raises `DatabaseError`."""
        if not limits.are_set:
            return ()
        return _states(await self._database.fetch("budgets", owner, limits.as_json()), limits)


def _states(rows: Sequence[asyncpg.Record], limits: BudgetLimits) -> tuple[BudgetState, ...]:
    found = tuple(
        BudgetState(row["key"], Decimal(row["cost"]), Decimal(row["spent"]), Decimal(row["reserved"]), row["resets_at"])
        for row in rows
    )
    if limits.conversation_usd is None or any(each.name == "conversation" for each in found):
        return found
    return (BudgetState("conversation", Decimal(str(limits.conversation_usd))), *found)


def _sum(row: asyncpg.Record) -> UsageSum:
    return UsageSum(
        key=row["key"],
        title=row["title"],
        turns=row["turns"],
        failed=row["failed"],
        pending=row["pending"],
        input_tokens=row["input_tokens"],
        cached_tokens=row["cached_tokens"],
        output_tokens=row["output_tokens"],
        reasoning_tokens=row["reasoning_tokens"],
        cost_usd=Decimal(row["cost"]),
        estimated=row["estimated"],
        unpriced=row["unpriced"],
        from_cache=row["from_cache"],
        continuation_id=row["continuation_id"],
    )
