"""Concurrent appends share a statement, and are independent of each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from exai.db.batching.appends import MOST_APPENDS, MOST_CHARS
from exai.db.conversations import ConversationRepository
from exai.db.driver.address import parse_address
from exai.db.driver.pool import OneTrip, connect
from exai.db.records import AppendResult, AppendStart
from exai.errors import DatabaseError, DeadlineExceeded, OutcomeUnknown
from exai.fairness import RequestWork, request_work
from exai.models import LOCAL_OWNER, ContinuationId, ConversationId, ConversationKey, FileId, NewMessage, Owner
from exai.resilience import with_deadline
from tests.support.counters import Counters
from tests.support.database import POOL_SIZE, appending, contents_of, conversation_of, new_id, opened
from tests.support.pg_proxy import PgProxy
from tests.support.waiting import wait_until

NUMBER = 8
STUCK = 2
NEW = ConversationId(new_id())


class Rig:
    """A repository behind a counting proxy, with `names` of conversations that hold one message."""

    def __init__(self, proxy: PgProxy, recorder: Counters, repository: ConversationRepository, sql: OneTrip) -> None:
        self.proxy, self.recorder, self.repository, self.sql = proxy, recorder, repository, sql
        self.names: list[ContinuationId] = []

    def sent(self) -> tuple[float, float]:
        """Statements for several appends, and for one, so far."""
        return (
            self.recorder["db_statements_total", "append_group"],
            self.recorder["db_statements_total", "append"] - NUMBER,
        )

    async def append(self, *starts: AppendStart) -> list[AppendResult | BaseException]:
        return await asyncio.gather(*(self.repository.append(start) for start in starts), return_exceptions=True)

    async def contents(self) -> list[list[str]]:
        return [await contents_of(self.repository, name) for name in self.names]

    @asynccontextmanager
    async def held(self, name: str) -> AsyncIterator[None]:
        """The conversation, locked by another writer."""
        async with self.sql.transaction():
            await self.sql.execute("select from conversations where continuation_id = $1 for update", name)
            yield


@pytest.fixture
async def rig(postgres_url: str) -> AsyncIterator[Rig]:
    recorder = Counters()
    async with PgProxy(postgres_url) as proxy, opened(proxy.url, recorder=recorder) as database:
        sql = await connect(database.address, timeout_s=5)
        rig = Rig(proxy, recorder, ConversationRepository(database), sql)
        for number in range(NUMBER):
            rig.names.append((await conversation_of(rig.repository, f"first {number}")).continuation_id)
        yield rig
        await sql.close()


def results(answers: list[AppendResult | BaseException]) -> list[AppendResult]:
    return [answer for answer in answers if isinstance(answer, AppendResult)]


async def test_appends_that_come_together_are_one_statement(rig: Rig) -> None:
    """For any number of messages; each append has its own answer."""
    starts = [appending(name, *[f"{name} {n}" for n in range(i + 1)]) for i, name in enumerate(rig.names)]
    rig.proxy.reset()
    answers = results(await rig.append(*starts))
    assert rig.sent() == (1, 0)
    assert (rig.proxy.round_trips, len(rig.proxy.statements)) == (1, 1)
    for i, (name, answer) in enumerate(zip(rig.names, answers, strict=True)):
        assert (answer.status, answer.first_seq, answer.last_seq) == ("appended", 2, 2 + i)
        assert (answer.commit.base_revision, answer.commit.revision) == (1, 2)
        assert answer.commit is not None
        assert (answer.commit.conversation.continuation_id, answer.commit.conversation.revision) == (name, 2)
        page = await rig.repository.read_page(ConversationKey(LOCAL_OWNER, name))
        assert page.messages[1:] == answer.commit.added
        assert page.conversation == answer.commit.conversation
        assert page.server_epoch == answer.commit.server_epoch


async def test_each_request_has_its_own_count_of_the_round_trips_it_waited_for(rig: Rig) -> None:
    """A shared statement is one round trip of each, and a second one is counted for the append that needed it."""

    async def counted(start: AppendStart) -> int:
        work = RequestWork()
        request_work.set(work)
        await rig.repository.append(start)
        return work.statements

    starts = [appending(name, "two") for name in rig.names]
    async with rig.held(rig.names[0]):
        tasks = [asyncio.create_task(counted(start)) for start in starts]
        assert await asyncio.wait_for(asyncio.gather(*tasks[1:]), 30) == [1] * (NUMBER - 1)
    assert await tasks[0] == 2
    assert rig.sent() == (1, 1)


async def test_an_append_that_comes_alone_is_sent_at_once(rig: Rig) -> None:
    """As if there were no groups."""
    for name in rig.names:
        assert (await rig.repository.append(appending(name, "next"))).status == "appended"
    assert rig.sent() == (0, NUMBER)


async def test_everything_of_a_message_is_kept(rig: Rig) -> None:
    """Roles, kinds and metadata go to the right message, empty texts and other alphabets too."""
    said = [
        [NewMessage("user", f"{i}-{n} ünï 漢字 \u2028 '\"\\{{}}", "note" if n % 2 else "message", {"n": [n, None, "x"]})
         for n in range(3)] + [NewMessage("assistant", "")]
        for i in range(NUMBER)
    ]  # fmt: skip
    await rig.append(*(appending(name, messages=said[i]) for i, name in enumerate(rig.names)))
    assert rig.sent() == (1, 0)
    for i, name in enumerate(rig.names):
        page = await rig.repository.read_page(ConversationKey(LOCAL_OWNER, name))
        found = [NewMessage(m.role, m.content, m.kind, dict(m.metadata)) for m in page.messages[1:]]
        assert found == said[i]


async def test_appends_to_one_conversation_follow_each_other(rig: Rig) -> None:
    """A group holds one append of each conversation; none is lost, none makes a hole."""
    name, other, *_ = rig.names
    answers = results(await rig.append(*(appending(each, f"m{n}") for n in range(10) for each in (name, other))))
    assert [answer.status for answer in answers] == ["appended"] * 20
    for each in (name, other):
        assert sorted((await contents_of(rig.repository, each))[1:]) == sorted(f"m{n}" for n in range(10))
    assert rig.sent()[0] >= 1


async def test_a_locked_conversation_delays_no_other(rig: Rig) -> None:
    """Its own append is sent by itself and waits; the group did not."""
    async with rig.held(rig.names[0]):
        tasks = [asyncio.create_task(rig.repository.append(appending(name, "two"))) for name in rig.names]
        await asyncio.wait_for(asyncio.gather(*tasks[1:]), 30)
        assert rig.sent() == (1, 0)
        assert not tasks[0].done()
    assert (await tasks[0]).status == "appended"
    assert rig.sent() == (1, 1)


async def test_append_that_cannot_be_batched_has_its_own_error(rig: Rig) -> None:
    """Each error is the one of a single append, and the others are stored."""
    gone, moved, used, *rest = rig.names
    await rig.sql.execute("update conversations set deleted_at = now() where continuation_id = $1", gone)
    await rig.repository.append(appending(used, "before", key="used"))
    answers = await rig.append(
        appending(gone, "x"),
        appending(moved, "x", expected_revision=7),
        appending(used, "other", key="used", request_hash="another"),
        appending("nowhere", "x"),
        appending(rest[0], "x", owner=Owner("somebody else")),
        appending(rest[1], "x", expected_revision=1),
        *(appending(name, "x") for name in rest[2:]),
    )
    statuses = [answer.status for answer in results(answers)]
    assert statuses[:5] == ["deleted", "conflict_revision", "conflict_key", "not_found", "not_found"]
    assert set(statuses[5:]) == {"appended"}
    assert await contents_of(rig.repository, rest[0]) == [f"first {rig.names.index(rest[0])}"]


async def test_a_repeated_key_is_stored_once(rig: Rig) -> None:
    """Together with its first time, and after it."""
    name, *others = rig.names
    first = appending(name, "once", key="once")
    answers = results(
        await rig.append(*(appending(each, "x") for each in others), first, appending(name, "once", key="once"))
    )
    assert sorted(answer.status for answer in answers[-2:]) == ["appended", "duplicate"]
    again = results(await rig.append(*(appending(each, "y") for each in others), appending(name, "once", key="once")))
    assert (again[-1].status, again[-1].first_seq) == ("duplicate", 2)
    assert (await contents_of(rig.repository, name))[1:] == ["once"]


async def test_one_that_fails_fails_alone(rig: Rig) -> None:
    """An append that the server refuses rolls the batch back; then each is sent by itself."""
    bad = appending(rig.names[0], messages=[NewMessage("nobody", "x")])  # type: ignore[arg-type]
    answers = await rig.append(bad, *(appending(name, "x") for name in rig.names[1:]))
    assert isinstance(answers[0], DatabaseError)
    assert [answer.status for answer in results(answers)] == ["appended"] * (NUMBER - 1)
    assert [len(each) for each in await rig.contents()] == [1, *[2] * (NUMBER - 1)]


async def test_a_lost_reply_is_settled_by_each_key(rig: Rig) -> None:
    """The batch stored all appends; each is repeated under its key, none is stored twice, no caller repeats."""
    rig.proxy.lose_reply_to("append_batch_v1")
    answers = results(await rig.append(*(appending(name, "two") for name in rig.names)))
    assert rig.proxy.lost.is_set()
    assert [(answer.status, answer.first_seq) for answer in answers] == [("appended", 2)] * NUMBER
    assert [[message.content for message in answer.commit.added] for answer in answers] == [["two"]] * NUMBER
    assert [each[1:] for each in await rig.contents()] == [["two"]] * NUMBER


async def test_an_unknown_outcome_stays_unknown(rig: Rig) -> None:
    """If the reply of the batch was lost and the server then failed, no error states that nothing was written."""
    rig.proxy.lose_reply_to("append_batch_v1")
    tasks = [asyncio.create_task(rig.repository.append(appending(name, "two"))) for name in rig.names]
    await rig.proxy.lost.wait()
    rig.proxy.refuse()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    rig.proxy.serve()
    assert {type(answer) for answer in answers} == {OutcomeUnknown}
    assert len({id(answer) for answer in answers}) == NUMBER, "each has an error of its own, with its own cause"


async def test_a_deadline_while_the_group_is_under_way_leaves_doubt(rig: Rig) -> None:
    """The one whose time is over cannot know; those with time get their answers."""
    rig.proxy.stall()

    async def hurried(name: ContinuationId) -> AppendResult:
        with with_deadline(0.05):
            return await rig.repository.append(appending(name, "two"))

    hurry = asyncio.create_task(hurried(rig.names[0]))
    others = [asyncio.create_task(rig.repository.append(appending(name, "two"))) for name in rig.names[1:]]
    with pytest.raises(OutcomeUnknown):
        await hurry
    rig.proxy.open.set()
    assert {answer.status for answer in await asyncio.gather(*others)} == {"appended"}
    assert [each[1:] for each in await rig.contents()] == [["two"]] * NUMBER


async def test_a_deadline_before_anything_was_sent_is_no_doubt(rig: Rig) -> None:
    """Its turn had not come, so nothing is written, not even with those that came after it; no place is kept for it."""

    async def too_late() -> AppendResult:
        with with_deadline(0):
            return await rig.repository.append(appending(rig.names[0], "two"))

    for _ in range(STUCK):
        with pytest.raises(DeadlineExceeded):
            await too_late()
        await asyncio.sleep(0)
    others = [rig.repository.append(appending(name, "two")) for name in rig.names[1:]]
    hurry, *answers = await asyncio.gather(too_late(), *others, return_exceptions=True)
    assert isinstance(hurry, DeadlineExceeded)
    assert [answer.status for answer in results(answers)] == ["appended"] * (NUMBER - 1)
    assert (await contents_of(rig.repository, rig.names[0])) == ["first 0"]
    assert rig.sent() == (1, 0)


async def test_a_cancelled_caller_does_not_affect_its_batch(rig: Rig) -> None:
    """Neither before the batch is sent nor afterwards; places are released."""
    for turns in range(3 * STUCK):
        tasks = [asyncio.create_task(rig.repository.append(appending(name, "x"))) for name in rig.names]
        await asyncio.sleep(0)
        tasks[0].cancel()
        tasks[1].cancel()
        assert {(await task).status for task in tasks[2:]} == {"appended"}
        alone = asyncio.create_task(rig.repository.append(appending(rig.names[0], "y")))
        for _ in range(turns % 4):
            await asyncio.sleep(0)
        alone.cancel()
        await asyncio.wait({alone})
    before = rig.sent()
    assert len(results(await rig.append(*(appending(name, "z") for name in rig.names)))) == NUMBER
    assert rig.sent() == (before[0] + 1, before[1])


async def test_the_wait_for_a_statement_that_hangs_is_bounded(rig: Rig) -> None:
    """As many as may be in flight wait for locks; the other appends are sent without them."""
    held = rig.names[:STUCK]
    assert STUCK < POOL_SIZE
    async with rig.held(held[0]):
        await rig.sql.execute("select from conversations where continuation_id = any($1) for update", list(held))
        stuck = []
        for name in held:
            stuck.append(asyncio.create_task(rig.repository.append(appending(name, "x"))))
            await wait_until(lambda: rig.proxy.statements[-1:] and "append_v1" in rig.proxy.statements[-1])
            rig.proxy.reset()
        others = rig.names[STUCK:]
        answers = results(await rig.append(*(appending(name, "x") for name in others)))
        assert [answer.status for answer in answers] == ["appended"] * len(others)
        assert not any(task.done() for task in stuck)
    assert {(await task).status for task in stuck} == {"appended"}


async def test_large_appends_are_sent_alone(rig: Rig) -> None:
    """An append that is large for any reason would delay the others."""
    large = appending(rig.names[0], "x" * (MOST_CHARS + 1))
    laden = appending(rig.names[1], messages=[NewMessage("user", "x", "message", {"x": "x" * MOST_CHARS})])
    await rig.append(large, laden, appending(rig.names[2], "x"))
    assert rig.sent() == (0, 3)


async def test_new_conversations_are_made_together(rig: Rig) -> None:
    """Each with its own name and title, beside those that go on; a repeated key makes none."""
    starts = [appending(None, f"new {n}", "two", key=f"key {n}", title=f"title {n}" if n else None) for n in range(4)]
    answers = results(await rig.append(*starts, appending(rig.names[0], "more")))
    assert rig.sent() == (1, 0)
    for n, (start, answer) in enumerate(zip(starts, answers[:4], strict=True)):
        assert (answer.status, answer.first_seq, answer.last_seq, answer.commit.base_revision) == ("appended", 1, 2, 0)
        page = await rig.repository.read_page(ConversationKey(LOCAL_OWNER, ContinuationId(start.new_conversation_id)))
        assert page.conversation == answer.commit.conversation
        assert page.conversation.title == (f"title {n}" if n else None)
        assert page.messages == answer.commit.added
    assert (answers[4].status, answers[4].first_seq) == ("appended", 2)
    again = [appending(None, f"new {n}", "two", key=f"key {n}", title=None) for n in range(4)]
    repeated = results(await rig.append(*again))
    assert [answer.status for answer in repeated] == ["duplicate"] * 4
    assert [answer.commit.conversation for answer in repeated] == [answer.commit.conversation for answer in answers[:4]]
    assert await rig.sql.fetchval("select count(*) from conversations") == NUMBER + 4


async def test_files_are_linked_by_a_batch(rig: Rig) -> None:
    """To the right conversation; a missing file, or one of another owner, stops its own append only."""
    rows = await rig.sql.fetch(
        "insert into files (owner, name) select owner, i from unnest('{local,local,local,other}'::text[])"
        " with ordinality o(owner, i) returning id::text"
    )
    one, two, three, foreign = (FileId(row["id"]) for row in rows)
    answers = await rig.append(
        appending(rig.names[0], "x", file_ids=[one, two]),
        appending(rig.names[1], "x", file_ids=[two, two, three]),
        appending(None, "x", file_ids=[one], new_conversation_id=NEW),
        appending(rig.names[2], "x", file_ids=[one, foreign]),
        appending(None, "x", file_ids=[FileId(new_id())]),
        appending(rig.names[3], "x"),
    )
    assert [answer.status for answer in results(answers)] == [
        *("appended", "appended", "appended", "file_not_found", "file_not_found", "appended")
    ]
    assert rig.sent() == (1, 2)
    links = await rig.sql.fetch(
        "select c.continuation_id, l.file_id::text from conversation_files l"
        " join conversations c on c.id = l.conversation_id"
    )
    assert sorted(map(tuple, links)) == sorted(
        [(rig.names[0], one), (rig.names[0], two), (rig.names[1], two), (rig.names[1], three), (NEW, one)]
    )
    assert (await contents_of(rig.repository, rig.names[2])) == ["first 2"]


async def test_many_more_than_a_group_holds(rig: Rig) -> None:
    """They go in several, in the order they came in; the last of them as two halves."""
    names = [(await conversation_of(rig.repository, "first")).continuation_id for _ in range(3 * MOST_APPENDS)]
    answers = results(await rig.append(*(appending(name, "x") for name in names)))
    assert [answer.status for answer in answers] == ["appended"] * len(names)
    assert rig.sent()[0] == 4


async def test_keys_are_claimed_in_the_same_order_everywhere(rig: Rig) -> None:
    """Also where owners use the same key: a group that waits for one of them has not claimed any later one."""
    owners = [Owner("a"), Owner("b")]
    claim = (
        "insert into turns (conversation_id, owner, request_key, request_hash, tool, state, claimed_by, lease_until,"
        " revision) values (gen_random_uuid(), $1, 'same', 'h', 't', 'finished', gen_random_uuid(), now(), 1)"
        " on conflict do nothing returning 1"
    )
    waiting = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    other = await connect(parse_address(rig.proxy.url), timeout_s=5)
    await rig.sql.execute("alter table turns drop constraint turns_conversation_fkey")
    claims = other.transaction()
    await claims.start()
    assert await other.fetchval(claim, owners[0])
    group = asyncio.create_task(rig.append(*(appending(None, "x", key="same", owner=owner) for owner in owners[::-1])))
    async with asyncio.timeout(5):
        while not await rig.sql.fetchval(waiting):
            await asyncio.sleep(0.01)
    assert await other.fetchval(claim, owners[1])
    await claims.rollback()
    await other.close()
    assert [answer.status for answer in results(await group)] == ["appended"] * 2
    assert rig.sent() == (1, 0)
    assert rig.recorder["db_retries_total", "append_group"] == 0


async def test_changes_of_foreign_triggers_are_in_the_returned_header(rig: Rig) -> None:
    """A trigger of an older system may count the messages; the cache receives the row after it."""
    await rig.sql.execute(
        "create function counted() returns trigger language plpgsql as $$ begin"
        " update conversations set metadata = metadata || '{\"counted\": true}' where id = new.conversation_id;"
        " return null; end $$"
    )
    await rig.sql.execute("create trigger counted after insert on messages for each row execute function counted()")
    answers = results(await rig.append(*(appending(name, "x") for name in [*rig.names[1:], None])))
    assert rig.sent() == (1, 0)
    for answer in answers:
        assert answer.commit is not None
        page = await rig.repository.read_page(ConversationKey(LOCAL_OWNER, answer.commit.conversation.continuation_id))
        assert page.conversation == answer.commit.conversation
        assert page.conversation.metadata == {"counted": True}


@asynccontextmanager
async def stalled(url: str, names: int, **distance: float) -> AsyncIterator[tuple[Rig, list[ContinuationId]]]:
    """A repository with ten connections to a server that answers nothing more until the proxy is opened again."""
    recorder = Counters()
    async with PgProxy(url, **distance) as proxy, opened(proxy.url, recorder=recorder, pool_size=10) as database:
        rig = Rig(proxy, recorder, ConversationRepository(database), await connect(parse_address(url), timeout_s=5))
        rows = await rig.sql.fetch(
            "insert into conversations (owner, continuation_id)"
            " select 'local', 'far ' || i from generate_series(1, $1) i returning continuation_id",
            names,
        )
        proxy.reset()
        proxy.stall()
        yield rig, [ContinuationId(row["continuation_id"]) for row in rows]
        await rig.sql.close()


@pytest.mark.direct
async def test_appends_to_a_far_database_do_not_wait_for_each_other(postgres_url: str) -> None:
    """All are in flight at once, up to the share of the pool; further ones share a batch."""
    async with stalled(postgres_url, 12, latency_s=0.02) as (rig, names):
        tasks = []
        for number, name in enumerate(names[:7], 1):
            tasks.append(asyncio.create_task(rig.repository.append(appending(name, "x"))))
            await wait_until(lambda number=number: len(rig.proxy.statements) == number)
        assert not any(task.done() for task in tasks)
        tasks += [asyncio.create_task(rig.repository.append(appending(name, "x"))) for name in names[7:]]
        for _ in range(3):
            await asyncio.sleep(0)
        rig.proxy.open.set()
        assert {(await task).status for task in tasks} == {"appended"}
        assert len(rig.proxy.statements) == 8
        assert rig.recorder["db_statements_total", "append_group"] == 1


@pytest.mark.direct
async def test_appends_to_a_near_database_wait_for_the_one_in_flight(postgres_url: str) -> None:
    """They share the next statement, because the server is busy most of their time."""
    async with stalled(postgres_url, 12) as (rig, names):
        tasks = [asyncio.create_task(rig.repository.append(appending(names[0], "x")))]
        await wait_until(lambda: len(rig.proxy.statements) == 1)
        tasks += [asyncio.create_task(rig.repository.append(appending(name, "x"))) for name in names[1:]]
        for _ in range(3):
            await asyncio.sleep(0)
        rig.proxy.open.set()
        assert {(await task).status for task in tasks} == {"appended"}
        assert rig.recorder["db_statements_total", "append_group"] <= 2
        assert rig.recorder["db_statements_total", "append"] == 1
