"""The pool under failure: bounded waits, true errors, and a working pool afterwards."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from exai.db.conversations import ConversationRepository
from exai.db.driver.pool import Database, OneTrip, connect, open_pool
from exai.db.driver.statements import load_statements
from exai.errors import (
    ConfigError,
    DatabaseBusy,
    DatabaseUnavailable,
    DeadlineExceeded,
    OutcomeUnknown,
    SchemaMismatch,
    ShuttingDown,
)
from exai.models import LOCAL_OWNER, ConversationKey
from exai.resilience import with_deadline
from exai.settings.load import DatabaseSettings
from tests.fault.service import PostgresProxy
from tests.integration.db.conftest import STATEMENT_TIMEOUT_S
from tests.support.counters import Counters
from tests.support.database import POOL_SIZE, appending, contents_of, conversation_of, opened
from tests.support.pg_proxy import PgProxy
from tests.support.waiting import WAIT_LIMIT_S, wait_until

CONNECT_S = 1.5
FIRST_NUMBER_OF_OTHERS = 16_384
"""Postgres numbers what is not built in from here on."""


@asynccontextmanager
async def session(database: Database) -> AsyncIterator[OneTrip]:
    """A connection beside the pool, to hold locks and look around."""
    connection = await connect(database.address, timeout_s=5)
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def held(database: Database, name: str) -> AsyncIterator[None]:
    """Lock the conversation's row in another session."""
    async with session(database) as other, other.transaction():
        await other.execute("select from conversations where continuation_id = $1 for update", name)
        yield


async def waiting_for_a_lock(connection: OneTrip) -> int:
    return int(
        await connection.fetchval(
            "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        )
    )


async def test_a_held_conversation_is_busy_and_leaves_the_others_alone(database: Database) -> None:
    """A writer waits two seconds for a lock, no longer, and nothing was written."""
    repository = ConversationRepository(database)
    name = (await conversation_of(repository, "one")).continuation_id
    async with held(database, name):
        blocked = asyncio.create_task(repository.append(appending(name, "two")))
        await conversation_of(repository, "elsewhere")
        assert await contents_of(repository, name) == ["one"]
        with pytest.raises(DatabaseBusy, match="another writer"):
            await blocked
    assert (await repository.append(appending(name, "two"))).status == "appended"


async def test_an_exhausted_pool_is_busy_within_its_limit(postgres_url: str) -> None:
    """Shed instead of queueing without end; the pool serves on afterwards."""
    async with opened(postgres_url, acquire_timeout_s=0.05) as database:
        repository = ConversationRepository(database)
        name = (await conversation_of(repository, "one")).continuation_id
        async with held(database, name), session(database) as observer:
            tasks = [asyncio.create_task(repository.append(appending(name, "x"))) for _ in range(POOL_SIZE)]
            while await waiting_for_a_lock(observer) < POOL_SIZE:
                await asyncio.sleep(0)
            with pytest.raises(DatabaseBusy, match="all connections"):
                await repository.read_page(ConversationKey(LOCAL_OWNER, name))
            assert database.usage() == (POOL_SIZE, POOL_SIZE, POOL_SIZE)
        assert {(await task).status for task in tasks} == {"appended"}
        assert len(await contents_of(repository, name)) == 1 + POOL_SIZE


async def test_a_far_server_may_take_longer_for_all_descriptions_than_for_a_connection(postgres_url: str) -> None:
    """The time limit of a connection holds for each reply, as its pool describes every statement."""
    described = sum(each.is_described_at_start for each in load_statements().values())
    async with PostgresProxy(postgres_url) as proxy:
        proxy.latency_s = CONNECT_S / described
        async with opened(proxy.url, pool_size=1, connect_timeout_s=CONNECT_S) as database:
            assert database.usage() == (0, 1, 1)
            assert proxy.round_trips > described


async def test_a_statement_is_described_to_one_connection_of_a_pool(postgres_url: str) -> None:
    """A pool opens with few round trips, and a lost connection is replaced without describing."""
    texts = [each.text for each in load_statements().values() if each.is_described_at_start]
    async with PgProxy(postgres_url) as proxy, opened(proxy.url) as database:
        assert [proxy.statements.count(text) for text in texts] == [1] * len(texts)
        proxy.reset()
        proxy.drop()
        await wait_until(lambda: proxy.connects == POOL_SIZE and database.usage() == (0, POOL_SIZE, POOL_SIZE))
        await asyncio.gather(*(database.fetch("ping") for _ in range(POOL_SIZE)))
        assert proxy.front["D"] == 0


async def test_statements_have_types_that_are_the_same_in_every_database(database: Database) -> None:
    """The numbers of all others differ between databases, and a pool's next connection may reach another one."""
    connection = await database._connections.take(LOCAL_OWNER, WAIT_LIMIT_S)
    for statement in load_statements().values():
        found = await connection._get_statement(statement.text, None)
        types = [*found._get_parameters(), *(each.type for each in found._get_attributes())]
        assert [each for each in types if each.oid >= FIRST_NUMBER_OF_OTHERS] == [], statement.name
    database._connections.give(connection)


async def test_an_outage_is_an_immediate_error_until_the_server_is_found_again(postgres_url: str) -> None:
    """Callers wait during a restart, not during an outage."""
    later = itertools.count(step=10.0)
    async with PgProxy(postgres_url) as proxy, opened(proxy.url, clock=lambda: next(later), acquire_timeout_s=60) as db:
        proxy.refuse()
        async with asyncio.timeout(WAIT_LIMIT_S):
            while not await told_at_once(db):
                pass
        proxy.serve()
        await wait_until(lambda: db.usage() == (0, POOL_SIZE, POOL_SIZE))
        await db.fetch("ping")


async def told_at_once(database: Database) -> bool:
    """Whether a caller with a limit of a minute gets the error at once."""
    try:
        with with_deadline(0.5):
            await database.fetch("ping")
    except DatabaseUnavailable:
        return True
    except DeadlineExceeded:
        return False
    return False


async def test_waiters_are_served_in_turn(postgres_url: str) -> None:
    """Many more callers than connections."""
    async with opened(postgres_url, acquire_timeout_s=30) as database:
        await asyncio.gather(*(database.fetch("ping") for _ in range(200)))
        assert database.usage() == (0, POOL_SIZE, POOL_SIZE)


async def test_a_deadline_ends_the_wait_for_a_statement(database: Database) -> None:
    """Every wait inside a request is bounded by the request's own deadline, and the statement is cancelled."""
    repository = ConversationRepository(database)
    name = (await conversation_of(repository, "one")).continuation_id
    async with held(database, name), session(database) as observer:
        with with_deadline(0.2), pytest.raises(OutcomeUnknown):
            await repository.append(appending(name, "two"))
        while await waiting_for_a_lock(observer):
            await asyncio.sleep(0)
    assert await contents_of(repository, name) == ["one"]


async def test_nothing_is_sent_after_the_deadline(database: Database) -> None:
    """The answer would be too late."""
    with with_deadline(0), pytest.raises(DeadlineExceeded):
        await database.fetch("ping")


async def test_a_cancelled_call_gives_its_connection_back(database: Database) -> None:
    """The statement is cancelled on the server and the connection serves the next call."""
    repository = ConversationRepository(database)
    name = (await conversation_of(repository, "one")).continuation_id
    async with held(database, name), session(database) as observer:
        task = asyncio.create_task(repository.append(appending(name, "two")))
        while not await waiting_for_a_lock(observer):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await wait_until(lambda: database.usage() == (0, POOL_SIZE, POOL_SIZE))
        assert await waiting_for_a_lock(observer) == 0
    assert await contents_of(repository, name) == ["one"]


async def test_a_terminated_session_is_replaced_and_its_statement_repeated(database: Database) -> None:
    """An administrator, a failover or a pooler's restart ends sessions."""
    repository = ConversationRepository(database)
    name = (await conversation_of(repository, "one")).continuation_id
    async with held(database, name), session(database) as observer:
        task = asyncio.create_task(repository.append(appending(name, "two")))
        while not await waiting_for_a_lock(observer):
            await asyncio.sleep(0)
        await observer.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and wait_event_type = 'Lock'"
        )
    assert (await task).status == "appended"
    assert await contents_of(repository, name) == ["one", "two"]
    await wait_until(lambda: database.usage() == (0, POOL_SIZE, POOL_SIZE))


@pytest.mark.direct
async def test_idle_connections_that_die_are_replaced_unasked(database: Database) -> None:
    """The pool notices the close at once and does not wait for the next caller."""
    async with session(database) as observer:
        await observer.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid() and application_name = 'exai'"
        )
    await wait_until(lambda: database.usage()[1] < POOL_SIZE)
    await wait_until(lambda: database.usage() == (0, POOL_SIZE, POOL_SIZE))
    await database.fetch("ping")


async def test_a_black_hole_ends_in_an_unknown_outcome_for_a_write_and_not_for_a_read(postgres_url: str) -> None:
    """Packets vanish; the calls end with the truth, and the pool heals with the network."""
    async with PgProxy(postgres_url) as proxy, opened(proxy.url, statement_timeout_s=0.2) as database:
        repository = ConversationRepository(database)
        name = (await conversation_of(repository, "one")).continuation_id
        proxy.stall()
        with with_deadline(0.5), pytest.raises(OutcomeUnknown):
            await repository.append(appending(name, "two"))
        with with_deadline(0.5), pytest.raises((DatabaseUnavailable, DeadlineExceeded)):
            await repository.read_page(ConversationKey(LOCAL_OWNER, name))
        proxy.drop()
        proxy.open.set()
        await wait_until(lambda: database.usage() == (0, POOL_SIZE, POOL_SIZE))
        assert "one" in await contents_of(repository, name)


async def test_a_closed_pool_says_that_we_are_stopping(postgres_url: str) -> None:
    """And not that the database is ill."""
    async with opened(postgres_url) as database:
        pass
    with pytest.raises(ShuttingDown):
        await database.fetch("ping")


async def test_closing_waits_for_what_is_running(postgres_url: str) -> None:
    """An append that was sent is not cut off."""
    async with AsyncExitStack() as pool, AsyncExitStack() as lock:
        database = await pool.enter_async_context(opened(postgres_url))
        repository = ConversationRepository(database)
        name = (await conversation_of(repository, "one")).continuation_id
        observer = await lock.enter_async_context(session(database))
        await lock.enter_async_context(held(database, name))
        task = asyncio.create_task(repository.append(appending(name, "two")))
        while not await waiting_for_a_lock(observer):
            await asyncio.sleep(0)
        closing = asyncio.create_task(pool.aclose())
        with pytest.raises(ShuttingDown):
            while True:
                await database.fetch("ping")
        await lock.aclose()
        await closing
    assert (await task).status == "appended"


@pytest.mark.direct
async def test_statements_time_out_on_the_server_first(database: Database) -> None:
    """So that a slow statement has a known outcome: nothing was written."""
    async with session(database) as observer:
        assert await observer.fetchval("show statement_timeout") == "0"
    rows = await database.fetch("server_limit")
    assert rows[0]["statement_timeout_ms"] == 0.8 * 1000 * STATEMENT_TIMEOUT_S


async def test_an_unmigrated_database_is_named_as_that(empty_postgres_url: str) -> None:
    """With the command that cures it."""
    with pytest.raises(SchemaMismatch, match="exai migrate"):
        async with opened(empty_postgres_url):
            pass


@pytest.mark.direct
@pytest.mark.parametrize("part", ["wrong database", "nobody there"])
async def test_a_wrong_address_fails_at_once(postgres_url: str, part: str) -> None:
    """Nothing falls back."""
    async with PgProxy(postgres_url) as proxy:
        url = proxy.url
        if part == "wrong database":
            url = url.partition("?")[0] + "_not_there?sslmode=disable"
        else:
            await proxy.__aexit__(None, None, None)
        with pytest.raises(DatabaseUnavailable):
            async with opened(url):
                pass


async def test_no_address_is_a_setting_to_correct() -> None:
    """The setting is named."""
    with pytest.raises(ConfigError, match="EXAI_DATABASE__URL"):
        async with open_pool(DatabaseSettings(), recorder=Counters()):
            pass
