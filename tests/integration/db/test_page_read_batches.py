"""Concurrent page reads share a statement, and are independent of each other."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from exai.batching import _Entry
from exai.db.batching.page_reads import MOST_READS
from exai.db.conversations import ConversationRepository
from exai.db.driver.address import parse_address
from exai.db.driver.pool import RETRIES, Database, OneTrip, connect
from exai.db.lifecycle import CurationRepository
from exai.db.records import StoredPage
from exai.errors import DatabaseBusy, DatabaseError, DatabaseUnavailable, DeadlineExceeded, NotFound, ShuttingDown
from exai.fairness import RequestWork, request_work
from exai.models import LOCAL_OWNER, PAGE_MESSAGES, ContinuationId, ConversationId, ConversationKey, Owner
from exai.resilience import with_deadline
from tests.support.counters import Counters
from tests.support.database import (
    POOL_SIZE,
    appending,
    assert_consecutive,
    conversation_of,
    new_id,
    once,
    opened,
)
from tests.support.pg_proxy import PgProxy
from tests.support.pooler import Pooler
from tests.support.waiting import wait_until

NUMBER = MOST_READS
STUCK = POOL_SIZE // 2
LONG = "é,\n" * 40_000
SLOW = "slow"
BROKEN = "broken"
GATE = 7

HEADER = Path(__file__).parents[3] / "alembic" / "functions" / "live_header_v1.sql"
TROUBLE = f"""
create or replace function exai.live_header_v1(v public.conversations) returns json language plpgsql stable as $$ begin
  if v.title = '{BROKEN}' then raise 'cannot be read'; end if;
  if v.title = '{SLOW}' then perform pg_advisory_xact_lock_shared({GATE}); end if;
  return exai.header_v0(v);
end $$
"""


class Rig:
    """A repository behind a counting proxy, with `names` of conversations that hold one message."""

    def __init__(self, proxy: PgProxy, recorder: Counters, database: Database, sql: OneTrip) -> None:
        self.proxy, self.recorder, self.database, self.sql = proxy, recorder, database, sql
        self.repository = ConversationRepository(database)
        self.names: list[ContinuationId] = []

    def sent(self) -> tuple[float, float]:
        """Statements for several newest pages, and for one, that were answered so far."""
        return (
            self.recorder["db_statements_total", "read_pages"],
            self.recorder["db_statements_total", "read_page"],
        )

    def failed(self, statement: str) -> float:
        return sum(n for key, n in self.recorder.counts.items() if key[:2] == ("db_errors_total", statement))

    async def alone(self, name: str, owner: Owner = LOCAL_OWNER) -> StoredPage:
        return await self.repository.read_page(ConversationKey(owner, ContinuationId(name)))

    async def read(self, names: Iterable[str]) -> list[StoredPage | BaseException]:
        return await asyncio.gather(*map(self.alone, names), return_exceptions=True)

    async def conversation(self, *contents: str, title: str | None = None) -> ContinuationId:
        name = (await conversation_of(self.repository, *contents)).continuation_id
        await self.sql.execute("update conversations set title = $1 where continuation_id = $2", title, name)
        return name

    async def fork(self, source: ContinuationId) -> ContinuationId:
        forked = await CurationRepository(self.database).fork(
            ConversationKey(LOCAL_OWNER, source), once(), new_conversation_id=ConversationId(new_id())
        )
        assert forked.commit is not None
        return forked.commit.conversation.continuation_id

    @asynccontextmanager
    async def troubled(self) -> AsyncIterator[None]:
        """As long as this lasts, slow conversations cannot be read; broken ones never can."""
        await self.sql.execute(HEADER.read_text("utf-8").replace("exai.live_header_v1", "exai.header_v0"))
        await self.sql.execute(TROUBLE)
        async with self.sql.transaction():
            await self.sql.execute(f"select pg_advisory_xact_lock({GATE})")
            yield

    async def stuck(self, names: Iterable[ContinuationId]) -> list[asyncio.Task[StoredPage]]:
        """Reads of slow conversations, each by a statement of its own that hangs."""
        tasks = []
        for name in names:
            tasks.append(asyncio.create_task(self.alone(name)))
            await wait_until(lambda: self.database.usage()[0] == len(tasks))
        return tasks


@asynccontextmanager
async def rig_at(url: str, **settings: float) -> AsyncIterator[Rig]:
    recorder = Counters()
    async with PgProxy(url) as proxy, opened(proxy.url, recorder=recorder, **settings) as database:
        sql = await connect(parse_address(url), timeout_s=5)
        rig = Rig(proxy, recorder, database, sql)
        for number in range(NUMBER):
            rig.names.append((await conversation_of(rig.repository, f"first {number}")).continuation_id)
        proxy.reset()
        yield rig
        await sql.close()


@pytest.fixture
async def rig(postgres_url: str) -> AsyncIterator[Rig]:
    async with rig_at(postgres_url) as rig:
        yield rig


def pages(answers: list[StoredPage | BaseException]) -> list[StoredPage]:
    return [answer for answer in answers if isinstance(answer, StoredPage)]


def firsts(answers: list[StoredPage | BaseException]) -> list[str]:
    return [page.messages[0].content for page in pages(answers)]


@pytest.mark.parametrize("way", ["direct", "pooler"])
async def test_reads_that_come_together_are_one_statement(postgres_url: str, way: str) -> None:
    """Each gets its own page, with all that it gets alone."""
    async with AsyncExitStack() as stack:
        url = postgres_url if way == "direct" else (await stack.enter_async_context(Pooler(postgres_url))).url
        rig = await stack.enter_async_context(rig_at(url))
        together = await rig.read(rig.names)
        assert (rig.proxy.round_trips, len(rig.proxy.statements), rig.sent()) == (1, 1, (1, 0))
        assert firsts(together) == [f"first {number}" for number in range(NUMBER)]
        assert together == [await rig.alone(name) for name in rig.names]


async def test_a_read_that_comes_alone_is_sent_at_once(rig: Rig) -> None:
    """As if there were no groups."""
    for name in rig.names:
        await rig.alone(name)
    assert (rig.proxy.round_trips, rig.sent()) == (NUMBER, (0, NUMBER))


async def test_other_pages_are_read_as_ever(rig: Rig) -> None:
    """Older ones, and those of another length."""
    name = rig.names[0]
    await asyncio.gather(
        *(rig.repository.read_page(ConversationKey(LOCAL_OWNER, name), before_seq=2) for _ in range(2)),
        *(rig.repository.read_page(ConversationKey(LOCAL_OWNER, name), limit=PAGE_MESSAGES - 1) for _ in range(2)),
    )
    assert rig.sent() == (0, 4)


async def test_many_more_than_a_group_holds(rig: Rig) -> None:
    """They go in as few statements as hold them, several of one conversation in one group as well."""
    answers = await rig.read(rig.names * 5)
    assert firsts(answers) == [f"first {number}" for number in range(NUMBER)] * 5
    assert rig.sent() == (5, 0)


async def test_each_caller_of_a_batch_gets_its_own_page_or_error(rig: Rig) -> None:
    """Pages of any form and errors, all by one statement."""
    name, other, gone, *_ = rig.names
    long = await rig.conversation("short", LONG, "short")
    many = await rig.conversation(*(f"{number}" for number in range(PAGE_MESSAGES + 3)))
    fork = await rig.fork(many)
    empty = ContinuationId("empty")
    await rig.sql.execute("insert into conversations (continuation_id) values ($1)", empty)
    await rig.sql.execute("update conversations set deleted_at = now() where continuation_id = $1", gone)
    before = rig.sent()
    answers = await rig.read([name, long, "nowhere", fork, gone, many, empty, other])
    assert rig.sent() == (before[0] + 1, before[1])
    missing = [answer for answer in answers if isinstance(answer, NotFound)]
    assert ([answer.name for answer in missing], len(pages(answers))) == (["nowhere", gone], 6)
    assert [isinstance(answers[number], NotFound) for number in (2, 4)] == [True, True]
    for page in pages(answers):
        assert page == await rig.alone(page.conversation.continuation_id)
        assert_consecutive(page.messages)
    assert [len(page.messages) for page in pages(answers)] == [1, 3, PAGE_MESSAGES, PAGE_MESSAGES, 0, 1]


async def test_owners_do_not_mix_within_a_group(rig: Rig) -> None:
    """Also where conversations of several have the same name."""
    owners = [Owner("a"), Owner("b"), LOCAL_OWNER]
    for owner in owners[:2]:
        await rig.sql.execute(
            "insert into conversations (owner, continuation_id, title) values ($1, 'same', $1), ($1, $1, $1)", owner
        )
    asked = [(owner, name) for owner in owners for name in ("same", "a", "b")][:NUMBER]
    answers = await asyncio.gather(*(rig.alone(name, owner) for owner, name in asked), return_exceptions=True)
    assert rig.sent() == (1, 0)
    for (owner, name), answer in zip(asked, answers, strict=True):
        if owner in "ab" and name in ("same", owner):
            assert isinstance(answer, StoredPage)
            assert (answer.conversation.owner, answer.conversation.title) == (owner, owner)
            assert answer.conversation.continuation_id == name
        else:
            assert isinstance(answer, NotFound), (owner, name)


async def test_a_cancelled_caller_does_not_affect_its_batch(rig: Rig) -> None:
    """Neither before its batch is sent nor afterwards, as its first or only reader; places are released."""
    for turns in range(5):
        tasks = [asyncio.create_task(rig.alone(name)) for name in rig.names]
        for _ in range(turns):
            await asyncio.sleep(0)
        tasks[0].cancel()
        tasks[1].cancel()
        assert {len((await task).messages) for task in tasks[2:]} == {1}
        alone = asyncio.create_task(rig.alone(rig.names[0]))
        for _ in range(turns):
            await asyncio.sleep(0)
        alone.cancel()
        await asyncio.wait({alone})
        assert rig.repository._page_reads._batcher.in_flight == 0, turns


async def test_who_left_before_being_sent_is_not_read_for(rig: Rig) -> None:
    """And the only one left is sent as one who comes alone."""
    rig.proxy.stall()
    stuck = await rig.stuck(rig.names[:STUCK])
    waiting = [asyncio.create_task(rig.alone(name)) for name in rig.names[STUCK:]]
    await asyncio.sleep(0)
    for task in waiting[1:]:
        task.cancel()
    rig.proxy.open.set()
    assert [(await task).conversation.continuation_id for task in (*stuck, waiting[0])] == rig.names[: STUCK + 1]
    assert (len(rig.proxy.statements), rig.sent()) == (STUCK + 1, (0, STUCK + 1))


async def test_a_statement_without_waiting_callers_is_cancelled(rig: Rig) -> None:
    """As that of one caller would be; before it was sent, and while the server is at it."""
    for turns in range(5):
        tasks = [asyncio.create_task(rig.alone(name)) for name in rig.names]
        for _ in range(turns):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert rig.repository._page_reads._batcher.in_flight == 0, turns
    await wait_until(lambda: rig.database.usage() == (0, POOL_SIZE, POOL_SIZE))
    rig.proxy.reset()
    slow = [await rig.conversation("x", title=SLOW) for _ in range(3)]
    async with rig.troubled():
        tasks = [asyncio.create_task(rig.alone(name)) for name in slow]
        await wait_until(lambda: any("unnest" in text for text in rig.proxy.statements))
        for task in tasks:
            task.cancel()
        await wait_until(lambda: rig.database.usage() == (0, POOL_SIZE, POOL_SIZE))
        assert rig.proxy.cancels == 1
        assert await rig.alone(rig.names[0]) == (await rig.read(rig.names))[0]
    assert rig.sent() == (1, 1)


async def test_a_deadline_is_its_callers_own(rig: Rig) -> None:
    """A caller whose deadline passed gets an error; the others get their pages, also if it was the first."""
    rig.proxy.stall()

    async def hurried(name: ContinuationId) -> StoredPage:
        with with_deadline(0.05):
            return await rig.alone(name)

    hurry = asyncio.create_task(hurried(rig.names[0]))
    others = [asyncio.create_task(rig.alone(name)) for name in rig.names[1:]]
    with pytest.raises(DeadlineExceeded, match="read_page"):
        await hurry
    rig.proxy.open.set()
    assert {len((await task).messages) for task in others} == {1}
    assert rig.sent() == (1, 0)


async def test_no_page_is_read_after_its_callers_deadline(rig: Rig) -> None:
    """The caller gets its error at once, and no statement is sent."""
    with with_deadline(0):
        answers = await rig.read(rig.names)
    assert {type(answer) for answer in answers} == {DeadlineExceeded}
    await rig.alone(rig.names[0])
    assert (len(rig.proxy.statements), rig.sent()) == (1, (0, 1))


async def test_a_page_that_cannot_be_read_fails_alone(rig: Rig) -> None:
    """It fails the statement of the batch; then each page is read by itself, and one reader gets the error."""
    broken = await rig.conversation("x", title=BROKEN)
    async with rig.troubled():
        answers = await rig.read([broken, *rig.names[1:]])
    assert isinstance(answers[0], DatabaseError)
    assert firsts(answers) == [f"first {number}" for number in range(1, NUMBER)]
    assert (rig.failed("read_pages"), rig.failed("read_page"), rig.sent()) == (1, 1, (0, NUMBER - 1))


@pytest.mark.direct
@pytest.mark.parametrize("way", ["direct", "pooler"])
async def test_a_page_that_takes_too_long_fails_alone(postgres_url: str, way: str) -> None:
    """The group's statement is cancelled, by the server or by us, but not repeated; and then its own."""
    async with AsyncExitStack() as stack:
        url = postgres_url if way == "direct" else (await stack.enter_async_context(Pooler(postgres_url))).url
        rig = await stack.enter_async_context(rig_at(url, statement_timeout_s=1.0))
        slow = await rig.conversation("x", title=SLOW)
        async with rig.troubled():
            answers = await rig.read([slow, *rig.names[1:]])
        assert isinstance(answers[0], DatabaseBusy if way == "direct" else DatabaseUnavailable)
        assert firsts(answers) == [f"first {number}" for number in range(1, NUMBER)]
        attempts = 1 if way == "direct" else 1 + RETRIES
        assert (rig.failed("read_pages"), rig.failed("read_page"), rig.sent()) == (1, attempts, (0, NUMBER - 1))


async def test_a_network_that_fails_for_a_moment_is_not_noticed(rig: Rig) -> None:
    """The group's statement is repeated, as that of a single read."""
    rig.proxy.stall()
    reads = asyncio.create_task(rig.read(rig.names))
    await wait_until(lambda: len(rig.proxy.statements) == 1)
    rig.proxy.drop()
    rig.proxy.open.set()
    assert len(pages(await reads)) == NUMBER
    assert (rig.recorder["db_retries_total", "read_pages"], rig.sent()) == (1, (1, 0))


async def test_an_unavailable_database_fails_all_readers_of_a_batch(postgres_url: str) -> None:
    """All get the error of the batch, and none repeats its read."""
    async with rig_at(postgres_url, acquire_timeout_s=0.2) as rig:
        rig.proxy.stall()
        reads = asyncio.create_task(rig.read(rig.names))
        await wait_until(lambda: len(rig.proxy.statements) == 1)
        rig.proxy.refuse()
        rig.proxy.open.set()
        answers = await reads
        assert {type(answer) for answer in answers} == {DatabaseUnavailable}
        assert len({id(answer) for answer in answers}) == NUMBER, "each has an error of its own"
        assert (len(rig.proxy.statements), rig.failed("read_page")) == (1, 0)
        rig.proxy.serve()
        await wait_until(lambda: rig.database.usage() == (0, POOL_SIZE, POOL_SIZE))
        assert len(pages(await rig.read(rig.names))) == NUMBER


async def test_a_pool_without_a_free_connection_fails_all_readers(postgres_url: str) -> None:
    """A place in it was waited for once, and not again by each."""
    async with rig_at(postgres_url, acquire_timeout_s=0.2) as rig:
        slow = [await rig.conversation("x", title=SLOW) for _ in range(POOL_SIZE)]
        async with rig.troubled():
            stuck = await rig.stuck(slow)
            answers = await rig.read(rig.names)
            assert {type(answer) for answer in answers} == {DatabaseBusy}
            assert (rig.failed("read_pages"), rig.failed("read_page")) == (1, 0)
        assert {len((await task).messages) for task in stuck} == {1}


async def test_a_closed_pool_reports_the_shutdown(postgres_url: str) -> None:
    """Each caller of a batch receives the error."""
    async with rig_at(postgres_url) as rig:
        pass
    answers = await rig.read(rig.names)
    assert {type(answer) for answer in answers} == {ShuttingDown}


async def test_the_wait_for_a_statement_that_hangs_is_bounded(rig: Rig) -> None:
    """As many as may be under way hang; the others go on without them."""
    slow = [await rig.conversation("x", title=SLOW) for _ in range(STUCK)]
    async with rig.troubled():
        stuck = await rig.stuck(slow)
        assert len(pages(await rig.read(rig.names))) == NUMBER
        assert not any(task.done() for task in stuck)
        assert rig.sent() == (1, 0)
    assert {len((await task).messages) for task in stuck} == {1}


async def test_those_who_were_answered_are_forgotten_at_once(rig: Rig) -> None:
    """With their pages, which can be large, and without a garbage collector."""
    gc.collect()
    gc.disable()
    try:
        assert len(pages(await rig.read(rig.names))) == NUMBER
        await asyncio.sleep(0)
        entries = [each for each in gc.get_objects() if isinstance(each, _Entry)]
        assert not [each for each in entries if each.item in [(LOCAL_OWNER, name) for name in rig.names]]
    finally:
        gc.enable()


@pytest.mark.parametrize("way", ["direct", "pooler"])
async def test_readers_and_writers_at_once_see_what_was_acknowledged(postgres_url: str, way: str) -> None:
    """The snapshot of a page is taken after its request: no reader misses an earlier acknowledged message."""
    rounds = 20
    async with AsyncExitStack() as stack:
        url = postgres_url if way == "direct" else (await stack.enter_async_context(Pooler(postgres_url))).url
        rig = await stack.enter_async_context(rig_at(url, acquire_timeout_s=30))
        acknowledged = dict.fromkeys(rig.names, 1)

        async def write(name: ContinuationId) -> None:
            for number in range(rounds):
                result = await rig.repository.append(appending(name, f"{number}"))
                assert result.last_seq is not None
                acknowledged[name] = result.last_seq

        async def read(name: ContinuationId) -> None:
            last = 0
            while last <= rounds:
                known = acknowledged[name]
                page = await rig.alone(name)
                assert_consecutive(page.messages)
                last = page.conversation.last_seq
                assert known <= last == page.messages[-1].seq

        async with asyncio.timeout(60):
            await asyncio.gather(*(do(name) for name in rig.names for do in (write, read, read, read)))
        grouped, single = rig.sent()
        assert grouped > single, "with so many readers most go together"
        assert rig.database.usage()[0] == 0


@pytest.mark.parametrize("seed", range(6))
async def test_what_is_read_together_equals_what_is_read_alone(rig: Rig, seed: int) -> None:
    """For conversations of any form, and readers in any number."""
    rng = random.Random(seed)
    names = list(rig.names)
    for _ in range(8):
        if rng.random() < 0.4:
            names.append(await rig.fork(rng.choice(names)))
        else:
            sizes = [rng.choice((1, 10, 1_000)) for _ in range(rng.choice((1, 3, 49, 50, 51, 120)))]
            contents = [rng.choice('é,\n[]"\\x') * size for size in sizes] + [LONG] * (rng.random() < 0.3)
            names.append(await rig.conversation(*contents, title=f"title {rng.random()}"))
    for name in rng.sample(names, 2):
        await rig.sql.execute("update conversations set deleted_at = now() where continuation_id = $1", name)
    names.append(ContinuationId("nowhere"))
    alone = {name: (await rig.read([name]))[0] for name in names}
    assert len(pages(list(alone.values()))) == len(names) - 3
    single = rig.sent()[1]
    for number in (2, 7, 8, 16, 24):
        asked = [rng.choice(names) for _ in range(number)]
        for name, answer in zip(asked, await rig.read(asked), strict=True):
            expected = alone[name]
            if isinstance(expected, StoredPage):
                assert answer == expected
            else:
                assert (type(answer), str(answer)) == (type(expected), str(expected))
    assert rig.sent()[1] == single


async def test_each_request_has_its_own_count_of_the_round_trips_it_waited_for(rig: Rig) -> None:
    """A shared statement is one round trip of each."""

    async def counted(name: ContinuationId) -> int:
        work = RequestWork()
        request_work.set(work)
        await rig.alone(name)
        return work.statements

    before = rig.proxy.round_trips
    assert await asyncio.gather(*map(counted, rig.names)) == [1] * len(rig.names)
    assert rig.proxy.round_trips - before < len(rig.names)
