"""The arguments and the text of the tool `usage`."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from exai.errors import InvalidArgument
from exai.tools.usage import BudgetOutput, UsageReportOutput, UsageRowOutput, _moment


def test_times_are_read_as_dates_or_times_in_utc() -> None:
    """The last day of a period is part of it."""
    assert _moment("since", "2026-01-31") == datetime(2026, 1, 31, tzinfo=UTC)
    assert _moment("until", "2026-01-31", ends_day=True) == datetime(2026, 2, 1, tzinfo=UTC)
    assert _moment("until", "2026-01-31T12:00", ends_day=True) == datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert _moment("since", "2026-01-31T12:00:00+02:00") == datetime(2026, 1, 31, 10, tzinfo=UTC)
    assert _moment("since", None) is None
    with pytest.raises(InvalidArgument, match="since: is not a date"):
        _moment("since", "last week")


def test_the_text_holds_the_total_and_each_sum() -> None:
    """Small amounts are written in decimals."""
    row = UsageRowOutput("kimi-k3", None, 2, 0, 0, 22, 8, 14, 0, 0.000017, 0, 0, 0, None)
    day = BudgetOutput("day", 1.0, 0.000017, 0.0, "2026-12-02T00:00:00Z", "EXAI_BUDGETS__OWNER_DAY_USD")
    text = UsageReportOutput(by="model", total=row, rows=[row], budgets=[day], notes=[]).as_text()
    assert text.splitlines() == [
        "key: total by model | cost_usd: 0.000017 | turns: 2 | input_tokens: 22 | cached_tokens: 8 | output_tokens: 14",
        "key: kimi-k3 | cost_usd: 0.000017 | turns: 2 | input_tokens: 22 | cached_tokens: 8 | output_tokens: 14",
        "budget: day | limit_usd: 1 | spent_usd: 0.000017 | reserved_usd: 0 | resets_at: 2026-12-02T00:00:00Z"
        " | setting: EXAI_BUDGETS__OWNER_DAY_USD",
    ]
