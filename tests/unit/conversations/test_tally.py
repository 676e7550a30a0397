"""The tokens of a turn where the provider does not report them, or not credibly."""

from __future__ import annotations

from decimal import Decimal

import pytest

from exai.conversations.turns.tally import TurnTally
from exai.models import Completion, Usage


def counted(provider: str, usage: Usage) -> tuple[Usage, bool]:
    tally = TurnTally(None)
    tally.sent(100)
    answer = Completion(
        content="word " * 100,
        reasoning="",
        finish_reason="stop",
        usage=usage,
        provider=provider,
        model="m",
        request_id=None,
        duration_ms=1.0,
    )
    return tally.counted(answer).usage, tally.is_estimated


@pytest.mark.parametrize("cost_usd", [None, Decimal(0), Decimal("0.1")])
def test_an_answer_without_tokens_is_charged_by_estimate(cost_usd: Decimal | None) -> None:
    """Also if the endpoint reports an amount; 0 tokens for 0 dollars would pass every budget."""
    usage, is_estimated = counted("local", Usage(cost_usd=cost_usd))
    assert (usage.input_tokens, usage.cost_usd, is_estimated) == (100, None, True)
    assert usage.output_tokens > 50


def test_the_bill_of_openrouter_holds_without_tokens() -> None:
    usage = Usage(cost_usd=Decimal("0.1"))
    assert counted("openrouter", usage) == (usage, False)
