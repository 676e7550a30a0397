"""Postgres dies, comes back, comes back older, is full, or is held: every request 0 or 1 times, acknowledged always 1.

These kill servers of their own; what only breaks the way to a server is in `test_postgres.py`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import asyncpg
import pytest

from exai.conversations import ChatRequest
from exai.db.driver.pool import Database
from exai.embedded.postgres import PostgresServer
from exai.errors import DatabaseBusy, DatabaseError, ExaiError, StorageFull
from exai.models import LOCAL_OWNER, ContinuationId, Owner
from exai.resilience import with_deadline
from tests.fault.cluster import running
from tests.fault.service import BOUND_S, POOL_SIZE, Servers, Service, servers
from tests.support.backend import FaultServer
from tests.support.pooler import Pooler
from tests.support.provider_server import chunk, event, stream
from tests.support.waiting import wait_until

WRITES = 24
HEAL_LIMIT_S = 20.0
FULL_DISK_BYTES = 24 * 1_048_576


@pytest.fixture
async def rig(postgres_server: FaultServer, redis_url: str, tmp_path: Path) -> AsyncIterator[Servers]:
    """A Postgres that may be killed."""
    async with servers(postgres_server.url, redis_url, tmp_path) as opened:
        yield opened


@asynccontextmanager
async def admin(url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection beside all pools."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        connection.terminate()


async def appended(service: Service, name: ContinuationId, content: str) -> None:
    """Append with a key until it is acknowledged, as a client does that gives up on nothing."""
    end = time.monotonic() + HEAL_LIMIT_S
    while True:
        with suppress(DatabaseError):
            await service.append(name, content, key=f"{name} {content}")
            return
        assert time.monotonic() < end, f"{content} is not acknowledged"
        await asyncio.sleep(0.05)


async def whole(database: Database) -> None:
    """Wait until every place of the pool has its connection."""
    await wait_until(lambda: database.usage() == (0, POOL_SIZE, POOL_SIZE), limit_s=HEAL_LIMIT_S)


@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGKILL], ids=["immediate shutdown", "SIGKILL"])
async def test_crash_in_the_middle_of_writes_loses_none_and_doubles_none(
    number: int, rig: Servers, postgres_server: FaultServer
) -> None:
    """Each write is repeated under its key until it is acknowledged, and is there exactly once, in whole blocks."""
    service = await rig.open()
    name = (await service.append(None, "first")).continuation_id
    async with asyncio.TaskGroup() as group:
        for write in range(WRITES):
            group.create_task(appended(service, name, f"w{write}"))
        await wait_until(lambda: service.count("db_statements_total", statement="append") > 2)
        os.kill(running(postgres_server), number)
        await wait_until(lambda: not postgres_server.is_running())
        await started(postgres_server)
    found = await service.contents(name)
    assert sorted(found) == sorted(["first", *(f"w{write}" for write in range(WRITES))])
    await whole(service.app.database)


async def started(server: FaultServer) -> None:
    """Start a server that was killed; its last sessions may hold its memory for a while."""
    for _ in range(3):
        with suppress(ExaiError):
            await server.start()
            return
    await server.start()


async def test_sessions_terminated_between_question_and_answer_cause_no_error(rig: Servers) -> None:
    """57P01 while a model is asked: the answer is stored over a new connection, and the pool is whole again."""
    service = await rig.open()
    name = (await service.append(None, "one")).continuation_id
    rig.provider.script(stream("gate", chunk({"content": "two"}, finish="stop"), event("[DONE]")))
    asking = asyncio.create_task(service.app.chat.run(ChatRequest(LOCAL_OWNER, "what?", continuation_id=name)))
    await rig.provider.arrived(1)
    async with admin(rig.postgres_url) as connection:
        ended = await connection.fetchval(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )
    assert ended >= POOL_SIZE
    rig.provider.gate.set()
    assert (await asking).content == "two"
    assert await service.contents(name) == ["one", "what?", "two"]
    await whole(service.app.database)


async def test_failover_that_lost_a_commit_shows_it_for_the_bound_at_most_and_never_after_the_next(
    rig: Servers, postgres_server: FaultServer, tmp_path: Path
) -> None:
    """An acknowledged message that a restored copy of the database lacks: a phantom for one bound, then gone."""
    service = await rig.open()
    name = (await service.append(None, "one")).continuation_id
    other = (await service.append(None, "one")).continuation_id
    await postgres_server.stop()
    server = postgres_server._server
    assert isinstance(server, PostgresServer)
    copy = tmp_path / "copy"
    shutil.copytree(server.cluster, copy, symlinks=True)
    await started(postgres_server)
    await appended(service, name, "lost")
    await appended(service, other, "lost")
    for each in (name, other):
        assert await service.contents(each) == ["one", "lost"]
    await postgres_server.stop()
    shutil.rmtree(server.cluster)
    copy.rename(server.cluster)
    await started(postgres_server)
    await whole(service.app.database)
    await appended(service, other, "next")
    assert await service.contents(other) == ["one", "next"]
    began = time.monotonic()
    while (found := await service.contents(name)) != ["one"]:
        assert found == ["one", "lost"]
        assert time.monotonic() - began < BOUND_S + 0.1, "a phantom beyond the bound"
        await asyncio.sleep(0.05)
    await appended(service, name, "next")
    assert await service.contents(name) == ["one", "next"]


async def test_pooler_that_dies_and_comes_back_is_a_pause(rig: Servers) -> None:
    """All connections break and are refused for a while; writes with a key then continue."""
    async with Pooler(rig.postgres_url) as first:
        service = await rig.open(at=first.url)
        name = (await service.append(None, "one")).continuation_id
    service.database.reset()
    refused = asyncio.create_task(appended(service, name, "two"))
    await wait_until(lambda: service.count("db_errors_total") > 0)
    async with Pooler(rig.postgres_url) as second:
        service.database.upstream = ("127.0.0.1", int(second.url.split(":")[-1].split("/")[0]))
        await refused
        assert await service.contents(name) == ["one", "two"]
        await whole(service.app.database)


async def test_full_pooler_makes_callers_wait_and_not_fail(rig: Servers) -> None:
    """One session for a pool of four and sixteen callers: each waits its turn."""
    async with Pooler(rig.postgres_url, sessions=1) as pooler:
        service = await rig.open(at=pooler.url, database={"pool_size": 4, "acquire_timeout_s": 5})
        names = [(await service.append(None, f"{number}")).continuation_id for number in range(16)]
        found = await asyncio.gather(*(service.contents(name) for name in names))
        assert found == [[f"{number}"] for number in range(16)]


async def test_server_without_a_connection_left_is_waited_for(rig: Servers) -> None:
    """53300 is an answer and no crash: the pool tries again with pauses, and fills when there is room."""
    service = await rig.open()
    name = (await service.append(None, "one")).continuation_id
    async with admin(rig.postgres_url) as connection, AsyncExitStack() as stack:
        most = int(await connection.fetchval("select current_setting('max_connections')"))
        await connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )
        others = []
        with suppress(asyncpg.TooManyConnectionsError):
            for _ in range(most):
                others.append(await asyncpg.connect(rig.postgres_url))
        stack.callback(lambda: [other.terminate() for other in others])
        used, live, _ = service.app.database.usage()
        assert used == 0
        if live == 0:
            with pytest.raises(DatabaseError):
                await service.append(name, "refused", key="refused")
        for other in others:
            other.terminate()
        await appended(service, name, "two")
    await whole(service.app.database)
    assert [each for each in await service.contents(name) if each != "refused"] == ["one", "two"]


async def test_pooler_that_assigns_another_session_to_each_transaction_leaks_nothing(rig: Servers) -> None:
    """Two sessions serve sixteen callers of eight owners; each caller reads its own rows."""
    async with Pooler(rig.postgres_url, sessions=2, always_another=True) as pooler:
        service = await rig.open(at=pooler.url, database={"pool_size": 8, "acquire_timeout_s": 5})
        owners = [Owner(f"owner {number}") for number in range(8)]

        async def one(owner: Owner, number: int) -> None:
            first = await service.app.chat.run(ChatRequest(owner, f"{owner} asks {number}"))
            page = await service.conversations.read(owner, first.continuation_id)
            assert page.messages[0].content == f"{owner} asks {number}"
            older = await service.conversations.read(owner, first.continuation_id, before_seq=2)
            assert [message.content for message in older.messages] == [f"{owner} asks {number}"]
            listed = await service.conversations.list(owner)
            assert {each.owner for each in listed.conversations} == {owner}

        await asyncio.gather(*(one(owner, number) for owner in owners for number in range(2)))
        assert pooler.stats["switches"] >= pooler.stats["transactions"] - 8 > 16
        assert pooler.stats["sessions"] <= 2
        assert service.count("db_errors_total") == 0


async def test_statement_that_takes_too_long_is_ended_and_others_go_on(rig: Servers) -> None:
    """While the table of messages is locked its reads end at the statement timeout; cached pages and lists work."""
    service = await rig.open(database={"statement_timeout_s": 1.0})
    name = (await service.append(None, "one")).continuation_id
    cold = (await service.append(None, "cold")).continuation_id
    assert await service.contents(name) == ["one"]
    async with admin(rig.postgres_url) as connection, connection.transaction():
        await connection.execute("lock table public.messages in access exclusive mode")
        slow = asyncio.create_task(service.read(cold))
        await wait_until(lambda: service.app.database.usage()[0] > 0)
        assert await service.contents(name) == ["one"]
        listed = await service.conversations.list(LOCAL_OWNER)
        assert [each.continuation_id for each in listed.conversations] == [cold, name]
        with pytest.raises(DatabaseBusy):
            await slow
    assert await service.contents(cold) == ["cold"]


async def test_exhausted_pool_sheds_writers_and_still_serves_what_is_cached(rig: Servers) -> None:
    """All connections wait for a lock: the next caller fails within the acquire timeout; cache hits succeed."""
    service = await rig.open(database={"acquire_timeout_s": 0.2})
    name = (await service.append(None, "one")).continuation_id
    free = (await service.append(None, "free")).continuation_id
    assert await service.contents(free) == ["free"]
    async with admin(rig.postgres_url) as connection, connection.transaction():
        await connection.execute("select from public.conversations where continuation_id = $1 for update", name)
        waiting = [asyncio.create_task(service.append(name, "x", key=f"{n}")) for n in range(POOL_SIZE)]
        await wait_until(lambda: service.app.database.usage()[0] == POOL_SIZE)
        with pytest.raises(DatabaseBusy):
            await service.append(free, "shed")
        assert await service.contents(free) == ["free"]
        await service.app.health.probe_all()
        assert service.app.health.report().as_json()["components"]["database"]["state"] == "down"
    await asyncio.gather(*waiting)
    await service.app.health.probe_all()
    assert service.app.health.report().as_json()["components"]["database"]["state"] == "ok"
    assert await service.contents(name) == ["one", "x", "x"]


async def test_full_disk_refuses_writes_and_nothing_else_until_there_is_room(rig: Servers, tmp_path: Path) -> None:
    """53100 on a small file system of its own: `storage_full`, reads go on, and it recovers without a restart."""
    service = await rig.open()
    name = (await service.append(None, "one")).continuation_id
    async with small_disk(tmp_path / "disk") as disk, admin(rig.postgres_url) as connection:
        await connection.execute(f"create tablespace exai_small location '{disk}'")
        try:
            await connection.execute("alter table public.messages set tablespace exai_small")
            stored = 0
            with pytest.raises(StorageFull):
                while stored * 1_000_000 < FULL_DISK_BYTES:
                    await service.append(name, os.urandom(500_000).hex())
                    stored += 1
            assert stored > 2
            assert (await service.read(name)).conversation.last_seq == 1 + stored
            older = await service.conversations.read(LOCAL_OWNER, name, before_seq=2)
            assert older.messages[0].content == "one"
            subprocess.run(["mount", "-o", f"remount,size={4 * FULL_DISK_BYTES}", disk.parent], check=True)
            assert (await service.append(name, "room")).first_seq == 2 + stored
        finally:
            await connection.execute("alter table public.messages set tablespace pg_default")
            await connection.execute("drop tablespace exai_small")


@asynccontextmanager
async def small_disk(place: Path) -> AsyncIterator[Path]:
    """A file system of a few megabytes; only who may mount can have one."""
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={FULL_DISK_BYTES},mode=0777", "tmpfs", place],
        capture_output=True,
        check=False,
    )
    if made.returncode != 0:
        pytest.skip("a full disk needs one that may be filled, and nothing may be mounted here")
    data = place / "data"
    data.mkdir(mode=0o700)
    try:
        yield data
    finally:
        subprocess.run(["umount", "-l", place], check=True)


async def test_stall_of_the_event_loop_is_not_counted_as_a_failure(rig: Servers) -> None:
    """A callback holds the loop for longer than the cache's timeout; nothing is counted against Redis or models."""
    service = await rig.open()
    name = (await service.append(None, "one")).continuation_id
    rig.provider.script(stream("gate", chunk({"content": "two"}, finish="stop"), event("[DONE]")))
    with with_deadline(30.0):
        asking = asyncio.create_task(service.app.chat.run(ChatRequest(LOCAL_OWNER, "what?", continuation_id=name)))
        await rig.provider.arrived(1)
        reading = [asyncio.create_task(service.read(name)) for _ in range(20)]
        for _ in range(3):
            await asyncio.sleep(0)
        time.sleep(1.0)
        rig.provider.gate.set()
        await asyncio.gather(*reading)
        await asking
    assert service.count("breaker_calls_total", outcome="failure") == 0
    assert await service.contents(name) == ["one", "what?", "two"]
