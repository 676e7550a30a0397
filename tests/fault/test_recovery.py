"""Postgres recovers under the same first process after one backend was killed, as the out-of-memory killer does.

Transaction ids that were given out and never reached the disk are given out again then,
below the reconciliation's cursor.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from exai.cache.entry import cache_keys
from exai.errors import DatabaseError
from exai.models import LOCAL_OWNER, ContinuationId, ConversationKey
from tests.fault.service import Service, servers
from tests.support.backend import FaultServer
from tests.support.valkey import Valkey
from tests.support.waiting import wait_until

TRIES = 6
IDS = 200
"""Transaction ids that are lost in each try, more than the reader and the writer use meanwhile."""

LATER_S = 3_600


@pytest.fixture
async def slow_log(postgres_server: FaultServer) -> AsyncIterator[FaultServer]:
    """A server that leaves what needs no flush in memory for as long as it can."""
    async with admin(postgres_server) as connection:
        await connection.execute("alter system set wal_writer_delay = '10s'")
        await connection.execute("select pg_reload_conf()")
    yield postgres_server
    await postgres_server.start()
    async with admin(postgres_server) as connection:
        await connection.execute("alter system reset wal_writer_delay")
        await connection.execute("select pg_reload_conf()")


async def test_change_after_a_recovery_is_seen_although_its_transaction_id_is_lower(
    slow_log: FaultServer, tmp_path: Path
) -> None:
    """The writer cannot reach Redis and its id is below the cursor; readers see the change within the bound."""
    reused = 0
    with Valkey() as valkey:
        async with servers(slow_log.url, valkey.url, tmp_path) as rig:
            writer, reader = await rig.open(reconcile_interval_s=0.1), await rig.open(reconcile_interval_s=0.1)
            name = (await writer.append(None, "0")).continuation_id
            keys = cache_keys(ConversationKey(LOCAL_OWNER, name), 1)

            def cursor() -> int:
                return int(valkey.do("HGET", keys.watermark, "xmin") or 0)

            for number in range(1, TRIES + 1):
                await wait_until(lambda: valkey.do("EXISTS", keys.watermark) == 1)
                assert len(await reader.contents(name)) == number
                # Only this test uses the server, so nothing else flushes the log that is in memory.
                async with admin(slow_log) as connection:
                    last = await lose_ids(connection)
                    await wait_until(lambda last=last: cursor() > last)  # type: ignore[misc]
                    before = cursor()
                    # A reconciliation between the recovery and the change would find the lower cursor by itself.
                    writer.cache.mode = reader.database.mode = "reset"
                    await recover(connection)
                await appended(writer, name, str(number))
                reader.database.mode = "pass"
                async with admin(slow_log) as connection:
                    xid = await connection.fetchval("select changed_xid::text::bigint from public.conversations")
                reused += xid < before
                await reconciled(reader)
                # As one staleness bound later: the entry's own time no longer covers it; only the watermark could.
                if valkey.do("EXISTS", keys.entry):
                    valkey.do("HINCRBY", keys.entry, "asof", -LATER_S * 1_000_000)
                assert len(await reader.contents(name)) == number + 1, f"the older page, in try {number}"
                writer.cache.mode = "pass"
    assert reused > 0, "no transaction id was given out again, so this test has shown nothing"


@asynccontextmanager
async def admin(server: FaultServer) -> AsyncIterator[asyncpg.Connection]:
    """A connection to the server once it answers."""
    connection: asyncpg.Connection | None = None

    async def is_open() -> bool:
        nonlocal connection
        try:
            connection = await asyncpg.connect(server.url, timeout=20)
        except (asyncpg.CannotConnectNowError, asyncpg.ConnectionDoesNotExistError, OSError):
            # The second one: the server begins to recover while the connection is made.
            return False
        return True

    while not await is_open():
        pass
    assert connection is not None
    try:
        yield connection
    finally:
        connection.terminate()


async def lose_ids(connection: asyncpg.Connection) -> int:
    """Use transaction ids for nothing; returns the last one."""
    last = 0
    for _ in range(IDS):
        transaction = connection.transaction()
        await transaction.start()
        last = await connection.fetchval("select pg_current_xact_id()::text::bigint")
        await transaction.rollback()
    return last


async def recover(connection: asyncpg.Connection) -> None:
    """Kill the backend of this connection, and wait until its end is seen here."""
    os.kill(await connection.fetchval("select pg_backend_pid()"), signal.SIGKILL)
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        while True:
            await connection.execute("select 1")


async def appended(service: Service, name: ContinuationId, content: str) -> None:
    """Append, once the server has recovered."""

    async def tried() -> bool:
        try:
            await service.append(name, content, key=content)
        except DatabaseError:
            return False
        return True

    while not await tried():
        pass


async def reconciled(service: Service) -> None:
    """Wait until a reconciliation that began after this call has ended."""

    def made() -> int:
        return service.count("cache_reconciliations_total", outcome="advanced") + service.count(
            "cache_reconciliations_total", outcome="generation"
        )

    before = made()
    await wait_until(lambda: made() >= before + 2)
