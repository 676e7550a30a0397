"""Metrics of the older system are adopted in place, in every shape of their table: no row is lost or moved."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest
from alembic.util import CommandError

from exai.db.migrations.migrate import upgrade
from tests.support.migrations import before, create_role, downgrade, named, run, session, value

EARLIER, BACKFILL = before("backfill_older_metrics"), named("backfill_older_metrics")
METRICS = named("expand_monitoring")

WITH_TYPE = """
create schema monitoring;
create table monitoring.metrics_raw (
  id bigserial primary key, type varchar(50) not null, "timestamp" timestamptz not null default now(),
  data jsonb not null, created_at timestamptz default now());
create index on monitoring.metrics_raw (type, "timestamp" desc);
insert into monitoring.metrics_raw (type, "timestamp", data)
select 'latency', now() - n * interval '1 hour', jsonb_build_object('value', n) from generate_series(1, 2500) n;
insert into monitoring.metrics_raw (type, "timestamp", data) values
  ('odd', '2999-01-01', '{"value": 1}'), ('odd', 'infinity', '[1]'), ('odd', '-infinity', '{}');
"""
WITHOUT_TYPE = """
create schema monitoring;
create table monitoring.metrics_raw (
  id bigint generated always as identity primary key, data jsonb, processed_at timestamp, host text not null);
insert into monitoring.metrics_raw (data, processed_at, host)
select case when n % 3 > 0 then jsonb_build_object('type', 'latency', 'value', n) end,
       now() at time zone 'UTC' - n * interval '1 hour', 'h' from generate_series(1, 2500) n;
insert into monitoring.metrics_raw (data, processed_at, host) values (null, null, 'h');
"""
ANOTHER = """
create schema monitoring;
create table monitoring.metrics_raw (id uuid default gen_random_uuid(), payload text);
insert into monitoring.metrics_raw (payload) values ('kept'), ('too');
create materialized view monitoring.metrics_1min as select count(*) from monitoring.metrics_raw;
create table monitoring.metrics_processing_log (metric_count integer not null);
insert into monitoring.metrics_processing_log values (7);
"""
FUNCTIONS = """
create function monitoring.aggregate_metrics(metrics jsonb) returns void language sql as '';
create function monitoring.insert_metric(a text, b jsonb) returns void language sql as '';
create procedure monitoring.refresh_metrics_views() language sql as '';
"""


@dataclass(frozen=True)
class OlderMetrics:
    sql: str
    rows: int
    insert: str
    """As its writers did and will."""


OLDER = {
    "with a type": OlderMetrics(
        WITH_TYPE, 2503, "insert into monitoring.metrics_raw (type, data) values ('new', '{\"value\": 3}')"
    ),
    "without a type": OlderMetrics(
        WITHOUT_TYPE, 2501, "insert into monitoring.metrics_raw (data, host) values ('{\"type\": \"new\"}', 'h')"
    ),
    "without a type, told so": OlderMetrics(
        WITH_TYPE.replace("type varchar(50) not null", "type varchar(50)"),
        2503,
        'insert into monitoring.metrics_raw (type, data) values (null, \'{"type": "new"}\')',
    ),
}


@pytest.fixture(params=list(OLDER))
def older(request: pytest.FixtureRequest) -> OlderMetrics:
    return OLDER[request.param]


async def test_no_row_is_lost_and_writers_go_on(empty_postgres_url: str, older: OlderMetrics) -> None:
    """Old rows stay with their values; new ones are beside them, and in the sums."""
    url = empty_postgres_url
    await run(url, older.sql + FUNCTIONS)
    ids = await value(url, "select array_agg(id order by id) from monitoring.metrics_raw")
    await upgrade(url)
    assert await value(url, "select array_agg(id order by id) from monitoring.metrics_raw") == ids
    assert len(ids) == older.rows == await value(url, "select count(*) from only monitoring.metrics_raw_adopted")
    await run(url, older.insert, "select monitoring.insert_metric('ours')")
    assert await value(url, "select count(*) from monitoring.metrics_raw") == older.rows + 2
    assert await value(url, "select min(id) from monitoring.metrics_raw where type in ('new', 'ours')") > max(ids)
    assert await value(url, "select sum(count)::int from monitoring.metrics_1min") == 2
    duplicates = "select count(*) from (select id from monitoring.metrics_raw group by id having count(*) > 1) x"
    assert await value(url, duplicates) == 0


async def test_times_and_types_are_kept(empty_postgres_url: str) -> None:
    """A missing value is derived from the others; a future time is moved, and kept in the data."""
    url = empty_postgres_url
    await run(url, WITHOUT_TYPE)
    await upgrade(url)
    assert await value(url, "select count(*) from monitoring.metrics_raw where type = 'latency'") == 1667
    assert await value(url, "select count(*) from monitoring.metrics_raw where type = 'unknown'") == 834
    assert (
        await value(
            url,
            'select count(*) from monitoring.metrics_raw where "timestamp" is distinct from processed_at'
            " and processed_at is not null",
        )
        == 0
    )
    assert await value(url, "select count(*) from monitoring.metrics_raw where host = 'h'") == 2501


async def test_a_time_to_come_is_moved_and_kept(empty_postgres_url: str) -> None:
    """It would keep the partition open for a thousand years."""
    url = empty_postgres_url
    await run(url, WITH_TYPE)
    await upgrade(url)
    async with session(url) as connection:
        rows = await connection.fetch("select data::text d from monitoring.metrics_raw where type = 'odd' order by id")
        assert "2999-01-01" in rows[0]["d"]
        assert '"value": 1' in rows[0]["d"]
        assert '"data": [1]' in rows[1]["d"]
        assert "infinity" in rows[1]["d"]
        assert rows[2]["d"] == "{}"
        assert (
            await connection.fetchval(
                "select count(*) from monitoring.metrics_raw where \"timestamp\" > now() and type = 'odd'"
            )
            == 0
        )


async def test_what_is_of_another_shape_is_kept_under_another_name(empty_postgres_url: str) -> None:
    """It has one of our names, but cannot be one of our tables."""
    url = empty_postgres_url
    await run(url, ANOTHER)
    await upgrade(url)
    assert await value(url, "select string_agg(payload, ' ') from monitoring.metrics_raw_adopted") == "kept too"
    assert await value(url, "select count from monitoring.metrics_1min_adopted") == 2
    assert await value(url, "select metric_count from monitoring.metrics_processing_log_adopted") == 7
    await run(url, "select monitoring.insert_metric('ours')")
    assert await value(url, "select count(*) from monitoring.metrics_raw") == 1


@pytest.mark.parametrize(
    "change",
    [
        "alter table monitoring.metrics_raw drop constraint metrics_raw_pkey",
        "alter table monitoring.metrics_raw alter column id type integer",
        "create table monitoring.x (id bigint references monitoring.metrics_raw)",
        "alter table monitoring.metrics_raw add column twice bigint generated always as (id * 2) stored",
        "alter table monitoring.metrics_raw alter column data type text",
    ],
)
async def test_shapes_that_cannot_be_a_partition_are_set_aside_whole(empty_postgres_url: str, change: str) -> None:
    """No key, another key, a foreign key to it: all rows stay, with the table's dependent objects."""
    url = empty_postgres_url
    await run(url, WITH_TYPE, change)
    await upgrade(url)
    assert await value(url, "select count(*) from monitoring.metrics_raw_adopted") == 2503
    assert await value(url, "select count(*) from monitoring.metrics_raw") == 0


async def test_readers_and_writers_see_no_error_meanwhile(empty_postgres_url: str, older: OlderMetrics) -> None:
    """Not when columns come, not when the table becomes a partition of another of its name, nor for rights of roles."""
    url = empty_postgres_url
    await run(url, older.sql, *create_role("exai_app"))
    done = asyncio.Event()
    written = 0

    async def write() -> None:
        nonlocal written
        async with session(url) as connection:
            while not done.is_set():
                await connection.execute(older.insert)
                written += 1

    async def read() -> None:
        async with session(url) as connection:
            while not done.is_set():
                assert await connection.fetchval("select count(data) from monitoring.metrics_raw") > 0

    tasks = [asyncio.create_task(work()) for work in (write, write, read)]
    try:
        await upgrade(url)
    finally:
        done.set()
        await asyncio.gather(*tasks)
    assert written > 0
    assert await value(url, "select count(*) from monitoring.metrics_raw") == older.rows + written


async def test_it_goes_on_where_it_was_broken_off(empty_postgres_url: str, older: OlderMetrics) -> None:
    """Half done and run again, and once more: the same rows, not one of them written again."""
    url = empty_postgres_url
    await run(url, older.sql)
    await upgrade(url, BACKFILL)
    await run(url, older.insert, f"update exai.alembic_version set version_num = '{EARLIER}'")
    await upgrade(url)
    everything = "select array_agg(m.xmin || m::text order by id) from monitoring.metrics_raw m"
    before = await value(url, everything)
    assert len(before) == older.rows + 1
    await upgrade(url)
    assert await value(url, everything) == before


async def test_the_old_table_s_rows_outlive_retention(empty_postgres_url: str) -> None:
    """Whether they are still wanted is for their owner to say, by dropping one table."""
    url = empty_postgres_url
    await run(url, WITH_TYPE)
    await upgrade(url)
    await run(url, "select monitoring.apply_retention(interval '1 second')", "select monitoring.create_partitions(10)")
    assert await value(url, "select count(*) from monitoring.metrics_raw") == 2503
    await run(url, "drop table monitoring.metrics_raw_adopted", "select monitoring.insert_metric('still')")
    assert await value(url, "select monitoring.create_partitions()") == 8


async def test_rights_on_the_table_are_kept(empty_postgres_url: str) -> None:
    """Except those of roles that must not read metrics of all owners."""
    url = empty_postgres_url
    for role in ("anon", "authenticated", "exai_grafana"):
        await run(url, f"do $$ begin create role {role}; exception when duplicate_object then null; end $$")
    await run(url, WITH_TYPE, "grant select, insert on monitoring.metrics_raw to exai_grafana, authenticated")
    await upgrade(url)
    may = "select has_table_privilege($1, 'monitoring.metrics_raw', 'select, insert')"
    assert [await value(url, may, role) for role in ("exai_grafana", "authenticated", "anon")] == [True, False, False]


async def test_going_back_refuses_to_lose_them(empty_postgres_url: str, older: OlderMetrics) -> None:
    """It names what would be lost."""
    url = empty_postgres_url
    await run(url, older.sql)
    await upgrade(url)
    with pytest.raises(CommandError, match="metrics_raw_adopted"):
        await downgrade(url, BACKFILL)
    assert await value(url, "select version_num from exai.alembic_version") == METRICS


async def test_going_back_refuses_to_lose_ours(postgres_url: str) -> None:
    """Sums as well as raw rows."""
    await run(postgres_url, "select monitoring.insert_metric('a')")
    with pytest.raises(CommandError, match=r"monitoring\.metrics_raw holds rows"):
        await downgrade(postgres_url, BACKFILL)
    await run(postgres_url, "truncate monitoring.metrics_raw")
    with pytest.raises(CommandError, match=r"monitoring\.metrics_1min holds rows"):
        await downgrade(postgres_url, BACKFILL)
