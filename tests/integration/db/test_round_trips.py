"""Every repository method is one round trip, counted on the wire, directly and behind a transaction-mode pooler."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from exai.db.answers import AnswerPlace, AnswerRepository, Question
from exai.db.batching.page_reads import MOST_READS
from exai.db.conversations import ConversationRepository
from exai.db.driver.address import parse_address
from exai.db.driver.pool import connect
from exai.db.lifecycle import ConversationUpdate, CurationRepository
from exai.db.search import SearchQuery, SearchRepository
from exai.db.transfer import TransferRepository
from exai.db.turns import TurnRepository
from exai.models import LOCAL_OWNER, ConversationId, ConversationKey, TurnId
from tests.support.counters import Counters
from tests.support.database import appending, beginning, conversation_of, ending, new_id, once, opened
from tests.support.pg_proxy import PgProxy
from tests.support.pooler import Pooler

Call = Callable[[ConversationRepository], Awaitable[object]]


@pytest.fixture(params=["direct", "pooler"])
async def proxy(request: pytest.FixtureRequest, postgres_url: str) -> AsyncIterator[PgProxy]:
    async with AsyncExitStack() as stack:
        url = postgres_url
        if request.param == "pooler":
            url = (await stack.enter_async_context(Pooler(url))).url
        yield await stack.enter_async_context(PgProxy(url))


async def test_every_method_is_one_round_trip(proxy: PgProxy) -> None:
    """Promises 2 and 3 of the design, from the very first call on."""
    recorder = Counters()
    async with opened(proxy.url, recorder=recorder) as database:
        repository, curation = ConversationRepository(database), CurationRepository(database)
        turns, answers = TurnRepository(database), AnswerRepository(database)
        asked = Question(LOCAL_OWNER, "e", "r", "q", [0.6, 0.8])
        setup = await conversation_of(repository, "one", "two")
        conversation = setup.id
        name = setup.continuation_id
        turn = beginning(name, "question")
        calls: dict[str, Call] = {
            "read_page": lambda r: r.read_page(ConversationKey(LOCAL_OWNER, name)),
            "read_pages": lambda r: asyncio.gather(
                *(r.read_page(ConversationKey(LOCAL_OWNER, name)) for _ in range(MOST_READS))
            ),
            "append": lambda r: r.append(appending(name, *["text"] * 1000)),
            "begin_turn": lambda _: turns.begin(turn),
            "renew_leases": lambda _: turns.renew_leases([turn.turn_id], lease_s=60),
            "similar_answers": lambda _: answers.similar(asked, least=0.9, age_s=60),
            "keep_answer": lambda _: answers.keep(asked, AnswerPlace(conversation, 1, 2, TurnId(new_id())), age_s=60),
            "prune_answers": lambda _: answers.prune(age_s=60),
            "finish_turn": lambda _: turns.finish(ending(turn.turn_id, "answer")),
            "turn_state": lambda _: turns.state(LOCAL_OWNER, turn.request_key),
            "list_conversations": lambda r: r.list_conversations(LOCAL_OWNER),
            "changes": lambda r: r.changes("3"),
            "search_messages": lambda _: SearchRepository(database).search(SearchQuery(LOCAL_OWNER, "one"), limit=9),
            "fork": lambda _: curation.fork(
                ConversationKey(LOCAL_OWNER, name), once(), new_conversation_id=ConversationId(new_id())
            ),
            "change_conversation": lambda _: curation.change(
                ConversationKey(LOCAL_OWNER, name), once(), ConversationUpdate(title="x")
            ),
            "read_forward": lambda _: TransferRepository(database).read_forward(ConversationKey(LOCAL_OWNER, name)),
            "purge_conversations": lambda _: curation.purge(),
            "expire_idle": lambda _: curation.expire_idle(None, idle_s=1e9),
            "read_turn": lambda _: turns.read(LOCAL_OWNER, turn.turn_id),
            "cancel_turn": lambda _: turns.cancel(LOCAL_OWNER, turn.turn_id, {}),
            "prune_removed": lambda _: curation.prune_removed(),
        }
        for statement, call in calls.items():
            proxy.reset()
            before = recorder["db_statements_total", statement]
            await call(repository)
            assert (statement, proxy.round_trips, proxy.front["S"]) == (statement, 1, 1)
            assert len(proxy.statements) == 1, statement
            assert recorder["db_statements_total", statement] == before + 1


async def test_no_statement_is_left_on_the_server(proxy: PgProxy) -> None:
    """Names of statements are what breaks behind poolers, so there are none."""
    async with opened(proxy.url) as database:
        await conversation_of(ConversationRepository(database), "text")
        assert await named_statements(proxy.url) == 0


async def named_statements(url: str) -> int:
    connection = await connect(parse_address(url), timeout_s=5)
    try:
        return int(await connection.fetchval("select count(*) from pg_prepared_statements where name <> ''"))
    finally:
        await connection.close()


async def test_thousand_messages_and_two_hundred_files_are_one_round_trip(proxy: PgProxy) -> None:
    """Promise 3: an append of any number of messages with any number of files costs one."""
    connection = await connect(parse_address(proxy.url), timeout_s=5)
    rows = await connection.fetch("insert into files (name) select i from generate_series(1, 200) i returning id::text")
    await connection.close()
    async with opened(proxy.url) as database:
        repository = ConversationRepository(database)
        proxy.reset()
        result = await repository.append(appending(None, *["text"] * 1000, file_ids=[row["id"] for row in rows]))
        assert (result.status, result.last_seq, proxy.round_trips) == ("appended", 1000, 1)


async def test_a_lost_reply_of_an_append_is_repeated_and_found_done(proxy: PgProxy) -> None:
    """Promise 6: the same request sent twice is stored once; the caller does not even notice."""
    recorder = Counters()
    async with opened(proxy.url, recorder=recorder) as database:
        repository = ConversationRepository(database)
        name = (await conversation_of(repository, "one")).continuation_id
        proxy.lose_reply_to("append_v1")
        result = await repository.append(appending(name, "two"))
        assert proxy.lost.is_set()
        assert (result.status, result.first_seq, result.last_seq) == ("appended", 2, 2)
        assert [message.content for message in result.commit.added] == ["two"]
        assert recorder["db_retries_total", "append"] == 1
        page = await repository.read_page(ConversationKey(LOCAL_OWNER, name))
        assert [message.content for message in page.messages] == ["one", "two"]


async def test_a_lost_reply_of_either_half_of_a_turn_is_repeated_and_found_done(proxy: PgProxy) -> None:
    """The repetition has the turn id of the lease's holder and gets the complete result."""
    async with opened(proxy.url) as database:
        repository, turns = ConversationRepository(database), TurnRepository(database)
        name = (await conversation_of(repository, "one")).continuation_id
        start = beginning(name, "question")
        proxy.lose_reply_to("begin_turn_v1")
        begun = await turns.begin(start)
        assert (begun.status, begun.attempt, begun.first_seq) == ("started", 1, 2)
        assert [message.content for message in begun.history] == ["one"]
        assert [message.content for message in begun.commit.added] == ["question"]
        proxy.lose_reply_to("finish_turn_v1")
        finished = await turns.finish(
            ending(
                begun.turn_id,
                "answer",
            )
        )
        assert (finished.status, finished.seq) == ("duplicate", 3)
        page = await repository.read_page(ConversationKey(LOCAL_OWNER, name))
        assert [message.content for message in page.messages] == ["one", "question", "answer"]


async def test_connections_come_back_after_the_network_failed(proxy: PgProxy) -> None:
    """The pool mends itself; a read that met the failure is repeated unseen."""
    async with opened(proxy.url) as database:
        repository = ConversationRepository(database)
        name = (await conversation_of(repository, "one")).continuation_id
        for _ in range(3):
            proxy.drop()
            assert len((await repository.read_page(ConversationKey(LOCAL_OWNER, name))).messages) == 1
