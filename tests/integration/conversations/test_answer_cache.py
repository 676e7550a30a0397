"""The answer cache: what is given again, to whom, at which cost, and what is never kept.

Each refusal here is a defect of another cache of this kind: a key without parameters or history, answers of other
tenants, truncated answers and those of other models kept as whole ones, hits that do not stream or are not recorded.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exai.app import App, open_app
from exai.conversations import ChatRequest, ChatResult
from exai.db.ledger import UsageQuery
from exai.errors import BudgetExceeded, InvalidArgument
from exai.models import LOCAL_OWNER, Delta, Owner
from exai.settings.load import AnswerSettings, BudgetSettings, EndpointSettings
from tests.integration.conversations.conftest import Rig, open_rig
from tests.integration.workflows.conftest import call, called, rows_of
from tests.support.migrations import run
from tests.support.provider_server import Reply, chunk, event, kimi_answer, kimi_error, stream

QUESTION = ChatRequest(LOCAL_OWNER, "What is a mutex?", cache="use")


@pytest.fixture
async def rig(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(postgres_url, redis_url, tmp_path) as opened:
        yield opened


async def another(stack: AsyncExitStack, rig: Rig, **sections: Any) -> App:
    """Another daemon over the same stores, with other settings."""
    return await stack.enter_async_context(open_app(rig.app.settings.model_copy(update=sections)))


async def ask(rig: Rig, **changes: Any) -> ChatResult:
    return await rig.app.chat.run(replace(QUESTION, **changes))


def asked(rig: Rig) -> int:
    """How often a model was asked."""
    return len(rig.provider.chats)


async def test_the_same_prompt_is_answered_again_without_the_model(rig: Rig) -> None:
    """In 2 database round trips, as any turn; the turn is stored, streamed, and free."""
    first = await ask(rig)
    assert (first.origin, first.notes) == (None, ())
    streamed: list[Delta] = []

    async def on_delta(delta: Delta) -> None:
        streamed.append(delta)

    await ask(rig)  # loads the script
    rig.reset()
    again = await rig.app.chat.run(replace(QUESTION, idempotency_key="key"), on_delta)
    # The question is applied at the same time as the answer is looked up.
    assert rig.cost() == (2, 2)
    assert asked(rig) == 1
    assert (again.content, again.model, again.provider) == (first.content, first.model, first.provider)
    assert again.continuation_id != first.continuation_id
    assert again.origin is not None
    assert again.origin.model == first.model
    assert f"from the answer cache: {first.model} gave this answer to the same prompt on 2" in again.notes[0]
    assert "".join(delta.content for delta in streamed) == first.content
    assert (again.usage.input_tokens, again.usage.output_tokens, again.cost_usd) == (0, 0, 0)
    question, answer = await rows_of(rig.app, again.continuation_id)
    assert (question.content, answer.content) == (QUESTION.prompt, first.content)
    origin = {"answered_at": again.origin.answered_at.isoformat(), "model": first.model}
    assert answer.metadata["from_cache"] == origin
    repeated = await rig.app.chat.run(replace(QUESTION, idempotency_key="key"))
    assert repeated.duplicate
    assert (repeated.origin, repeated.notes, repeated.cost_usd) == (again.origin, again.notes, 0)
    total = (await rig.app.ledger.report(UsageQuery(LOCAL_OWNER))).total
    assert (total.turns, total.unpriced, total.from_cache) == (3, 0, 2)
    assert (total.input_tokens, total.cost_usd) == (first.usage.input_tokens, first.cost_usd)


async def test_a_call_that_does_not_ask_for_it_neither_finds_nor_keeps(rig: Rig) -> None:
    """The answer cache is off by default."""
    rig.reset()
    await ask(rig, cache="off")
    assert rig.cost() == (2, 2)
    await ask(rig)
    await ask(rig, cache="off")
    assert asked(rig) == 3
    with pytest.raises(InvalidArgument, match="cache"):
        await ask(rig, cache="on")


async def test_the_history_is_part_of_the_prompt(rig: Rig) -> None:
    """A question such as "go on" means another thing in each conversation, and the same in equal ones."""
    rig.provider.script(kimi_answer("One."), kimi_answer("Two."))
    one, two = [await ask(rig, prompt=prompt, cache="off") for prompt in ("First?", "Second?")]
    after_one = await ask(rig, prompt="Go on", continuation_id=one.continuation_id)
    after_two = await ask(rig, prompt="Go on", continuation_id=two.continuation_id)
    assert (after_one.origin, after_two.origin) == (None, None)
    rig.provider.script(kimi_answer("One."))
    same = await ask(rig, prompt="First?", cache="refresh")
    after_same = await ask(rig, prompt="Go on", continuation_id=same.continuation_id)
    assert after_same.origin is not None
    assert after_same.content == after_one.content
    assert asked(rig) == 5


CHANGES: list[dict[str, Any]] = [
    {"prompt": "What is a mutex? "},
    {"system": "Answer briefly."},
    {"model": "kimi-k3"},
    {"model": "kimi-k2.6"},
    {"max_output_tokens": 100},
    {"max_output_tokens": 101},
    {"thinking": "low"},
    {"thinking": "high"},
    {"web_search": True},
]


async def test_every_parameter_is_part_of_the_name(rig: Rig) -> None:
    """No two of these requests share an answer; each finds its own."""
    rig.provider.routes["/v1/formulas/moonshot/web-search:latest/tools"] = {
        "tools": [{"type": "function", "function": {"name": "web_search", "parameters": {}}}]
    }
    rig.provider.script(*[kimi_answer(f"answer {number}") for number in range(len(CHANGES) + 1)])
    first = [await ask(rig, **change) for change in ({}, *CHANGES)]
    assert [result.content for result in first] == [f"answer {number}" for number in range(len(CHANGES) + 1)]
    assert [result.origin for result in first] == [None] * len(first)
    again = [await ask(rig, **change) for change in ({}, *CHANGES)]
    assert [result.content for result in again] == [result.content for result in first]
    assert None not in [result.origin for result in again]


async def test_files_are_part_of_the_prompt_by_their_content(rig: Rig) -> None:
    """The same name with another content is another question."""
    rig.provider.script(kimi_answer("of a"), kimi_answer("of b"))
    contents = []
    for text in ("content a", "content b", "content a"):
        stored = await call(rig.app, "file_put", name="notes.txt", content=text)
        contents.append((await ask(rig, files=(stored["file_id"],))).content)
    assert contents == ["of a", "of b", "of a"]


async def test_no_owner_receives_the_answer_of_another_one(rig: Rig) -> None:
    """Names of owners that are parts of one another, or hold the separators of keys, do not share one."""
    owners = ["local", "local:a", "a", "local%3Aa", "{g0}", "local:a:t"]
    results = [await ask(rig, owner=Owner(owner)) for owner in owners]
    assert [result.origin for result in results] == [None] * len(owners)
    assert asked(rig) == len(owners)
    await ask(rig, owner=Owner("a"))
    assert asked(rig) == len(owners)


UNFIT: dict[str, Reply] = {
    "cut at its limit": kimi_answer("Half an ans", finish="length"),
    "ended by a filter": kimi_answer("I cannot", finish="content_filter"),
    "broken off": stream(chunk({"content": "Half"}), chunk({}, finish="stop"), b"data: {broken\n\n", event("[DONE]")),
    "a refusal": stream(chunk({"refusal": "I cannot help."}), chunk({}, finish="stop"), event("[DONE]")),
    "a refusal in a part": stream(
        chunk({"content": [{"type": "refusal", "refusal": "I cannot."}]}), chunk({}, finish="stop"), event("[DONE]")
    ),
    "of an unknown end": kimi_answer("Perhaps", finish="something"),
}


@pytest.mark.parametrize("reply", UNFIT.values(), ids=list(UNFIT))
async def test_an_answer_that_may_be_incomplete_is_not_kept(rig: Rig, reply: Reply) -> None:
    """It would be given again for a day although another attempt could give all of it."""
    rig.provider.script(reply, kimi_answer("Whole."))
    await ask(rig)
    second = await ask(rig)
    assert (second.content, second.origin) == ("Whole.", None)
    assert (await ask(rig)).content == "Whole."
    assert asked(rig) == 2


async def test_the_answer_to_a_shortened_prompt_is_not_kept_for_the_whole_one(rig: Rig) -> None:
    """The model was not shown what the name stands for; the next call is sent the shorter prompt at once."""
    begun = await ask(rig, prompt="word " * 2_000, cache="off")
    follow = {"prompt": "Go on", "continuation_id": begun.continuation_id}
    too_long = "Invalid request: Your request exceeded model token limit: 1024 (requested: 9000)"
    rig.provider.script(kimi_error(400, "invalid_request_error", too_long), kimi_answer("Of a part."))
    before = asked(rig)
    await ask(rig, **follow)
    assert asked(rig) == before + 2
    stores = rig.app.recorder.labelled("answer_cache_stores_total")
    assert [labels for labels, count in stores.items() if count and ("result", "stored") in labels] == []


async def test_a_failed_call_keeps_nothing(rig: Rig) -> None:
    """Nor what had arrived of its answer."""
    rig.provider.script(kimi_error(400, "invalid_request_error"))
    with pytest.raises(Exception, match="kimi"):
        await ask(rig)
    assert (await ask(rig)).origin is None


async def test_the_answer_of_a_replacement_is_not_kept_for_the_model_that_was_asked(
    postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    """The chain of other models answers for an outage, not for a day."""
    async with open_rig(postgres_url, redis_url, tmp_path, fallback=["kimi-k3"]) as rig:
        rig.provider.script(kimi_error(404, "resource_not_found_error"), kimi_answer("Of the other."))
        replaced = await ask(rig, model="kimi-k3.1-pro")
        assert replaced.instead_of == "kimi-k3.1-pro"
        for model in ("kimi-k3.1-pro", "kimi-k3"):
            assert (await ask(rig, model=model)).origin is None


async def test_an_endpoint_with_another_address_has_other_answers(rig: Rig) -> None:
    """A name that means another server now does not return the answers of the first one."""
    async with AsyncExitStack() as stack:
        results = []
        for path in ("/v1", "/elsewhere/v1"):
            endpoint = EndpointSettings(base_url=f"{rig.provider.origin}{path}", models=("m",))
            providers = rig.app.settings.providers.model_copy(update={"endpoints": {"mine": endpoint}})
            app = await another(stack, rig, providers=providers)
            results.append(await app.chat.run(replace(QUESTION, model="mine/m")))
        assert [result.origin for result in results] == [None, None]


async def test_refresh_asks_the_model_and_replaces_the_answer(rig: Rig) -> None:
    """On any daemon."""
    rig.provider.script(kimi_answer("Old."), kimi_answer("New."))
    await ask(rig)
    fresh = await ask(rig, cache="refresh")
    assert (fresh.content, fresh.origin) == ("New.", None)
    async with AsyncExitStack() as stack:
        app = await another(stack, rig)
        assert (await app.chat.run(QUESTION)).content == "New."
    assert asked(rig) == 2


async def test_without_redis_the_call_works_and_says_so(rig: Rig) -> None:
    """An outage of the cache is a note, an absent one too."""
    await ask(rig)
    rig.cache.mode = "reset"
    result = await ask(rig)
    assert result.origin is None
    assert result.notes == ("the answer cache was not asked, because Redis cannot be reached",)
    async with AsyncExitStack() as stack:
        cache = rig.app.settings.cache.model_copy(update={"url": "off"})
        app = await another(stack, rig, cache=cache)
        off = await app.chat.run(QUESTION)
    assert off.notes == ("the answer cache was not asked, because there is no Redis (EXAI_CACHE__URL)",)


async def test_an_answer_of_the_cache_needs_no_budget(rig: Rig) -> None:
    """Also at once with others, and when the budget is spent; after a miss the budget decides as ever."""
    usage = {"prompt_tokens": 20, "completion_tokens": 1_000, "total_tokens": 1_020}
    rig.provider.script(kimi_answer("Known.", usage=usage))
    async with AsyncExitStack() as stack:
        budgets = BudgetSettings(owner_day_usd=0.012, answer_tokens=1_000)
        app = await another(stack, rig, budgets=budgets)
        await app.chat.run(QUESTION)
        hits = await asyncio.gather(*(app.chat.run(QUESTION) for _ in range(8)))
        assert {hit.content for hit in hits} == {"Known."}
        with pytest.raises(BudgetExceeded) as refused:
            await app.chat.run(replace(QUESTION, prompt="Another?"))
        assert (refused.value.reserved_usd, refused.value.continuation_id is not None) == (0, True)
        with pytest.raises(BudgetExceeded):
            await app.chat.run(replace(QUESTION, cache="refresh"))
    assert asked(rig) == 1


async def test_misses_at_once_on_two_daemons_never_overspend(rig: Rig) -> None:
    """The reservation after a miss is the one that other turns make at their beginning."""
    usage = {"prompt_tokens": 20, "completion_tokens": 1_000, "total_tokens": 1_020}
    rig.provider.script(*[kimi_answer(usage=usage)] * 12)
    async with AsyncExitStack() as stack:
        budgets = BudgetSettings(owner_day_usd=0.035, answer_tokens=1_000)
        daemons = [await another(stack, rig, budgets=budgets) for _ in range(2)]
        calls = [daemons[n % 2].chat.run(replace(QUESTION, prompt=f"Question {n}")) for n in range(12)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        answered = [each for each in outcomes if isinstance(each, ChatResult)]
        assert all(isinstance(each, ChatResult | BudgetExceeded) for each in outcomes)
        assert len(answered) == asked(rig) == 3
        total = (await daemons[0].ledger.report(UsageQuery(LOCAL_OWNER))).total
        assert 0.03 < total.cost_usd < 0.035


async def test_an_answer_over_the_limit_is_returned_and_not_kept(rig: Rig) -> None:
    """The note names the setting."""
    async with AsyncExitStack() as stack:
        app = await another(stack, rig, answers=AnswerSettings(entry_max_bytes=1_024))
        rig.provider.script(kimi_answer("long " * 1_000))
        result = await app.chat.run(QUESTION)
        assert [note for note in result.notes if "EXAI_ANSWERS__ENTRY_MAX_BYTES" in note]
        assert (await app.chat.run(QUESTION)).origin is None


async def test_an_expert_tool_reads_findings_and_verdict_from_a_kept_answer(rig: Rig) -> None:
    """Every tool that makes one call accepts the argument; text and structure say where the answer is from."""
    rig.provider.script(kimi_answer("high: SQL from input (db.py:42)\n\nVerdict: fix first"))
    first = await call(rig.app, "codereview", prompt="Review", cache="use")
    again = await called(rig.app, "codereview", {"prompt": "Review", "cache": True, "focus": ""})
    found = again["structuredContent"]
    assert asked(rig) == 1
    assert (found["verdict"], found["findings"]) == (first["verdict"], first["findings"])
    assert found["verdict"] == "fix first"
    assert (first["from_cache"], found["from_cache"]["model"]) == (None, first["model"])
    assert f"note: from the answer cache: {first['model']} gave this answer" in again["content"][0]["text"]
    assert [row.kind for row in await rows_of(rig.app, found["continuation_id"])][-1] == "answer"
    chat = await called(rig.app, "chat", {"prompt": "Review", "cache": "use"})
    assert chat["structuredContent"]["from_cache"] is None
    again = await called(rig.app, "chat", {"prompt": "Review", "cache": "use"})
    assert again["structuredContent"]["from_cache"] is not None
    assert "note: from the answer cache" in again["content"][0]["text"]


async def test_hits_misses_and_stores_are_counted(rig: Rig) -> None:
    """By this process, as its metrics are."""
    for _ in range(3):
        await ask(rig)
    await ask(rig, cache="refresh")
    status = await called(rig.app, "status", {})
    counts = status["structuredContent"]["answer_cache"]
    assert counts == {"reads": {"miss": 1, "hit": 2, "refresh": 1}, "stores": {"stored": 2}}
    assert "answer cache reads: miss: 1 | hit: 2 | refresh: 1" in status["content"][0]["text"]


async def test_an_answer_of_a_deleted_conversation_is_not_given_again(rig: Rig) -> None:
    """The turn asks the model as if there were no answer; that of a restored conversation is found again."""
    first = await ask(rig)
    await rig.app.conversations.delete(LOCAL_OWNER, first.continuation_id)
    streamed: list[Delta] = []

    async def on_delta(delta: Delta) -> None:
        streamed.append(delta)

    rig.provider.script(kimi_answer("Another answer."))
    second = await rig.app.chat.run(QUESTION, on_delta)
    assert (second.origin, second.content, asked(rig)) == (None, "Another answer.", 2)
    assert "".join(delta.content for delta in streamed) == "Another answer."
    assert [each.content for each in await rows_of(rig.app, second.continuation_id)] == [
        QUESTION.prompt,
        "Another answer.",
    ]
    third = await ask(rig)
    assert (third.content, third.origin is None, asked(rig)) == ("Another answer.", False, 2)
    await rig.app.conversations.delete(LOCAL_OWNER, second.continuation_id)
    await rig.app.conversations.restore(LOCAL_OWNER, second.continuation_id)
    assert (await ask(rig)).origin is not None


async def test_an_answer_of_a_purged_conversation_is_not_given_again(rig: Rig, postgres_url: str) -> None:
    """Also if another client of the database has removed it."""
    await ask(rig)
    await run(postgres_url, "delete from public.conversations")
    assert ((await ask(rig)).origin, asked(rig)) == (None, 2)
