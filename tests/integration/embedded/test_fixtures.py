"""The servers of the other tests' fixtures."""

from __future__ import annotations

import asyncpg
import pytest
import redis.asyncio

from tests.support.backend import FaultServer


async def rows_in(url: str, table: str) -> int:
    """How many there are."""
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(f"select count(*)::int from {table}")
    finally:
        await connection.close()


async def test_empty_database_has_no_tables(empty_postgres_url: str) -> None:
    """Migration tests start from nothing."""
    connection = await asyncpg.connect(empty_postgres_url)
    try:
        assert await connection.fetchval("select count(*) from pg_tables where schemaname = 'public'") == 0
        await connection.execute("create table left_behind (id int)")
    finally:
        await connection.close()


async def test_next_empty_database_is_another_one(empty_postgres_url: str) -> None:
    """One test's tables are not another's."""
    connection = await asyncpg.connect(empty_postgres_url)
    try:
        assert await connection.fetchval("select to_regclass('left_behind')") is None
    finally:
        await connection.close()


async def test_database_is_dropped_while_a_connection_is_open(empty_postgres_url: str) -> None:
    """A failing test leaves its pool behind; that must not fail the next one."""
    connection = await asyncpg.connect(empty_postgres_url)
    connection.terminate()


async def test_migrated_database_is_empty_each_time(postgres_url: str, empty_postgres_url: str) -> None:
    """Every test begins with the newest schema and no rows, and may have both kinds of database."""
    assert await rows_in(postgres_url, "conversations") == 0
    with pytest.raises(asyncpg.UndefinedTableError):
        await rows_in(empty_postgres_url, "conversations")


async def test_killed_postgres_is_started_again(postgres_server: FaultServer) -> None:
    """Fault tests kill the server and go on with the same address."""
    assert await rows_in(postgres_server.url, "conversations") == 0
    postgres_server.kill()
    with pytest.raises(OSError):
        await rows_in(postgres_server.url, "conversations")
    await postgres_server.start()
    assert await rows_in(postgres_server.url, "conversations") == 0


async def test_redis_starts_empty(redis_url: str) -> None:
    """One test's keys are not another's."""
    async with redis.asyncio.from_url(redis_url) as client:
        assert await client.dbsize() == 0
        await client.set("left_behind", "1")


async def test_next_redis_is_empty_again(redis_url: str) -> None:
    """See above."""
    async with redis.asyncio.from_url(redis_url) as client:
        assert await client.dbsize() == 0


async def test_killed_valkey_is_started_again(valkey_server: FaultServer) -> None:
    """Fault tests kill the server and go on with the same address."""
    valkey_server.kill()
    assert not valkey_server.is_running()
    await valkey_server.start()
    async with redis.asyncio.from_url(valkey_server.url) as client:
        assert await client.ping()


async def test_valkey_left_dead_is_back_for_the_next_test(valkey_server: FaultServer) -> None:
    """A fault test that fails half-way must not fail its neighbours."""
    assert valkey_server.is_running()
    valkey_server.kill()
