"""Budgets of money hold for calls that begin at once on several daemons."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from decimal import Decimal
from pathlib import Path

import pytest

from exai.app import App, open_app
from exai.conversations import ChatRequest
from exai.db.driver.pool import connect
from exai.db.ledger import UsageQuery
from exai.errors import BudgetExceeded, ProviderAuthFailed
from exai.models import LOCAL_OWNER, Owner
from exai.settings.load import BudgetSettings
from tests.integration.conversations.conftest import Rig, open_rig
from tests.support.provider_server import chunk, event, failure, kimi_answer, stream

ANSWER_TOKENS = 1_000
FULL = {"prompt_tokens": 20, "completion_tokens": ANSWER_TOKENS, "total_tokens": ANSWER_TOKENS + 20}
"""The usage of an answer that takes all it may: 0.01 USD and a little."""


async def with_budgets(stack: AsyncExitStack, rig: Rig, **budgets: float) -> App:
    """Another daemon over the same stores, with budgets."""
    settings = BudgetSettings.model_validate({"answer_tokens": ANSWER_TOKENS, **budgets})
    return await stack.enter_async_context(open_app(rig.app.settings.model_copy(update={"budgets": settings})))


async def spent(app: App, owner: Owner = LOCAL_OWNER) -> Decimal:
    return (await app.ledger.report(UsageQuery(owner))).total.cost_usd


@pytest.fixture
async def rig(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(postgres_url, redis_url, tmp_path) as opened:
        yield opened


async def test_twenty_calls_at_once_on_two_daemons_never_overspend(rig: Rig) -> None:
    """Each takes all that it reserved; those that the rest of the budget does not cover ask no model."""
    rig.provider.script(*[kimi_answer(usage=FULL)] * 20)
    async with AsyncExitStack() as stack:
        daemons = [await with_budgets(stack, rig, owner_day_usd=0.055) for _ in range(2)]
        calls = [daemons[n % 2].chat.run(ChatRequest(LOCAL_OWNER, f"Question {n}")) for n in range(20)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        refused = [each for each in outcomes if isinstance(each, BudgetExceeded)]
        assert [each for each in outcomes if isinstance(each, BaseException) and each not in refused] == []
        assert len(rig.provider.chats) == 20 - len(refused) == 5
        assert Decimal("0.05") < await spent(daemons[0]) < Decimal("0.055")
        stored = await daemons[0].conversations.list(LOCAL_OWNER)
        assert len(stored.conversations) == 5
        # Owners do not share a budget.
        await daemons[0].chat.run(ChatRequest(Owner("other"), "And I?"))


async def test_a_running_call_reserves_and_a_finished_one_settles(rig: Rig) -> None:
    """The reservation is replaced by the cost, so a short answer leaves room for the next."""
    async with AsyncExitStack() as stack:
        app = await with_budgets(stack, rig, owner_day_usd=0.012)
        rig.provider.script(stream("gate", chunk({"content": "short"}, finish="stop"), event("[DONE]")), kimi_answer())
        first = asyncio.create_task(app.chat.run(ChatRequest(LOCAL_OWNER, "One?")))
        await rig.provider.arrived(1)
        assert rig.provider.chats[0].body["max_completion_tokens"] == ANSWER_TOKENS
        with pytest.raises(BudgetExceeded) as caught:
            await app.chat.run(ChatRequest(LOCAL_OWNER, "Two?"))
        error = caught.value
        assert (error.budget, error.limit_usd, error.spent_usd) == ("day", 0.012, 0)
        assert 0.01 < error.reserved_usd < 0.011
        assert 0.01 < error.needed_usd < 0.011
        assert "EXAI_BUDGETS__OWNER_DAY_USD" in str(error)
        rig.provider.gate.set()
        await first
        await app.chat.run(ChatRequest(LOCAL_OWNER, "Two?"))


async def test_a_refused_or_cancelled_call_gives_its_reservation_back(rig: Rig) -> None:
    """A provider bills nothing for a request that it refuses."""
    async with AsyncExitStack() as stack:
        app = await with_budgets(stack, rig, owner_month_usd=0.012)
        for _ in range(3):
            rig.provider.script(failure(401))
            with pytest.raises(ProviderAuthFailed):
                await app.chat.run(ChatRequest(LOCAL_OWNER, "One?"))
        assert await spent(app) == 0


async def test_a_conversation_has_a_budget_of_its_own(rig: Rig) -> None:
    """History counts: the longer the conversation, the more a question costs."""
    async with AsyncExitStack() as stack:
        app = await with_budgets(stack, rig, conversation_usd=0.015)
        rig.provider.script(kimi_answer(usage=FULL), kimi_answer())
        first = await app.chat.run(ChatRequest(LOCAL_OWNER, "One?"))
        again = ChatRequest(LOCAL_OWNER, "Two?", continuation_id=first.continuation_id)
        with pytest.raises(BudgetExceeded, match=r"of this conversation is 0\.015 USD") as caught:
            await app.chat.run(again)
        assert caught.value.budget == "conversation"
        page = await app.conversations.read(LOCAL_OWNER, first.continuation_id)
        assert [each.content for each in page.messages] == ["One?", "Hello there"]
        await app.chat.run(ChatRequest(LOCAL_OWNER, "Two?"))
        cheaper = ChatRequest(LOCAL_OWNER, "Two?", continuation_id=first.continuation_id, max_output_tokens=100)
        await app.chat.run(cheaper)
        large = ChatRequest(LOCAL_OWNER, "word " * 2_000, max_output_tokens=100)
        grown = await app.chat.run(large)
        with pytest.raises(BudgetExceeded):
            await app.chat.run(
                ChatRequest(LOCAL_OWNER, "Go on", continuation_id=grown.continuation_id, max_output_tokens=700)
            )


async def test_budgets_cost_no_round_trip_and_days_end(rig: Rig, postgres_url: str) -> None:
    """The check is part of the statement that begins the turn."""
    async with AsyncExitStack() as stack:
        app = await with_budgets(stack, rig, owner_day_usd=0.015, owner_month_usd=1.0, conversation_usd=1.0)
        rig.provider.script(kimi_answer(usage=FULL), kimi_answer())
        await app.chat.run(ChatRequest(LOCAL_OWNER, "One?"))
        with pytest.raises(BudgetExceeded):
            await app.chat.run(ChatRequest(LOCAL_OWNER, "Two?"))
        connection = await connect(rig.app.database.address, timeout_s=5)
        await connection.execute("update turns set started_at = started_at - interval '1 day'")
        await connection.close()
        rig.reset()
        await app.chat.run(ChatRequest(LOCAL_OWNER, "Two?"))
        assert rig.database.round_trips == 2
