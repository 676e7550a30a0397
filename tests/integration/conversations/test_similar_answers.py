"""Answers to similar questions: with pgvector and without, what is similar, and what never is.

The vectors are scripted: the stand-in for the embedding model returns what a test says for each text.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from exai.app import App, open_app
from exai.conversations import ChatRequest, ChatResult
from exai.db.answers import MAX_OWNER_ROWS, AnswerPlace, AnswerRepository, Question
from exai.db.ledger import UsageQuery
from exai.db.migrations.extensions import install_vector
from exai.errors import ConfigError, DatabaseError
from exai.models import LOCAL_OWNER, ConversationId, Owner, TurnId
from exai.settings.load import AnswerSettings, BudgetSettings, CacheSettings, DatabaseSettings
from exai.tools.chat import ChatOutput
from tests.integration.conversations.conftest import Rig, open_rig
from tests.integration.workflows.conftest import call, rows_of
from tests.support.migrations import run, value
from tests.support.provider_server import Reply, failure, kimi_answer

MUTEX = "How does a mutex work?"
QUESTION = ChatRequest(LOCAL_OWNER, MUTEX, cache="use")
PARAPHRASE = "What does a mutex do?"


def near(similarity: float) -> list[float]:
    """A vector with that cosine to `[1, 0]`, not of length 1."""
    return [3 * similarity, 3 * math.sqrt(1 - similarity**2)]


VECTORS: dict[str, list[float]] = {
    MUTEX: [2.0, 0.0],
    PARAPHRASE: near(0.98),
    "What is a mutex?": near(0.9),
    "How does a mutex not work?": near(0.999),
    "How do 2 mutexes work?": near(0.999),
    "How do 3 mutexes work?": near(0.9995),
    "Go on": [1.0, 0.0],
    "And then": near(0.99),
}


@pytest.fixture
async def rig(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(postgres_url, redis_url, tmp_path) as opened:
        opened.provider.vectors = lambda text: VECTORS.get(text, [0.0, 1.0])
        yield opened


@asynccontextmanager
async def comparing(rig: Rig, **others: Any) -> AsyncIterator[App]:
    """A daemon with an embedding model."""
    answers = AnswerSettings(embedding_model="kimi/embed-1", **others.pop("answers", {}))
    async with open_app(rig.app.settings.model_copy(update={"answers": answers, **others})) as app:
        yield app


@pytest.fixture
async def app(rig: Rig) -> AsyncIterator[App]:
    async with comparing(rig) as opened:
        yield opened


async def ask(app: App, prompt: str, **changes: Any) -> ChatResult:
    return await app.chat.run(replace(QUESTION, prompt=prompt, **changes))


def embedded(rig: Rig) -> list[str]:
    """The texts of which vectors were requested."""
    return [each.body["input"] for each in rig.provider.received if each.path.endswith("/embeddings")]


PGVECTOR = {
    "arrays": [],
    "pgvector": ["create extension vector"],
    "pgvector in a schema of its own": ["create schema extensions", "create extension vector schema extensions"],
}


async def has_pgvector(url: str) -> bool:
    """Whether the server can create the extension; a system's Postgres may lack it."""
    return bool(await value(url, "select count(*) from pg_available_extensions where name = 'vector'"))


@pytest.fixture(params=PGVECTOR.values(), ids=list(PGVECTOR))
async def either(request: pytest.FixtureRequest, postgres_url: str, rig: Rig) -> AsyncIterator[App]:
    """The application, on a database with and without the extension."""
    if request.param and not await has_pgvector(postgres_url):
        pytest.skip("the server has no pgvector")
    await run(postgres_url, *request.param)
    async with comparing(rig) as opened:
        yield opened


async def test_a_similar_question_has_the_answer_of_the_first_one(rig: Rig, either: App) -> None:
    """Marked in structure and text, with the question and the similarity; the turn is free and stored."""
    first = await ask(either, MUTEX)
    found = await ask(either, PARAPHRASE, idempotency_key="key")
    assert len(rig.provider.chats) == 1
    assert (found.content, found.model, found.provider) == (first.content, first.model, first.provider)
    assert found.origin is not None
    assert (found.origin.similarity, found.origin.question) == (0.98, MUTEX)
    assert f"{first.model} gave this answer to a similar question (similarity 0.980)" in found.notes[0]
    assert found.notes[0].endswith(f"The similar question: {MUTEX}")
    assert (found.cost_usd, found.usage.output_tokens) == (0, 0)
    question, answer = await rows_of(either, found.continuation_id)
    assert (question.content, answer.content) == (PARAPHRASE, first.content)
    assert (answer.metadata["from_cache"]["similarity"], answer.metadata["from_cache"]["question"]) == (0.98, MUTEX)
    output = ChatOutput.of(found).from_cache
    assert output is not None
    assert (output.similarity, output.question, output.model) == (0.98, MUTEX, first.model)
    repeated = await ask(either, PARAPHRASE, idempotency_key="key")
    assert (repeated.duplicate, repeated.origin, repeated.notes) == (True, found.origin, found.notes)
    exact = await ask(either, MUTEX)
    assert exact.origin is not None
    assert exact.origin.similarity is None
    total = (await either.ledger.report(UsageQuery(LOCAL_OWNER))).total
    assert (total.turns, total.cost_usd) == (3, first.cost_usd)


async def test_what_is_not_similar_enough_asks_the_model(rig: Rig, either: App) -> None:
    """Below the threshold, or with another number or negation, in which vectors hardly differ."""
    await ask(either, MUTEX)
    for prompt in (
        "What is a mutex?",
        "How does a mutex not work?",
        "How do 2 mutexes work?",
        "How do 3 mutexes work?",
    ):
        assert (await ask(either, prompt)).origin is None, prompt
    assert len(rig.provider.chats) == 5


async def test_the_nearest_question_wins(rig: Rig, either: App) -> None:
    """And of questions as near, the newest answer."""
    VECTORS["nearer"], VECTORS["asked"] = near(0.985), near(0.985)
    rig.provider.script(kimi_answer("Of the far one."), kimi_answer("Of the near one."))
    await ask(either, MUTEX)
    await ask(either, "nearer", cache="refresh")
    found = await ask(either, "asked")
    assert found.content == "Of the near one."
    assert found.origin is not None
    assert found.origin.similarity == 1.0


async def test_pgvector_may_come_and_go(rig: Rig, app: App, postgres_url: str) -> None:
    """While the daemon runs: the next statement uses what is there, and no row is lost."""
    if not await has_pgvector(postgres_url):
        pytest.skip("the server has no pgvector")
    await ask(app, MUTEX)
    for statements in ([], *PGVECTOR.values()):
        await run(postgres_url, *statements)
        found = await ask(app, PARAPHRASE)
        assert found.origin is not None
        assert found.origin.similarity == 0.98
        await run(postgres_url, "drop extension if exists vector")
    assert len(rig.provider.chats) == 1


async def test_vectors_are_compared_by_pgvector_where_it_is(app: App, postgres_url: str) -> None:
    """Seen by a value that its type refuses; the embedding model is never believed one."""
    first = await ask(app, MUTEX)
    await run(postgres_url, "update exai.answers set vector = '{NaN,0}'")
    question = Question(LOCAL_OWNER, *await found_by(postgres_url), "other", (1.0, 0.0))
    repository = AnswerRepository(app.database)
    assert len(await repository.similar(question, least=0.9, age_s=60)) == 1
    assert first.content
    await install_vector(postgres_url)
    await install_vector(postgres_url)
    if await has_pgvector(postgres_url):
        with pytest.raises(DatabaseError):
            await repository.similar(question, least=0.9, age_s=60)


async def found_by(postgres_url: str) -> tuple[str, str]:
    """The embedding model and the rest of the prompt of the only row."""
    return (
        await value(postgres_url, "select embedding from exai.answers"),
        await value(postgres_url, "select rest from exai.answers"),
    )


async def test_a_type_of_the_extensions_name_is_not_used(app: App, postgres_url: str) -> None:
    """Another role may create it in schema public, with operators that would run with EXAI's rights."""
    await run(
        postgres_url,
        "create domain public.vector as real[]",
        "create function public.spy(public.vector, public.vector) returns double precision language plpgsql as"
        " $$ begin raise exception 'a hostile function was called'; end $$",
        "create operator public.<=> (leftarg = public.vector, rightarg = public.vector, function = public.spy)",
    )
    await ask(app, MUTEX)
    assert (await ask(app, PARAPHRASE)).origin is not None


async def test_the_rest_of_the_prompt_must_be_the_same(rig: Rig, app: App) -> None:
    """A question in another context, to another model or with another instruction is another question."""
    await ask(app, MUTEX)
    other: list[dict[str, Any]] = [{"system": "Be brief."}, {"model": "kimi-k3"}, {"max_output_tokens": 100}]
    for changes in other:
        assert (await ask(app, PARAPHRASE, **changes)).origin is None
    rig.provider.script(kimi_answer("One."), kimi_answer("Two."))
    one, two = [await ask(app, prompt, cache="off") for prompt in ("First?", "Second?")]
    await ask(app, "Go on", continuation_id=one.continuation_id)
    assert (await ask(app, "And then", continuation_id=two.continuation_id)).origin is None
    rig.provider.script(kimi_answer("One."))
    same = await ask(app, "First?", cache="off")
    assert (await ask(app, "And then", continuation_id=same.continuation_id)).origin is not None


async def test_no_owner_receives_a_similar_answer_of_another_one(rig: Rig, app: App) -> None:
    """The owner is a condition of the statement, not a part of the compared text."""
    await ask(app, MUTEX)
    assert (await ask(app, PARAPHRASE, owner=Owner("other"))).origin is None
    assert len(rig.provider.chats) == 2


async def test_instructions_files_and_long_texts_are_not_compared(rig: Rig, app: App) -> None:
    """Their vectors say little about a difference in the question; no text of them leaves for the embedding model."""
    await call(app, "codereview", prompt=MUTEX, cache="use")
    stored = await call(app, "file_put", name="notes.txt", content="text")
    await ask(app, MUTEX, files=(stored["file_id"],))
    await ask(app, "long " * 1_000)
    await ask(app, MUTEX, cache="off")
    assert embedded(rig) == []


BROKEN: dict[str, Any] = {
    "refuses": failure(500),
    "answers with HTML": failure(200, "<html>"),
    "has no vector": failure(200, {"data": []}),
    "has an empty vector": [],
    "has no direction": [0.0, 0.0],
    "is not of numbers": ["1", "2"],
    "is infinite": failure(200, '{"data": [{"embedding": [1e999, 0]}]}', content_type="application/json"),
    "is too long": [1.0] * 5_000,
    "breaks off": Reply(["rst"], head=False),
}


@pytest.mark.parametrize("reply", BROKEN.values(), ids=list(BROKEN))
async def test_a_failure_of_the_embedding_model_is_a_note(rig: Rig, app: App, reply: Any) -> None:
    """The call goes on, and answers to the same prompt are found as ever."""
    rig.provider.vectors = lambda _: reply
    first = await ask(app, MUTEX)
    assert first.content
    assert len([note for note in first.notes if "because kimi/embed-1 failed" in note]) == 1
    assert (await ask(app, MUTEX)).origin is not None


async def test_an_embedding_model_that_failed_repeatedly_is_left_alone(rig: Rig, app: App) -> None:
    """Each call would wait for it otherwise."""
    rig.provider.vectors = lambda _: failure(500)
    notes = [(await ask(app, f"Question {'x' * number}?")).notes[-1] for number in range(8)]
    assert "it failed repeatedly" in notes[-1]
    assert len(embedded(rig)) < 8


async def test_vectors_of_other_models_and_dimensions_are_not_compared(rig: Rig, app: App) -> None:
    """A model that is replaced, or that now returns other dimensions, finds nothing and breaks nothing."""
    await ask(app, MUTEX)
    rig.provider.vectors = lambda _: [1.0, 0.0, 0.0]
    assert (await ask(app, PARAPHRASE)).origin is None
    rig.provider.vectors = lambda text: VECTORS[text]
    async with open_app(
        rig.app.settings.model_copy(update={"answers": AnswerSettings(embedding_model="kimi/embed-2")})
    ) as other:
        assert (await ask(other, PARAPHRASE + " ", system="x")).origin is None
        assert (await ask(other, "Go on")).origin is None


async def test_without_redis_similar_questions_are_still_found(rig: Rig) -> None:
    """The two parts of the cache do not depend on each other."""
    async with comparing(rig, cache=CacheSettings(url="off")) as app:
        await ask(app, MUTEX)
        found = await ask(app, PARAPHRASE)
    assert found.origin is not None
    assert found.notes[1] == "the answer cache was not asked, because there is no Redis (EXAI_CACHE__URL)"


async def test_the_answers_of_a_deleted_conversation_are_not_found(app: App, postgres_url: str) -> None:
    """Nor left behind when it is purged, because a row only names the answer."""
    first = await ask(app, MUTEX)
    await call(app, "conversation_delete", continuation_id=first.continuation_id)
    assert (await ask(app, PARAPHRASE)).origin is None
    await run(
        postgres_url, "update conversations set deleted_at = now() - interval '1 year' where deleted_at is not null"
    )
    await app.maintenance.prune()
    assert await value(postgres_url, "select count(*) from exai.answers") == 1


async def test_refresh_replaces_the_answer_to_the_question(rig: Rig, app: App, postgres_url: str) -> None:
    """Similar questions have the new one from then on."""
    rig.provider.script(kimi_answer("Old."), kimi_answer("New."))
    await ask(app, MUTEX)
    await ask(app, MUTEX, cache="refresh")
    assert (await ask(app, PARAPHRASE)).content == "New."
    assert await value(postgres_url, "select count(*) from exai.answers") == 1


async def test_a_similar_answer_is_not_kept_for_the_question_that_found_it(app: App, postgres_url: str) -> None:
    """Answers would drift from one similar question to the next."""
    VECTORS["drifting"] = near(0.93)
    await ask(app, MUTEX)
    await ask(app, PARAPHRASE)
    assert await value(postgres_url, "select count(*) from exai.answers") == 1
    assert (await ask(app, "drifting")).origin is None


async def test_expired_answers_and_the_oldest_ones_are_removed(rig: Rig, app: App, postgres_url: str) -> None:
    """By the statement that stores one, within the owner; those of idle owners by `exai prune`."""
    first = await ask(app, MUTEX)
    await ask(app, MUTEX, owner=Owner("idle"))
    await run(postgres_url, "update exai.answers set created_at = created_at - interval '25 hours'")
    assert (await ask(app, PARAPHRASE)).origin is None
    kept = "select owner from exai.answers order by 1"
    assert await value(postgres_url, f"select array_agg(owner) from ({kept}) x") == ["idle", "local"]
    await app.maintenance.prune()
    assert await value(postgres_url, f"select array_agg(owner) from ({kept}) x") == ["local"]
    await run(
        postgres_url,
        "insert into exai.answers select 'local', 'r', 'e', i::text, '{1}', c.id, 1, 2,"
        f" now() - make_interval(secs => i) from conversations c, generate_series(1, {2 * MAX_OWNER_ROWS}) i"
        f" where c.continuation_id = '{first.continuation_id}'",
    )
    assert (await ask(app, "Something else?")).origin is None
    assert await value(postgres_url, "select count(*) from exai.answers") == MAX_OWNER_ROWS
    assert await value(postgres_url, "select count(*) from exai.answers where rest <> 'r'") == 2


async def test_calls_at_once_keep_one_row_for_a_question(app: App, postgres_url: str) -> None:
    """Also while others remove the oldest rows; none fails."""
    results = await asyncio.gather(*(ask(app, MUTEX, cache="refresh") for _ in range(8)))
    assert [note for result in results for note in result.notes] == []
    assert await value(postgres_url, "select count(*) from exai.answers") == 1


async def test_a_place_of_another_owner_is_not_kept(app: App, postgres_url: str) -> None:
    """For any argument of the repository's caller."""
    first = await ask(app, MUTEX)
    repository = AnswerRepository(app.database)
    conversation = ConversationId(
        await value(
            postgres_url, f"select id::text from conversations where continuation_id = '{first.continuation_id}'"
        )
    )
    stranger = Question(Owner("other"), "e", "r", "q", (1.0, 0.0))
    assert not await repository.keep(
        stranger, AnswerPlace(conversation, 1, 2, TurnId("00000000-0000-4000-8000-000000000000")), age_s=60
    )


@pytest.mark.parametrize("name", ["embed-1", "nobody/embed-1", "/x", "kimi/"])
async def test_a_setting_that_names_no_provider_is_refused_at_start(rig: Rig, name: str) -> None:
    """A silent fallback would look like a cache that never finds anything."""
    async with AsyncExitStack() as stack:
        settings = rig.app.settings.model_copy(update={"answers": AnswerSettings(embedding_model=name)})
        with pytest.raises(ConfigError, match="EXAI_ANSWERS__EMBEDDING_MODEL"):
            await stack.enter_async_context(open_app(settings))


async def test_a_failure_of_the_table_is_a_note(app: App, postgres_url: str) -> None:
    """An older schema or a lost right must not cost the answer."""
    await run(postgres_url, "alter table exai.answers rename to answers_away")
    result = await ask(app, MUTEX)
    assert result.content
    assert "no similar question was looked for" in result.notes[0]
    with pytest.raises(DatabaseError):
        await AnswerRepository(app.database).prune(age_s=1)


async def test_the_embedded_server_gets_pgvector_if_it_has_it(rig: Rig, tmp_path: Path) -> None:
    """No other role can install it there."""
    settings = rig.app.settings.model_copy(
        update={
            "database": DatabaseSettings(),
            "cache": CacheSettings(url="off"),
            "answers": AnswerSettings(embedding_model="kimi/embed-1"),
            "data_dir": tmp_path / "own",
        }
    )
    async with open_app(settings) as app:
        assert app.embedded is not None
        url = app.embedded.postgres_url or ""
        installed = await value(url, "select count(*) from pg_extension where extname = 'vector'")
        assert bool(installed) == await has_pgvector(url)
        await ask(app, MUTEX)
        assert (await ask(app, PARAPHRASE)).origin is not None


async def test_a_vector_is_an_item_of_the_cost_of_its_turn(rig: Rig) -> None:
    """Tokens and money count in the ledger and in the budgets, also of a turn whose answer costs nothing."""
    answers = {"embedding_input_usd": 1_000.0}
    async with comparing(rig, answers=answers, budgets=BudgetSettings(owner_day_usd=1.0)) as app:
        rig.provider.vectors = lambda _: failure(
            200, {"data": [{"index": 0, "embedding": [1.0, 0.0]}], "usage": {"prompt_tokens": 20, "total_tokens": 20}}
        )
        first = await ask(app, MUTEX)
        hit = await ask(app, PARAPHRASE)
        assert (hit.origin is not None, hit.cost_usd, hit.usage.input_tokens) == (True, Decimal("0.02"), 20)
        report = await app.ledger.report(UsageQuery(LOCAL_OWNER))
        assert first.cost_usd is not None
        assert report.total.cost_usd == first.cost_usd + Decimal("0.02")
        assert first.cost_usd > Decimal("0.02")
        assert report.total.estimated == 0
        assert [each.spent_usd for each in report.budgets if each.name == "day"] == [report.total.cost_usd]
        rig.provider.vectors = lambda _: [1.0, 0.0]
        estimated = await ask(app, "What is a mutex")
        assert estimated.cost_usd is not None
        assert estimated.cost_usd > 0
        assert (await app.ledger.report(UsageQuery(LOCAL_OWNER))).total.estimated == 1


async def test_no_vector_is_made_without_a_price_while_a_budget_is_set(rig: Rig) -> None:
    """Its cost could not count; the answer says which setting it lacks."""
    async with comparing(rig, budgets=BudgetSettings(owner_day_usd=1.0)) as app:
        result = await ask(app, MUTEX)
        assert any("EXAI_ANSWERS__EMBEDDING_INPUT_USD" in note for note in result.notes)
        assert embedded(rig) == []
