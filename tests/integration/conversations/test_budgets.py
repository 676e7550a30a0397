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
from exai.db.ledger import BudgetState, UsageQuery
from exai.errors import BudgetExceeded, InvalidArgument, NotFound, ProviderAuthFailed, ProviderBroken
from exai.models import LOCAL_OWNER, Owner
from exai.settings.load import BudgetSettings
from tests.integration.conversations.conftest import Rig, open_rig
from tests.support.provider_server import (
    break_after_first_token,
    chunk,
    event,
    failure,
    kimi_answer,
    kimi_error,
    stream,
)

ANSWER_TOKENS = 1_000
FULL = {"prompt_tokens": 20, "completion_tokens": ANSWER_TOKENS, "total_tokens": ANSWER_TOKENS + 20}
"""The usage of an answer that takes all it may: 0.01 USD and a little."""


async def with_budgets(stack: AsyncExitStack, rig: Rig, **budgets: float) -> App:
    """Another daemon over the same stores, with budgets."""
    settings = BudgetSettings.model_validate({"answer_tokens": ANSWER_TOKENS, **budgets})
    return await stack.enter_async_context(open_app(rig.app.settings.model_copy(update={"budgets": settings})))


async def spent(app: App, owner: Owner = LOCAL_OWNER) -> Decimal:
    return (await app.ledger.report(UsageQuery(owner))).total.cost_usd


async def execute(app: App, statement: str) -> None:
    connection = await connect(app.database.address, timeout_s=5)
    await connection.execute(statement)
    await connection.close()


async def day_of(app: App) -> BudgetState:
    """The state of the caller's budget of the day."""
    return next(each for each in await app.ledger.budgets(LOCAL_OWNER) if each.name == "day")


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
        await execute(rig.app, "update turns set started_at = started_at - interval '1 day'")
        rig.reset()
        await app.chat.run(ChatRequest(LOCAL_OWNER, "Two?"))
        assert rig.database.round_trips == 2


async def test_of_two_daemons_on_the_last_cent_exactly_one_passes(rig: Rig) -> None:
    """Both begin while the other's answer is not there yet."""
    for _ in range(5):
        rig.provider.script(stream("gate", chunk({"content": "yes"}, finish="stop", usage=FULL), event("[DONE]")))
    async with AsyncExitStack() as stack:
        daemons = [await with_budgets(stack, rig, owner_day_usd=0.0105) for _ in range(2)]
        calls = [asyncio.create_task(each.chat.run(ChatRequest(LOCAL_OWNER, "Mine?"))) for each in daemons]
        done, waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        assert [type(each.exception()) for each in done] == [BudgetExceeded]
        await rig.provider.arrived(1)
        rig.provider.gate.set()
        await asyncio.gather(*waiting)
        assert len(rig.provider.chats) == 1


async def test_a_purged_conversation_stays_in_what_its_owner_has_spent(rig: Rig) -> None:
    """Its cost counts in the daily budget and in reports; its texts are deleted."""
    async with AsyncExitStack() as stack:
        app = await with_budgets(stack, rig, owner_day_usd=0.015, owner_month_usd=0.015)
        rig.provider.script(kimi_answer(usage=FULL))
        first = await app.chat.run(ChatRequest(LOCAL_OWNER, "One?"))
        before = [await app.ledger.report(UsageQuery(LOCAL_OWNER, by)) for by in ("model", "tool", "day")]
        await app.conversations.delete(LOCAL_OWNER, first.continuation_id)
        await execute(app, "update conversations set deleted_at = deleted_at - interval '1 year'")
        assert await app.maintenance.prune() == 1
        assert [await app.ledger.report(UsageQuery(LOCAL_OWNER, by)) for by in ("model", "tool", "day")] == before
        by_name = (await app.ledger.report(UsageQuery(LOCAL_OWNER, "conversation"))).sums
        assert [(each.key, each.title, each.turns) for each in by_name] == [(first.continuation_id, None, 1)]
        with pytest.raises(BudgetExceeded):
            await app.chat.run(ChatRequest(LOCAL_OWNER, "Two?"))
        with pytest.raises(NotFound):
            await app.ledger.report(UsageQuery(LOCAL_OWNER, continuation_id=first.continuation_id))


async def test_a_conversation_that_another_client_deletes_stays_in_the_ledger(rig: Rig) -> None:
    """Also with a turn that has not ended, which then counts as failed."""
    rig.provider.script(kimi_answer(usage=FULL))
    await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "One?"))
    cost = await spent(rig.app)
    await execute(rig.app, "update turns set state = 'pending', finished_at = null")
    await execute(rig.app, "delete from conversations")
    total = (await rig.app.ledger.report(UsageQuery(LOCAL_OWNER))).total
    assert (total.cost_usd, total.turns, total.failed, total.pending) == (cost, 1, 1, 0)


async def test_the_reservation_of_a_lost_daemon_ends_with_its_lease(rig: Rig) -> None:
    """Then the turn has cost its prompt, by estimate; what another attempt costs comes on top."""
    rig.provider.script(stream("gate", chunk({"content": "late"}, finish="stop", usage=FULL), event("[DONE]")))
    async with AsyncExitStack() as stack:
        app = await with_budgets(stack, rig, owner_day_usd=0.015)
        prompt = ChatRequest(LOCAL_OWNER, "word " * 500, idempotency_key="key")
        lost = asyncio.create_task(app.chat.run(prompt))
        await rig.provider.arrived(1)
        state = await day_of(app)
        assert state.spent_usd == 0
        assert 0.01 < (state.reserved_usd or 0) < 0.013
        with pytest.raises(BudgetExceeded, match="wait until the running calls have ended"):
            await app.chat.run(ChatRequest(LOCAL_OWNER, "Two?"))
        await execute(app, "update turns set lease_until = now() - interval '1 second'")
        state = await day_of(app)
        assert 0.0005 < (state.spent_usd or 0) < 0.003
        assert state.reserved_usd == 0
        total = (await app.ledger.report(UsageQuery(LOCAL_OWNER))).total
        assert (total.failed, total.pending, total.estimated, total.cost_usd) == (1, 0, 1, state.spent_usd)
        other = await with_budgets(stack, rig, owner_day_usd=0.015)
        rig.provider.script(kimi_answer())
        await other.chat.run(ChatRequest(LOCAL_OWNER, "Two?"))
        rig.provider.script(kimi_answer())
        await other.chat.run(prompt)
        both = (await app.ledger.report(UsageQuery(LOCAL_OWNER))).total
        assert (both.turns, both.failed, both.estimated) == (2, 0, 1)
        assert both.cost_usd > (state.spent_usd or 0)
        rig.provider.gate.set()
        await asyncio.gather(lost, return_exceptions=True)


async def test_a_model_without_a_price_is_refused_while_a_budget_is_set(rig: Rig) -> None:
    """Before anything is stored; without a budget it is asked."""
    name = "kimi-k2.7-code-highspeed"
    rig.provider.script(kimi_answer())
    await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "One?", model=name))
    async with AsyncExitStack() as stack:
        app = await with_budgets(stack, rig, owner_day_usd=1.0)
        with pytest.raises(InvalidArgument, match="has no known price") as caught:
            await app.chat.run(ChatRequest(LOCAL_OWNER, "One?", model=name))
        assert "EXAI_PROVIDERS__MODELS_FILE" in str(caught.value)
        assert "EXAI_BUDGETS__UNPRICED_INPUT_USD" in str(caught.value)
    assert len((await rig.app.conversations.list(LOCAL_OWNER)).conversations) == 1


async def test_an_assumed_price_covers_models_without_one(rig: Rig) -> None:
    """It is reserved and spent as any other price, and marked as an estimate."""
    async with AsyncExitStack() as stack:
        app = await with_budgets(stack, rig, owner_day_usd=0.015, unpriced_input_usd=1.0, unpriced_output_usd=10.0)
        rig.provider.script(kimi_answer(usage=FULL))
        asked = ChatRequest(LOCAL_OWNER, "One?", model="kimi-k2.7-code-highspeed")
        result = await app.chat.run(asked)
        assert result.cost_usd == Decimal("0.01002")
        total = (await app.ledger.report(UsageQuery(LOCAL_OWNER))).total
        assert (total.cost_usd, total.estimated, total.unpriced) == (result.cost_usd, 1, 0)
        with pytest.raises(BudgetExceeded):
            await app.chat.run(asked)
        free = await with_budgets(stack, rig, owner_day_usd=0.000001, unpriced_output_usd=0.0)
        await free.chat.run(ChatRequest(Owner("other"), "One?", model="kimi-k2.7-code-highspeed"))


async def test_an_error_names_what_is_spent_and_each_cure(rig: Rig) -> None:
    """Waiting is no cure for a question that costs more than the whole budget."""
    async with AsyncExitStack() as stack:
        app = await with_budgets(stack, rig, owner_month_usd=0.015)
        rig.provider.script(kimi_answer(usage=FULL))
        await app.chat.run(ChatRequest(LOCAL_OWNER, "One?"))
        with pytest.raises(BudgetExceeded, match=r"or raise EXAI_BUDGETS__OWNER_MONTH_USD") as caught:
            await app.chat.run(ChatRequest(LOCAL_OWNER, "Two?"))
        resets_at = caught.value.resets_at
        assert resets_at is not None
        assert (resets_at.day, resets_at.hour) == (1, 0)
        assert f"wait until {resets_at:%Y-%m}-01 00:00 UTC" in str(caught.value)
        with pytest.raises(BudgetExceeded) as caught:
            await app.chat.run(ChatRequest(LOCAL_OWNER, "Two?", max_output_tokens=10_000))
        assert "wait" not in str(caught.value)


async def test_budgets_are_reported_in_the_statement_of_the_usage(rig: Rig) -> None:
    """With a conversation its budget, too; an owner sees no other owner's."""
    async with AsyncExitStack() as stack:
        app = await with_budgets(stack, rig, owner_day_usd=1.0, conversation_usd=0.5)
        rig.provider.script(kimi_answer(usage=FULL))
        first = await app.chat.run(ChatRequest(LOCAL_OWNER, "One?"))
        rig.reset()
        report = await app.ledger.report(UsageQuery(LOCAL_OWNER, continuation_id=first.continuation_id))
        assert rig.cost() == (1, 0)
        assert [(each.name, each.limit_usd, each.spent_usd) for each in report.budgets] == [
            ("conversation", Decimal("0.5"), first.cost_usd),
            ("day", Decimal(1), first.cost_usd),
        ]
        rig.reset()
        states = await app.ledger.budgets(LOCAL_OWNER)
        assert rig.cost() == (1, 0)
        assert [(each.name, each.spent_usd) for each in states] == [("conversation", None), ("day", first.cost_usd)]
        assert [each.spent_usd for each in await app.ledger.budgets(Owner("other"))] == [None, 0]
        rig.reset()
        assert await rig.app.ledger.budgets(LOCAL_OWNER) == ()
        assert rig.cost() == (0, 0)


async def test_a_turn_reserves_for_the_dearest_model_that_may_answer(
    postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    """The chain may lead to a dearer model, but to none without a price."""
    chain = ["kimi-k2.7-code-highspeed", "kimi-k3"]
    async with AsyncExitStack() as stack:
        rig = await stack.enter_async_context(open_rig(postgres_url, redis_url, tmp_path, fallback=chain))
        app = await with_budgets(stack, rig, owner_day_usd=0.02)
        unserved = [kimi_error(404, "resource_not_found_error")]
        gated = stream("gate", chunk({"content": "yes"}, finish="stop", usage=FULL), event("[DONE]"))
        rig.provider.script(*unserved, gated)
        running = asyncio.create_task(app.chat.run(ChatRequest(LOCAL_OWNER, "One?", model="kimi-k2.6")))
        await rig.provider.arrived(2)
        assert 0.015 < ((await day_of(app)).reserved_usd or 0) < 0.016
        rig.provider.gate.set()
        result = await running
        assert result.model == "kimi-k3"
        assert any("kimi-k2.7-code-highspeed was not asked, because a budget is set" in note for note in result.notes)
        assert (await day_of(app)).spent_usd == result.cost_usd


async def test_a_broken_stream_costs_what_it_took_by_estimate(rig: Rig) -> None:
    """The provider bills it and reports nothing."""
    async with AsyncExitStack() as stack:
        app = await with_budgets(stack, rig, owner_day_usd=0.05)
        rig.provider.script(break_after_first_token(token="word " * 400))
        with pytest.raises(ProviderBroken):
            await app.chat.run(ChatRequest(LOCAL_OWNER, "word " * 1_000))
        total = (await app.ledger.report(UsageQuery(LOCAL_OWNER))).total
        assert (total.failed, total.estimated) == (1, 1)
        assert 500 < total.input_tokens < 3_000
        assert 200 < total.output_tokens < 800
        state = await day_of(app)
        assert (state.spent_usd, state.reserved_usd) == (total.cost_usd, 0)


async def test_an_answer_without_a_report_of_its_tokens_is_estimated(rig: Rig) -> None:
    """It is not free, neither for the caller nor for the budget."""
    rig.provider.script(kimi_answer("word " * 400, usage_in="none"))
    result = await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "word " * 1_000))
    total = (await rig.app.ledger.report(UsageQuery(LOCAL_OWNER))).total
    assert (total.failed, total.estimated, total.cost_usd) == (0, 1, result.cost_usd)
    assert 500 < result.usage.input_tokens < 3_000
    assert 200 < result.usage.output_tokens < 800


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": 10**30, "completion_tokens": 10**30},
        {"prompt_tokens": "1e300", "completion_tokens": 12},
        {"prompt_tokens": -5, "completion_tokens": -7},
        {"prompt_tokens": float("nan"), "completion_tokens": float("inf")},
        {"prompt_tokens": 0, "completion_tokens": 12},
        {"prompt_tokens": 1_000, "completion_tokens": 0},
        {"cost": 0},
        {"cost": 0.0, "prompt_tokens": 0, "completion_tokens": 0},
    ],
)
async def test_a_report_that_cannot_be_is_estimated_and_blocks_no_budget(rig: Rig, usage: dict[str, object]) -> None:
    """One wrong number would else use up the month, and a missing one would be free."""
    async with AsyncExitStack() as stack:
        app = await with_budgets(stack, rig, owner_month_usd=0.05)
        rig.provider.script(kimi_answer("word " * 400, usage=usage), kimi_answer())
        await app.chat.run(ChatRequest(LOCAL_OWNER, "word " * 1_000))
        total = (await app.ledger.report(UsageQuery(LOCAL_OWNER))).total
        assert total.estimated == 1
        assert 500 < total.input_tokens < 3_000
        assert 0 < total.output_tokens < 800
        await app.chat.run(ChatRequest(LOCAL_OWNER, "Next?"))


async def test_parts_of_tokens_are_never_more_than_the_whole(rig: Rig) -> None:
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 10**9},
        "completion_tokens_details": {"reasoning_tokens": 10**18},
    }
    rig.provider.script(kimi_answer(usage=usage))
    await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "One?"))
    total = (await rig.app.ledger.report(UsageQuery(LOCAL_OWNER))).total
    assert (total.cached_tokens, total.reasoning_tokens, total.estimated) == (10, 5, 0)
