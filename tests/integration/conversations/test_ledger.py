"""What models have cost, as the rows of the turns hold it and reports sum it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from exai.conversations import AppendRequest, ChatRequest
from exai.conversations.turns.result import ENDED
from exai.db.ledger import UsageKey, UsageQuery, UsageReport
from exai.db.turns import TurnRepository
from exai.errors import Conflict, InvalidArgument, NotFound, ProviderAuthFailed, ProviderBroken
from exai.models import LOCAL_OWNER, ContinuationId, NewMessage, Owner
from tests.integration.conversations.conftest import Rig, open_rig
from tests.support.provider_server import KIMI_USAGE, chunk, event, failure, hang_after_first_token, kimi_answer, stream

ONE_USD = Decimal(11 - 4) * 2 / 1_000_000 + Decimal(4) * Decimal("0.2") / 1_000_000 + Decimal(7) * 10 / 1_000_000
"""The price of an answer with `KIMI_USAGE` from the default model."""


@pytest.fixture
async def rig(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(postgres_url, redis_url, tmp_path) as opened:
        yield opened


async def report(rig: Rig, by: UsageKey, owner: Owner = LOCAL_OWNER, **other: Any) -> UsageReport:
    return await rig.app.ledger.report(UsageQuery(owner, by, **other))


async def test_costs_are_summed_by_model_tool_day_conversation_and_turn_in_one_statement(rig: Rig) -> None:
    """An append asks no model, so it is no turn of the ledger."""
    rig.provider.script(*[kimi_answer()] * 2)
    first = await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "One?", title="First"))
    await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Two?", continuation_id=first.continuation_id))
    rig.provider.script(kimi_answer(usage={**KIMI_USAGE, "prompt_tokens": 1_000_011}))
    await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Three?", model="kimi-k3", tool="debug", title="Second"))
    await rig.app.conversations.append(AppendRequest(LOCAL_OWNER, [NewMessage("user", "only stored")]))
    await rig.app.chat.run(ChatRequest(Owner("other"), "Not mine"))
    rig.reset()
    by_model = await report(rig, "model")
    assert rig.cost() == (1, 0)
    assert [(each.key, each.turns) for each in by_model.sums] == [("kimi-k3", 1), ("kimi-k3.1-pro", 2)]
    assert by_model.sums[1].cost_usd == 2 * ONE_USD
    total = by_model.total
    assert (total.key, total.turns) == (None, 3)
    assert (total.failed, total.pending, total.estimated, total.unpriced) == (0, 0, 0, 0)
    assert (total.input_tokens, total.cached_tokens, total.output_tokens) == (1_000_033, 12, 21)
    assert total.cost_usd == sum(each.cost_usd for each in by_model.sums) > 3
    assert {each.key: each.turns for each in (await report(rig, "tool")).sums} == {"chat": 2, "debug": 1}
    assert [each.key for each in (await report(rig, "day")).sums] == [f"{datetime.now(UTC):%Y-%m-%d}"]
    by_name = await report(rig, "conversation")
    assert [each.title for each in by_name.sums] == ["Second", "First"]
    assert by_name.sums[1].key == first.continuation_id
    by_turn = await report(rig, "turn", continuation_id=first.continuation_id)
    pages = await rig.app.conversations.read(LOCAL_OWNER, first.continuation_id)
    assert [each.key for each in by_turn.sums] == [pages.messages[seq].turn_id for seq in (3, 1)]
    assert {(each.title, each.turns, each.cost_usd) for each in by_turn.sums} == {("First", 1, ONE_USD)}
    assert {by_name.total, total} == {total}


async def test_days_are_those_of_the_time_zone_that_is_asked_for(rig: Rig) -> None:
    """Of two zones a whole day apart each has another date; other products sum the day of UTC."""
    rig.provider.script(kimi_answer())
    await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "When?"))
    now = datetime.now(UTC)
    for zone, hours in (("Pacific/Tongatapu", 13), ("Pacific/Pago_Pago", -11), ("UTC", 0)):
        (day,) = (await report(rig, "day", zone=zone)).sums
        assert day.key in {f"{now + timedelta(hours=hours, seconds=late):%Y-%m-%d}" for late in (0, 10)}, zone
    for name in ("Nowhere/Land", "../etc/passwd", "", "utc; --"):
        with pytest.raises(InvalidArgument, match="time_zone"):
            await report(rig, "day", zone=name)


async def test_a_report_is_bounded_by_time_and_conversation(rig: Rig) -> None:
    """`since` is inclusive, `until` is not; a conversation that does not exist is an error, not a zero."""
    rig.provider.script(*[kimi_answer()] * 2)
    first = await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "One?"))
    await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Two?"))
    now = datetime.now(UTC) + timedelta(seconds=60)
    assert (await report(rig, "model", until=now)).total.turns == 2
    for bounds in ({"since": now}, {"until": now - timedelta(days=1)}):
        empty = await report(rig, "model", **bounds)
        assert (empty.sums, empty.total.turns, empty.total.cost_usd) == ((), 0, 0)
    only = await report(rig, "day", continuation_id=first.continuation_id)
    assert (only.total.turns, only.total.cost_usd) == (1, ONE_USD)
    with pytest.raises(NotFound):
        await report(rig, "day", continuation_id=ContinuationId("nowhere"))
    with pytest.raises(NotFound):
        await report(rig, "day", owner=Owner("other"), continuation_id=first.continuation_id)
    weather: Any = "weather"
    with pytest.raises(InvalidArgument, match="by"):
        await report(rig, weather)


async def test_a_cancelled_turn_costs_what_it_took_by_estimate(rig: Rig) -> None:
    """The provider bills the tokens until then and reports none."""
    rig.provider.script(hang_after_first_token("Half of the answer"))
    heard = asyncio.Event()

    async def on_delta(_: object) -> None:
        heard.set()

    task = asyncio.create_task(rig.app.chat.run(ChatRequest(LOCAL_OWNER, "word " * 1_000), on_delta))
    await heard.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    total = (await report(rig, "model")).total
    assert (total.turns, total.failed, total.estimated) == (1, 1, 1)
    assert 500 < total.input_tokens < 3_000
    assert 0 < total.output_tokens < 40
    assert total.cost_usd > Decimal("0.001")


async def test_a_turn_that_another_client_cancels_keeps_its_cost(rig: Rig) -> None:
    """Its daemon knows the tokens only afterwards, and the outcome is no longer its own to write."""
    rig.provider.script(stream("gate", chunk({"content": "late"}, finish="stop", usage=KIMI_USAGE), event("[DONE]")))
    ids: list[str] = []
    request = ChatRequest(LOCAL_OWNER, "One?")
    task = asyncio.create_task(rig.app.chat.run(request, on_begun=lambda turn: ids.append(turn.turn_id)))
    await rig.provider.arrived(1)
    assert await TurnRepository(rig.app.database).cancel(LOCAL_OWNER, ids[0], ENDED)
    rig.provider.gate.set()
    with pytest.raises(Conflict):
        await task
    total = (await report(rig, "model")).total
    assert (total.failed, total.input_tokens, total.output_tokens) == (1, 11, 7)
    assert total.cost_usd > 0


async def test_a_turn_that_is_cancelled_in_its_own_process_costs_its_prompt_by_estimate(rig: Rig) -> None:
    """The provider has processed it, and will report nothing."""
    rig.provider.script(stream("gate", chunk({"content": "late"}, finish="stop", usage=KIMI_USAGE), event("[DONE]")))
    ids: list[str] = []
    request = ChatRequest(LOCAL_OWNER, "One?")
    task = asyncio.create_task(rig.app.chat.run(request, on_begun=lambda turn: ids.append(turn.turn_id)))
    await rig.provider.arrived(1)
    assert await rig.app.chat.cancel(LOCAL_OWNER, ids[0])
    with pytest.raises(Conflict):
        await task
    total = (await report(rig, "model")).total
    assert (total.failed, total.estimated) == (1, 1)
    assert total.input_tokens > 0
    assert total.cost_usd > 0


async def test_a_turn_without_an_answer_costs_what_was_reported(rig: Rig) -> None:
    """Also an attempt before the one that succeeded."""
    rig.provider.script(kimi_answer(content=()), kimi_answer())
    request = ChatRequest(LOCAL_OWNER, "One?", idempotency_key="key")
    with pytest.raises(ProviderBroken):
        await rig.app.chat.run(request)
    failed = (await report(rig, "model")).total
    assert (failed.failed, failed.estimated, failed.input_tokens, failed.cost_usd) == (1, 0, 11, ONE_USD)
    await rig.app.chat.run(request)
    both = (await report(rig, "model")).total
    assert (both.turns, both.failed, both.cost_usd) == (1, 0, 2 * ONE_USD)


async def test_a_refused_turn_counts_as_failed_and_costs_nothing(rig: Rig) -> None:
    """A provider bills nothing for a request that it refuses."""
    rig.provider.script(failure(401))
    with pytest.raises(ProviderAuthFailed):
        await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "One?"))
    total = (await report(rig, "model")).total
    assert (total.turns, total.failed, total.input_tokens, total.cost_usd) == (1, 1, 0, 0)
