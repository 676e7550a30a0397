"""The panel of a consensus: blind, parallel, and not stopped by a member that fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from exai import tracing
from exai.app import open_app
from exai.conversations import AppendRequest, ChatRequest
from exai.db.ledger import UsageQuery
from exai.errors import BudgetExceeded, Conflict, InvalidArgument, NotConfigured, ProviderUnavailable
from exai.files.loading import FileContent
from exai.mcp.core.protocol import CallContext
from exai.mcp.features.results import call_result
from exai.models import LOCAL_OWNER, NewMessage
from exai.resilience import with_deadline
from exai.settings.load import BudgetSettings
from exai.tools.consensus import ConsensusArguments
from exai.tools.registry import build_tasks, build_tools
from tests.integration.consensus.conftest import (
    GLM,
    KIMI,
    LOCAL,
    PANEL,
    SYNTHESIS,
    Stage,
    answering,
    open_stage,
    role_of,
    text_sent,
)
from tests.support.provider_server import (
    Reply,
    break_after_first_token,
    chunk,
    event,
    failure,
    glm_answer,
    glm_error,
    hang_after_first_token,
    kimi_answer,
    kimi_error,
    stream,
)

WAIT_S = 20


def gated(body: dict[str, Any]) -> Reply:
    """An answer that begins when the test opens the server's gate."""
    return stream("gate", *answering(body).steps)


async def test_all_members_are_asked_before_one_has_answered(stage: Stage) -> None:
    """One call, in parallel, with the state of each model: not a sequence of steps that the client drives."""
    for server in stage.servers:
        server.default = gated
    models = (KIMI, "kimi-k3", GLM, "local/other")
    asking = asyncio.create_task(stage.ask(models=models))
    async with asyncio.timeout(WAIT_S):
        await asyncio.gather(stage.kimi.arrived(2), stage.glm.arrived(1), stage.local.arrived(1))
    assert not any(request.ended.is_set() for request in stage.chats())
    for server in stage.servers:
        server.gate.set()
    result = await asking
    assert [(answer.model, answer.state) for answer in result.answers] == [(name, "answered") for name in models]


async def test_no_member_sees_another_answer_or_the_conversation(stage: Stage) -> None:
    """A member that sees the first answer or its stance supports it."""
    earlier = await stage.app.conversations.append(
        AppendRequest(LOCAL_OWNER, [NewMessage("user", "I favour SQLite."), NewMessage("assistant", "So do I.")])
    )
    await stage.ask(continuation_id=earlier.continuation_id, focus="durability")
    first, second = stage.chats("panel")
    assert first.body["messages"] == second.body["messages"]
    assert first.body["messages"][-1]["content"] == "Postgres or SQLite?\n\nFocus: durability"
    assert "favour" not in text_sent(first)
    assert "The answer of" not in text_sent(first)


async def test_no_member_is_sent_a_temperature(stage: Stage) -> None:
    """Models with a fixed temperature refuse the request."""
    await stage.ask(models=(KIMI, GLM, "local/other"), rank=True)
    assert all("temperature" not in request.body for request in stage.chats())


async def test_a_stance_is_given_to_two_and_labelled(stage: Stage) -> None:
    result = await stage.ask(models=(KIMI, GLM, "local/other"), stances="for_against")
    assert [answer.stance for answer in result.answers] == ["for", "against", "weigh"]
    assert {request.body["messages"][-1]["content"] for request in stage.chats("panel")} == {"Postgres or SQLite?"}
    [arbiter] = stage.chats("arbiter")
    assert "argued for the proposal on request" in text_sent(arbiter)
    assert "argued against the proposal on request" in text_sent(arbiter)


async def test_each_model_has_the_stance_that_it_was_given(stage: Stage) -> None:
    """Also two of the same; a model without one is asked to weigh only beside `for_against`."""
    result = await stage.ask(models=(KIMI, GLM, "local/other"), sides=("against", None, "against"))
    assert [answer.stance for answer in result.answers] == ["against", None, "against"]


async def test_without_stances_all_instructions_are_neutral_and_the_same(stage: Stage) -> None:
    await stage.ask()
    assert len({text_sent(request) for request in stage.chats("panel")}) == 1


async def test_the_same_model_may_be_asked_twice(stage: Stage) -> None:
    """Two samples of the best model can be worth more than one of a weaker one."""
    result = await stage.ask(models=(KIMI, KIMI))
    assert [answer.state for answer in result.answers] == ["answered", "answered"]
    assert len(stage.chats("panel")) == 2


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (glm_error(429, "1113", "no balance"), "provider_limited"),
        (glm_error(400, "1211", "unknown model"), "provider_unknown_model"),
        (glm_error(401, "1000", "key"), "provider_auth_failed"),
        (break_after_first_token(), "provider_broken"),
        (kimi_answer("", model=GLM), "provider_broken"),
        (kimi_answer("I cannot", model=GLM, finish="content_filter"), "provider_broken"),
    ],
    ids=["balance", "unknown", "key", "broken", "empty", "filtered"],
)
async def test_one_failure_stands_beside_the_answers(stage: Stage, reply: Reply, error: str) -> None:
    """An exception of one provider does not reject the call, and a reply without an answer is not one."""
    stage.glm.script(reply)
    result = await stage.ask(models=(KIMI, GLM, "local/other"))
    assert [answer.state for answer in result.answers] == ["answered", "failed", "answered"]
    assert result.answers[1].error == error
    assert result.model == LOCAL
    assert not result.is_complete
    assert result.retry_key in result.next


async def test_one_answer_is_returned_and_called_no_consensus(stage: Stage) -> None:
    stage.glm.script(glm_error(429, "1113"))
    result = await stage.ask()
    assert result.model is None
    assert result.content.startswith(f"Only {KIMI} of 2 models answered, so there is no synthesis")
    assert result.content.endswith(f"The answer of {KIMI}.")
    assert stage.chats("arbiter") == []


async def test_no_answer_at_all_is_an_error_that_names_each_cause(stage: Stage) -> None:
    stage.glm.script(glm_error(429, "1113"))
    stage.kimi.script(kimi_error(401, "invalid_authentication_error"))
    with pytest.raises(ProviderUnavailable) as caught:
        await stage.ask(idempotency_key="k")
    assert KIMI in str(caught.value)
    assert GLM in str(caught.value)
    assert "idempotency_key k" in str(caught.value)
    assert caught.value.continuation_id is not None
    assert [turn["state"] for turn in await stage.turns()] == ["failed"] * 3


async def test_a_model_that_cannot_be_asked_is_not_found_and_stops_no_other(stage: Stage) -> None:
    result = await stage.ask(models=(KIMI, "gpt-nine", GLM))
    assert [(answer.state, answer.error) for answer in result.answers][1] == ("failed", "not_found")
    assert "gpt-nine" in str(result.answers[1].problem)
    assert result.model == LOCAL


@pytest.mark.parametrize("models", [(KIMI,), (KIMI,) * 6, (KIMI, "gpt-nine")], ids=["one", "six", "one is unknown"])
async def test_fewer_than_two_or_more_than_five_are_refused_before_anything_is_spent(
    stage: Stage, models: tuple[str, ...]
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await stage.ask(models=models)
    assert caught.value.field == "models"
    assert stage.chats() == []
    assert await stage.turns() == []


async def test_the_last_straggler_is_cut_and_the_others_answers_are_used(stage: Stage) -> None:
    """The test's clock cuts it when the others have answered."""
    stage.glm.default = lambda _: hang_after_first_token("I thi")
    others = asyncio.Event()

    async def sleep(seconds: float) -> None:
        assert 0 < seconds <= 3_600 - 30
        await others.wait()
        # The others may have answered before this call has reached its provider.
        await stage.glm.arrived(1)

    stage.without_waiting(sleep)

    def both_answered() -> None:
        if len(stage.said) == 2:
            others.set()

    stage.on_report = both_answered
    with with_deadline(3_600):
        result = await stage.ask(models=(KIMI, GLM, "local/other"))
    assert [answer.state for answer in result.answers] == ["answered", "late", "answered"]
    assert result.model == LOCAL
    async with asyncio.timeout(WAIT_S):
        await stage.glm.chats[0].gone.wait()
    [late] = [turn for turn in await stage.turns() if turn["model"] == GLM]
    assert (late["state"], '"late"' in late["error"]) == ("failed", True)


async def test_cancelling_ends_all_calls_and_records_every_turn(stage: Stage) -> None:
    for server in stage.servers:
        server.default = gated
    asking = asyncio.create_task(stage.ask())
    async with asyncio.timeout(WAIT_S):
        requests = await asyncio.gather(stage.kimi.arrived(1), stage.glm.arrived(1))
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await asyncio.gather(*(request.gone.wait() for request in requests))
    turns = await stage.turns()
    assert [turn["state"] for turn in turns] == ["failed"] * 3
    assert all('"cancelled"' in turn["error"] for turn in turns)
    assert stage.chats("arbiter") == []


async def test_progress_names_who_answered_and_who_is_awaited(stage: Stage) -> None:
    stage.glm.default = gated
    said = asyncio.Event()
    stage.on_report = said.set
    asking = asyncio.create_task(stage.ask())
    async with asyncio.timeout(WAIT_S):
        await said.wait()
    assert stage.said[0].startswith(f"{KIMI} answered")
    assert stage.said[0].endswith(f"waiting for {GLM}")
    stage.glm.gate.set()
    await asking
    assert stage.said[1].startswith(f"{GLM} answered")
    assert stage.said[2].startswith(f"arbiter {LOCAL} answered")


async def test_the_arbiter_is_not_on_the_panel_and_is_shown_no_name(stage: Stage) -> None:
    stage.kimi.script(kimi_answer("As Kimi, made by Moonshot AI, I, kimi-k3.1-pro, prefer Postgres over GLM."))
    result = await stage.ask()
    [arbiter] = stage.chats("arbiter")
    shown = arbiter.body["messages"][-1]["content"]
    assert "prefer Postgres" in shown
    assert not [name for name in ("kimi", "moonshot", "glm") if name in shown.lower()]
    assert result.model == LOCAL
    assert result.content == SYNTHESIS


async def test_without_a_configured_arbiter_another_model_decides(
    postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    async with open_stage(postgres_url, redis_url, tmp_path, arbiter=None) as stage:
        result = await stage.ask()
        assert result.model is not None
        assert result.model not in PANEL


async def test_a_member_decides_only_if_there_is_no_other_and_the_result_says_so(
    postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    async with open_stage(postgres_url, redis_url, tmp_path, only_local=True, arbiter=None) as stage:
        result = await stage.ask(models=())
    assert [answer.model for answer in result.answers] == ["local/judge", "local/other"]
    assert result.model == "local/judge"
    assert any("local/judge is a member of the panel" in note for note in result.notes)


async def test_an_arbiter_that_is_not_there_is_an_error_before_anything_is_spent(
    postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    async with open_stage(postgres_url, redis_url, tmp_path, arbiter="local/absent") as stage:
        with pytest.raises(NotConfigured, match="EXAI_PROVIDERS__ARBITER"):
            await stage.ask()
        assert stage.chats() == []


async def test_the_panel_is_the_configured_one_else_the_best_of_two_providers(
    postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    async with open_stage(postgres_url, redis_url, tmp_path) as stage:
        result = await stage.ask(models=())
        assert [answer.model for answer in result.answers] == [KIMI, GLM]
    async with open_stage(postgres_url, redis_url, tmp_path, panel=("kimi-k3", "local/other", GLM)) as stage:
        result = await stage.ask(models=())
        assert [answer.model for answer in result.answers] == ["kimi-k3", "local/other", GLM]


async def test_the_disagreement_is_named_with_the_numbers_of_the_answers(stage: Stage) -> None:
    result = await stage.ask()
    seqs = {answer.label: answer.seq for answer in result.answers}
    assert f"A (seq {seqs['A']}) and B (seq {seqs['B']}) disagree on cost" in result.next
    page = await stage.app.conversations.read(LOCAL_OWNER, result.continuation_id)
    rows = {message.seq: message for message in page.messages}
    for answer in result.answers:
        assert answer.seq is not None
        assert rows[answer.seq].content == f"The answer of {answer.model}."


async def test_a_synthesis_without_dismissals_is_noted(stage: Stage) -> None:
    stage.local.script(kimi_answer("Use Postgres.", model="judge"))
    result = await stage.ask()
    assert any("no reasons" in note for note in result.notes)


async def test_a_failed_arbiter_leaves_the_answers_and_is_asked_again(stage: Stage) -> None:
    stage.local.script(kimi_error(500, "server_error"), kimi_error(500, "server_error"))
    first = await stage.ask(idempotency_key="k")
    assert (first.model, first.is_complete) == (None, False)
    assert f"The answer of {KIMI}." in first.content
    again = await stage.ask(idempotency_key="k")
    assert again.model is None
    third = await stage.ask(idempotency_key="k")
    assert (third.model, third.content) == (LOCAL, SYNTHESIS)
    assert len(stage.chats("panel")) == 2


async def test_each_member_ranks_the_others_but_not_itself(stage: Stage) -> None:
    models = (KIMI, GLM, "local/other")
    result = await stage.ask(models=models, rank=True)
    judged = stage.chats("judge")
    assert len(judged) == 3
    for request in judged:
        shown = request.body["messages"][-1]["content"]
        assert shown.count("The answer of") == 2
        assert not [name for name in ("kimi", "glm", "local") if name in shown.lower()]
    assert [answer.judges for answer in result.answers] == [2, 2, 2]
    assert sum(answer.mean_rank or 0 for answer in result.answers) == pytest.approx(4.5)
    [arbiter] = stage.chats("arbiter")
    assert "Mean ranks" in text_sent(arbiter)


async def test_a_ranking_that_cannot_be_read_is_not_invented(stage: Stage) -> None:
    def vague(body: dict[str, Any]) -> Reply:
        return kimi_answer("Both are fine.", model=body["model"]) if role_of(body) == "judge" else answering(body)

    stage.kimi.default = vague
    result = await stage.ask(models=(KIMI, GLM, "local/other"), rank=True)
    assert any("1 of 3 rankings" in note for note in result.notes)
    assert sorted(answer.judges for answer in result.answers) == [1, 1, 2]


async def test_two_answers_are_not_ranked(stage: Stage) -> None:
    result = await stage.ask(rank=True)
    assert stage.chats("judge") == []
    assert any("not ranked" in note for note in result.notes)


async def test_the_cost_and_tokens_of_every_call_are_in_the_ledger(stage: Stage) -> None:
    result = await stage.ask(models=(KIMI, GLM, "local/other"), rank=True)
    turns = await stage.turns()
    assert len(turns) == 7
    assert {turn["tool"] for turn in turns} == {"consensus"}
    assert {turn["model"] for turn in turns} == {KIMI, GLM, "local/other", LOCAL}
    assert sum(turn["input_tokens"] for turn in turns) == result.usage.input_tokens == 7 * 11
    assert sum(turn["output_tokens"] for turn in turns) == result.usage.output_tokens == 7 * 7
    assert sum(turn["cost"] or 0 for turn in turns) == result.cost_usd


async def test_a_repetition_asks_only_those_that_failed(stage: Stage) -> None:
    stage.glm.script(glm_error(429, "1113"))
    given = {"models": (KIMI, GLM, "local/other"), "idempotency_key": "k"}
    first = await stage.ask(**given)
    assert [answer.state for answer in first.answers] == ["answered", "failed", "answered"]
    second = await stage.ask(**given)
    assert [answer.state for answer in second.answers] == ["answered"] * 3
    assert second.continuation_id == first.continuation_id
    assert second.is_complete
    assert [len(server.chats) for server in (stage.kimi, stage.glm)] == [1, 2]
    third = await stage.ask(**given)
    assert third.duplicate
    assert third.content == second.content
    assert len(stage.chats()) == 1 + 2 + 1 + 2


async def test_a_whole_consensus_repeated_is_the_stored_one_on_any_daemon(stage: Stage) -> None:
    first = await stage.ask(idempotency_key="k")
    asked = len(stage.chats())
    async with open_app(stage.app.settings) as other:
        second = await Stage(other, stage.kimi, stage.glm, stage.local).ask(idempotency_key="k")
    assert second.duplicate
    assert (second.content, second.answers, second.seq) == (first.content, first.answers, first.seq)
    assert len(stage.chats()) == asked


async def test_a_repetition_after_no_answer_asks_all_again(stage: Stage) -> None:
    stage.glm.script(glm_error(429, "1113"))
    stage.kimi.script(kimi_error(401, "invalid_authentication_error"))
    with pytest.raises(ProviderUnavailable):
        await stage.ask(idempotency_key="k")
    result = await stage.ask(idempotency_key="k")
    assert [answer.state for answer in result.answers] == ["answered"] * 2


async def test_another_question_under_the_same_key_is_refused(stage: Stage) -> None:
    await stage.ask(idempotency_key="k")
    with pytest.raises(Conflict) as caught:
        await stage.ask(idempotency_key="k", prompt="Another?")
    assert caught.value.reason == "key_reused"


async def test_two_consensuses_do_not_share_members_or_questions(stage: Stage) -> None:
    """Started A, then B, then A continued: B's models or proposal must not be consulted for A."""
    a = await stage.ask(prompt="Question A?", models=(KIMI, GLM))
    await stage.ask(prompt="Question B?", models=("kimi-k3", "local/other"))
    before = len(stage.chats())
    result = await stage.ask(prompt="Question A again?", models=(KIMI, GLM), continuation_id=a.continuation_id)
    assert [answer.model for answer in result.answers] == [KIMI, GLM]
    after = stage.chats()
    assert len(after) == before + 3
    assert not any("Question B?" in text_sent(each) and "Question A again?" in text_sent(each) for each in after)


async def test_a_chat_goes_on_with_the_synthesis_and_not_with_the_members_answers(stage: Stage) -> None:
    consensus = await stage.ask()
    await stage.app.chat.run(
        ChatRequest(LOCAL_OWNER, "And the price?", model=KIMI, continuation_id=consensus.continuation_id)
    )
    sent = stage.kimi.chats[-1].body["messages"]
    assert [message["content"] for message in sent] == ["Postgres or SQLite?", SYNTHESIS, "And the price?"]


async def test_the_files_reach_every_member_and_the_arbiter(stage: Stage) -> None:
    plan = FileContent("plan.md", b"The secret word is heron.", "text/markdown")
    [stored] = await stage.app.files.put(LOCAL_OWNER, [plan])
    result = await stage.ask(files=(str(stored.id),))
    assert all("heron" in text_sent(request) for request in stage.chats())
    assert result.read


async def test_every_member_is_told_which_files_it_is_not_shown(stage: Stage) -> None:
    plan, long = FileContent("plan.md", b"The plan.", "text/markdown"), FileContent("long.md", b"word " * 500_000)
    stored = await stage.app.files.put(LOCAL_OWNER, [plan, long])
    await stage.ask(models=(KIMI, LOCAL), files=tuple(str(each.id) for each in stored))
    told = "Of the material this was left out:\n- long.md (outside the token budget)"
    assert [told in text_sent(request) for request in stage.chats()] == [True] * 3


async def test_note_of_a_members_answer_names_the_member(stage: Stage) -> None:
    """Its server lists no tool for the search, so the result says that the answer was given without one."""
    result = await stage.ask(models=(KIMI, GLM), web_search=True)
    assert next(note for note in result.notes if "the web was not searched" in note).startswith(f"{KIMI}: ")


async def test_a_member_searches_the_web_if_its_provider_can(stage: Stage) -> None:
    page = {"title": "Postgres", "link": "http://127.0.0.1/postgres"}
    answer = glm_answer("Found.", model=GLM)
    stage.glm.script(stream(event({"choices": [], "web_search": [page]}), *answer.steps))
    result = await stage.ask(models=(GLM, "local/other"), web_search=True)
    [asked] = stage.glm.chats
    assert asked.body["tools"][0]["type"] == "web_search"
    assert "tools" not in stage.local.chats[0].body
    assert [source.url for source in result.sources] == [page["link"]]
    assert any("local/other cannot search" in note for note in result.notes)
    searched = [json.loads(turn["metadata"] or "{}").get("web_search") for turn in await stage.turns()]
    assert [each["searches"] for each in searched if each] == [1]


async def test_the_result_of_a_task_is_that_of_the_call_on_any_daemon(stage: Stage) -> None:
    spec = next(each for each in build_tools(stage.app) if each.name == "consensus")
    begun: list[str] = []
    context = CallContext(LOCAL_OWNER, "1", stage.report, begun=lambda work: begun.append(work.id))
    arguments = ConsensusArguments(prompt="Postgres or SQLite?", models=[KIMI, GLM])
    direct = call_result(await spec.handler(arguments, context))
    async with open_app(stage.app.settings) as other:
        task = await build_tasks(other, build_tools(other)).get(LOCAL_OWNER, begun[0])
    assert task is not None
    assert task.result == direct
    text = direct["content"][0]["text"]
    assert text.index("continuation_id") < text.index("next: Decide yourself") < text.index("## Answer")
    assert f"= {KIMI}, seq" in text


async def test_budgets_hold_for_each_call_of_a_consensus(stage: Stage) -> None:
    """The arbiter's part is reserved with the question, so no model is asked if it is not covered."""
    budgets = BudgetSettings(owner_day_usd=0.10, answer_tokens=1_000, unpriced_output_usd=0.0)
    async with open_app(stage.app.settings.model_copy(update={"budgets": budgets})) as app:
        limited = Stage(app, stage.kimi, stage.glm, stage.local)
        result = await limited.ask()
        assert [answer.state for answer in result.answers] == ["answered"] * 2
        assert [each.body["max_completion_tokens"] for each in stage.kimi.chats] == [1_000]
        assert [each.body["max_tokens"] for each in stage.glm.chats] == [1_000]
        day = (await app.ledger.budgets(LOCAL_OWNER))[0]
        assert (day.spent_usd, day.reserved_usd) == (result.cost_usd, 0)
    asked = len(stage.chats())
    budgets = BudgetSettings(owner_day_usd=0.001, answer_tokens=1_000, unpriced_output_usd=0.0)
    async with open_app(stage.app.settings.model_copy(update={"budgets": budgets})) as app:
        with pytest.raises(BudgetExceeded):
            await Stage(app, stage.kimi, stage.glm, stage.local).ask()
    assert len(stage.chats()) == asked


async def test_a_member_without_a_price_is_not_asked_while_a_budget_is_set(stage: Stage) -> None:
    """The others are; the arbiter has to have one."""
    arbiter = stage.app.settings.providers.model_copy(update={"arbiter": GLM})
    budgets = BudgetSettings(owner_day_usd=1.0, answer_tokens=1_000)
    async with open_app(stage.app.settings.model_copy(update={"budgets": budgets, "providers": arbiter})) as app:
        result = await Stage(app, stage.kimi, stage.glm, stage.local).ask(models=(KIMI, GLM, "local/other"))
    assert [answer.state for answer in result.answers] == ["answered", "answered", "failed"]
    assert stage.local.chats == []


async def test_calls_that_fail_after_work_are_in_the_cost_and_in_the_ledger(stage: Stage) -> None:
    """The provider bills them: a member that breaks off, and the arbiter."""
    stage.kimi.script(break_after_first_token(token="word " * 400))
    broken = await stage.ask(models=(KIMI, GLM, GLM))
    total = (await stage.app.ledger.report(UsageQuery(LOCAL_OWNER))).total
    assert (total.turns, total.failed, total.estimated) == (4, 1, 1)
    assert broken.cost_usd == total.cost_usd
    assert broken.usage.output_tokens == total.output_tokens
    async with asyncio.timeout(20):
        stage.local.script(break_after_first_token(token="word " * 400))
        unjudged = await stage.ask(prompt="And SQLite?")
    after = (await stage.app.ledger.report(UsageQuery(LOCAL_OWNER))).total
    assert unjudged.model is None
    assert after.estimated == 2
    assert unjudged.usage.output_tokens == after.output_tokens - total.output_tokens > 200


async def test_an_arbiter_whose_caller_leaves_is_in_the_ledger(stage: Stage) -> None:
    stage.local.script(stream("gate", chunk({"content": "never read"}, finish="stop"), event("[DONE]")))
    running = asyncio.create_task(stage.ask())
    await stage.local.arrived(1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    total = (await stage.app.ledger.report(UsageQuery(LOCAL_OWNER))).total
    assert (total.turns, total.failed, total.estimated) == (3, 1, 1)


class Spans:
    """A tracer that keeps every span with the one above it."""

    captures_content = False

    def __init__(self) -> None:
        self.all: list[KeptSpan] = []
        self._above: ContextVar[KeptSpan | None] = ContextVar("above", default=None)

    @contextmanager
    def span(
        self, name: str, attributes: Mapping[str, tracing.AttributeValue], *, is_client: bool, parent: str
    ) -> Iterator[KeptSpan]:
        kept = KeptSpan(name, dict(attributes), self._above.get())
        self.all.append(kept)
        token = self._above.set(kept)
        try:
            yield kept
        finally:
            self._above.reset(token)


@dataclass
class KeptSpan:
    name: str
    attributes: dict[str, tracing.AttributeValue]
    above: KeptSpan | None

    def set(self, name: str, value: tracing.AttributeValue | None) -> None:
        if value is not None:
            self.attributes[name] = value


async def test_a_consensus_is_a_span_with_one_for_each_member_and_model_call(stage: Stage) -> None:
    """Each with its model, tokens and conversation; the arbiter's call belongs to the turn of the question."""
    spans = Spans()
    with tracing.installed(spans):
        result = await stage.ask()
    (whole,) = [span for span in spans.all if span.above is None]
    members = [span for span in spans.all if span.above is whole and span.name == "exai turn"]
    assert whole.name == "exai turn"
    assert sorted(str(each.attributes[tracing.REQUEST_MODEL]) for each in members) == sorted(PANEL)
    (decision,) = [span for span in spans.all if span.above is whole and span.name != "exai turn"]
    assert decision.name == f"chat {LOCAL}"
    assert sorted(span.name for span in spans.all if span.above in members) == sorted(f"chat {name}" for name in PANEL)
    for turn in (whole, *members):
        assert turn.attributes[tracing.CONVERSATION] == result.continuation_id
        assert int(str(turn.attributes[tracing.INPUT_TOKENS])) > 0
    assert all(span.attributes[tracing.USER] == LOCAL_OWNER for span in (whole, *members))


async def test_every_turn_of_a_consensus_is_in_the_history_with_its_duration(stage: Stage) -> None:
    """Answered and failed ones; that of the question lasts as long as all of them."""
    stage.app.events.open()
    stage.glm.default = lambda _: failure(500)
    await stage.ask(models=(KIMI, GLM, "local/other"))
    turns = {
        (item.labels["model"], item.labels["outcome"] == "ok"): item.sum
        for item in stage.app.events.take(1_000)
        if item.type == "turn"
    }
    assert set(turns) == {(KIMI, True), (GLM, False), ("local/other", True), (LOCAL, True)}
    assert all(seconds is not None and seconds > 0 for seconds in turns.values())
    assert turns[LOCAL, True] == max(seconds or 0 for seconds in turns.values())
