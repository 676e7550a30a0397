"""The tool `usage`: tokens and cost of the caller's turns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated

from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from exai.conversations.ledger import Ledger
from exai.db.ledger import UTC_ZONE, BudgetState, UsageKey, UsageQuery, UsageSum
from exai.errors import BUDGETS, InvalidArgument
from exai.mcp.features.results import ToolOutput
from exai.mcp.features.texts import items
from exai.mcp.features.tools import Arguments, CallContext, ToolSpec
from exai.models import ContinuationId
from exai.tools.limits import answer_limit, take_rows

ROW = (
    "key",
    "title",
    "continuation_id",
    "cost_usd",
    "turns",
    "failed",
    "pending",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "reasoning_tokens",
    "estimated",
    "unpriced",
    "from_cache",
)
"""Fields of a sum in the text."""

BUDGET = ("budget", "limit_usd", "spent_usd", "reserved_usd", "resets_at", "setting")
"""Fields of a budget in the text."""


class UsageArguments(Arguments):
    """Arguments of `usage`."""

    by: UsageKey = "model"
    since: str | None = Field(None, description="ISO date or time, UTC unless it has an offset.")
    until: str | None = Field(None, description="As since; a date includes its day.")
    continuation_id: ContinuationId | None = Field(None, description="Only this conversation.")
    time_zone: SkipJsonSchema[str] = UTC_ZONE


@dataclass
class UsageRowOutput:
    """The sum of some turns."""

    key: Annotated[str | None, Field(description="Model, tool, day, continuation_id or turn_id; null for the total.")]
    title: str | None
    turns: int
    failed: int
    pending: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cost_usd: float
    estimated: int
    unpriced: int
    from_cache: int
    continuation_id: Annotated[str | None, Field(description="The conversation of a turn; else null.")]


@dataclass
class BudgetOutput:
    """A budget; running calls have reserved `reserved_usd`. Spent and reserved are null without a conversation."""

    budget: str
    limit_usd: float
    spent_usd: float | None
    reserved_usd: float | None
    resets_at: str | None
    setting: str


@dataclass
class UsageReportOutput(ToolOutput):
    """Answer of `usage`. The total covers all turns, listed or not."""

    by: UsageKey
    total: UsageRowOutput
    rows: list[UsageRowOutput]
    budgets: list[BudgetOutput]
    notes: list[str]

    def as_text(self) -> str:
        """Return the total, and one line for each sum."""
        total = items([{**vars(self.total), "key": f"total by {self.by}", "cost_usd": _usd(self.total)}], ROW)
        rows = items(({**vars(row), "cost_usd": _usd(row)} for row in self.rows), ROW)
        return "\n".join(filter(None, [total, rows or "No model was asked.", budget_lines(self.budgets)]))


def usage_tool(ledger: Ledger) -> ToolSpec:
    """Make the tool."""

    async def handle(arguments: UsageArguments, context: CallContext) -> UsageReportOutput:
        query = UsageQuery(
            owner=context.owner,
            by=arguments.by,
            since=_moment("since", arguments.since),
            until=_moment("until", arguments.until, ends_day=True),
            continuation_id=arguments.continuation_id,
            zone=arguments.time_zone,
        )
        report = await ledger.report(query)
        rows = take_rows(report.sums, _row, answer_limit(context.client))
        return UsageReportOutput(
            by=arguments.by,
            total=_row(report.total),
            rows=rows,
            budgets=[budget_output(each) for each in report.budgets],
            notes=_notes(report.total, report.groups - len(rows)),
        )

    return ToolSpec(
        name="usage",
        title="Usage and cost",
        description="Show what models cost: tokens and US dollars by model, tool, day, conversation or turn; budgets.",
        arguments=UsageArguments,
        output=UsageReportOutput,
        handler=handle,
        read_only=True,
    )


def budget_output(state: BudgetState) -> BudgetOutput:
    """Return the state of a budget as tools show it."""
    return BudgetOutput(
        budget=state.name,
        limit_usd=float(state.limit_usd),
        spent_usd=None if state.spent_usd is None else round(float(state.spent_usd), 6),
        reserved_usd=None if state.reserved_usd is None else round(float(state.reserved_usd), 6),
        resets_at=None if state.resets_at is None else f"{state.resets_at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}",
        setting=BUDGETS[state.name][1],
    )


def budget_lines(budgets: Iterable[BudgetOutput]) -> str:
    """Return one line for each budget."""
    amounts = ("limit_usd", "spent_usd", "reserved_usd")
    return items(
        ({**vars(each), **{name: _decimals(vars(each)[name]) for name in amounts}} for each in budgets), BUDGET
    )


def _moment(field: str, given: str | None, *, ends_day: bool = False) -> datetime | None:
    """Return the time that an argument denotes; a date is its midnight, or the next one if the day is included."""
    if given is None:
        return None
    try:
        day = date.fromisoformat(given.strip())
    except ValueError:
        pass
    else:
        midnight = datetime.combine(day, time(tzinfo=UTC))
        return midnight + timedelta(days=1) if ends_day and day < date.max else midnight
    try:
        at = datetime.fromisoformat(given.strip())
    except ValueError:
        cure = "Write a date or a time, such as 2026-01-31 or 2026-01-31T12:00:00Z"
        raise InvalidArgument(field, "is not a date or time of ISO 8601", cure) from None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def _row(total: UsageSum) -> UsageRowOutput:
    return UsageRowOutput(
        key=total.key,
        title=total.title,
        turns=total.turns,
        failed=total.failed,
        pending=total.pending,
        input_tokens=total.input_tokens,
        cached_tokens=total.cached_tokens,
        output_tokens=total.output_tokens,
        reasoning_tokens=total.reasoning_tokens,
        cost_usd=round(float(total.cost_usd), 6),
        estimated=total.estimated,
        unpriced=total.unpriced,
        from_cache=total.from_cache,
        continuation_id=total.continuation_id,
    )


def _usd(row: UsageRowOutput) -> str:
    """Return an amount in decimal notation, without an exponent."""
    return _decimals(row.cost_usd) or "0"


def _decimals(amount: float | None) -> str | None:
    return None if amount is None else f"{amount:.6f}".rstrip("0").rstrip(".")


def _notes(total: UsageSum, unlisted: int) -> list[str]:
    notes = []
    if unlisted:
        notes.append(f"{unlisted:,} more are in the total only; narrow the report with since, until or continuation_id")
    if total.unpriced:
        notes.append(f"turns of models without a known price, which cost_usd lacks: {total.unpriced:,}")
    if total.estimated:
        notes.append(
            f"turns without a report of their tokens or a known price, whose numbers are estimates: {total.estimated:,}"
        )
    if total.pending:
        notes.append(f"turns that have not ended yet and are not in the sums: {total.pending:,}")
    return notes
