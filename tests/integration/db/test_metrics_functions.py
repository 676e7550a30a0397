"""The metrics functions, called as SQL on a real server: the guarantees of their descriptions."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from exai.db.driver.pool import OneTrip
from tests.support.migrations import session

Row = asyncpg.Record


@pytest.fixture
async def db(postgres_url: str) -> AsyncIterator[OneTrip]:
    async with session(postgres_url) as connection:
        yield connection


async def aggregate(db: OneTrip, metrics: Any, batch: str | None = None) -> Row:
    text = metrics if metrics is None or isinstance(metrics, str) else json.dumps(metrics)
    rows = await db.fetch(
        "select * from monitoring.aggregate_metrics($1::text::jsonb, $2::text::uuid, 'test')", text, batch
    )
    assert len(rows) == 1
    return rows[0]


async def counts(db: OneTrip) -> dict[str, int]:
    """The number of raw rows, and the number that the sums state."""
    return {
        "raw": await db.fetchval("select count(*) from monitoring.metrics_raw"),
        "minutes": await db.fetchval("select coalesce(sum(count), 0)::int from monitoring.metrics_1min"),
        "hours": await db.fetchval("select coalesce(sum(count), 0)::int from monitoring.metrics_1hour"),
    }


def at(**ago: float) -> str:
    return (datetime.now(UTC) - timedelta(**ago)).isoformat()


async def test_one_metric_is_stored_with_its_own_time(db: OneTrip) -> None:
    """Not with the time at which it arrived."""
    when = datetime.now(UTC) - timedelta(hours=3)
    number = await db.fetchval("select monitoring.insert_metric('latency', '{\"value\": 2}', $1)", when)
    row = await db.fetchrow("select * from monitoring.metrics_raw")
    assert (row["id"], row["type"], row["data"], row["timestamp"]) == (number, "latency", '{"value": 2}', when)
    assert row["created_at"] > when
    assert await db.fetchval("select count(*) from monitoring.metrics_processing_log") == 0


async def test_a_metric_needs_no_data_and_no_time_but_a_type(db: OneTrip) -> None:
    """The defaults are no data and the current time."""
    await db.fetchval("select monitoring.insert_metric('started')")
    row = await db.fetchrow('select data, created_at - "timestamp" as gap from monitoring.metrics_raw')
    assert (row["data"], abs(row["gap"]) < timedelta(seconds=1)) == ("{}", True)
    for nothing in (None, ""):
        with pytest.raises(asyncpg.PostgresError, match="a metric needs a type"):
            await db.fetchval("select monitoring.insert_metric($1::text)", nothing)


@pytest.mark.parametrize(
    ("shift", "late", "future"), [("-30 days", 1, 0), ("1 day", 0, 1), ("infinity", 0, 1), ("-infinity", 1, 0)]
)
async def test_late_and_future_times_are_moved_to_the_bound_and_counted(
    db: OneTrip, shift: str, late: int, future: int
) -> None:
    """A wrong clock does not put rows into distant or dropped partitions."""
    when = f"'{shift}'::timestamptz" if "infinity" in shift else f"now() + interval '{shift}'"
    await db.execute(f"select monitoring.insert_metric('a', '{{}}', {when})")
    # As a batch too: 'infinity' is no time there, since JSON has none.
    if "infinity" not in shift:
        answer = await aggregate(db, [{"type": "a", "timestamp": str(await db.fetchval(f"select {when}"))}])
        assert (answer["stored"], answer["late"], answer["future"]) == (1, late, future)
    kept = await db.fetch('select "timestamp" - now() as off from monitoring.metrics_raw')
    for row in kept:
        assert timedelta(days=-7, minutes=-1) < row["off"] < timedelta(minutes=6)
    logged = await db.fetch("select late, future from monitoring.metrics_processing_log")
    assert [tuple(row) for row in logged] == [(late, future)] * len(kept)


async def test_a_batch_is_stored_and_summed_up(db: OneTrip) -> None:
    """Raw rows, minutes and hours agree; labels part the sums."""
    metrics = [
        {"type": "latency", "data": {"value": value, "labels": {"op": op}}, "timestamp": "2000-01-01T00:00:00Z"}
        for op in ("read", "write")
        for value in (1, 2.5, 4)
    ]
    noon = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=2)
    for number, metric in enumerate(metrics):
        metric["timestamp"] = (noon + timedelta(minutes=number % 3)).isoformat()
    answer = await aggregate(db, metrics)
    assert (answer["status"], answer["received"], answer["stored"], answer["error"]) == ("stored", 6, 6, None)
    assert await counts(db) == {"raw": 6, "minutes": 6, "hours": 6}
    hours = await db.fetch("select * from monitoring.metrics_1hour order by labels")
    assert [
        (row["bucket"], row["type"], row["labels"], row["count"], row["sum"], row["min"], row["max"]) for row in hours
    ] == [(noon, "latency", json.dumps({"op": op}), 3, 7.5, 1.0, 4.0) for op in ("read", "write")]
    minutes = await db.fetch("select bucket, sum from monitoring.metrics_1min where labels->>'op' = 'read' order by 1")
    assert [tuple(row) for row in minutes] == [
        (noon + timedelta(minutes=n), value) for n, value in enumerate((1, 2.5, 4))
    ]


async def test_what_was_summed_before_it_came_is_added_as_it_is(db: OneTrip) -> None:
    """A recorder sends one metric for many observations."""
    one = {"type": "latency", "data": {"count": 10, "sum": 5.0, "min": 0.1, "max": 2.0}}
    await aggregate(db, [one, one, {"type": "latency", "value": 9}, {"type": "latency", "data": {"value": "slow"}}])
    row = await db.fetchrow(
        "select sum(count)::int n, sum(sum) t, min(min) s, max(max) l from monitoring.metrics_1hour"
    )
    assert tuple(row) == (22, 19.0, 0.1, 9.0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "the metrics must be a JSON array, not NULL"),
        ({"type": "a"}, 'the metrics must be a JSON array, not object: {"type": "a"}'),
        ("3", "the metrics must be a JSON array, not number: 3"),
        ('"x"', 'the metrics must be a JSON array, not string: "x"'),
        ("null", "the metrics must be a JSON array, not null: null"),
        ([{"type": "a"}] * 10_001, "a batch holds at most 10000 metrics, not 10001"),
    ],
)
async def test_an_invalid_batch_is_refused_by_name_and_logged(db: OneTrip, given: Any, said: str) -> None:
    """The error names the value, and the log keeps it."""
    answer = await aggregate(db, given)
    assert (answer["status"], answer["stored"], answer["error"]) == ("refused", 0, said)
    row = await db.fetchrow("select status, source, error, batch_id from monitoring.metrics_processing_log")
    assert tuple(row) == ("refused", "test", said, answer["batch_id"])


async def test_one_bad_metric_does_not_lose_the_others(db: OneTrip) -> None:
    """The first is named, all are counted."""
    bad: list[Any] = [
        7,
        {"data": {}},
        {"type": ""},
        {"type": 3},
        {"type": "x" * 201},
        {"type": "a", "timestamp": "soon"},
    ]
    answer = await aggregate(db, [{"type": "good"}, *bad, {"type": "good", "timestamp": None, "data": None}])
    assert (answer["status"], answer["received"], answer["stored"], answer["rejected"]) == ("stored", 8, 2, 6)
    assert answer["error"] == "metrics[1] is not an object"
    assert await counts(db) == {"raw": 2, "minutes": 2, "hours": 2}
    logged = await db.fetchrow("select received, stored, rejected, error from monitoring.metrics_processing_log")
    assert tuple(logged) == (8, 2, 6, "metrics[1] is not an object")


@pytest.mark.parametrize("time", [1e300, -1e300, 1_700_000_000, "now", "2026-02-30", "", [], {}, True, "2026-01-01"])
async def test_no_time_makes_a_batch_fail(db: OneTrip, time: Any) -> None:
    """The metric beside an invalid time is stored."""
    answer = await aggregate(db, [{"type": "a", "timestamp": time}, {"type": "b"}])
    assert answer["status"] == "stored"
    assert answer["stored"] + answer["rejected"] == 2
    assert await db.fetchval("select count(*) from monitoring.metrics_raw where type = 'b'") == 1


@pytest.mark.parametrize(
    "data",
    [{"value": value} for value in ("1e400", "-1e400", "1e-400", "[]", "null", '"x"')]
    + [{"count": value} for value in ("1e40", "-5", "0.5")]
    + [{"labels": value} for value in ("[]", '"x"', json.dumps({"a": "y" * 5000}))],
)
async def test_no_value_makes_a_batch_fail(db: OneTrip, data: dict[str, str]) -> None:
    """Numbers outside the range of a float and labels too large for an index are kept raw, and summed if possible."""
    ((name, value),) = data.items()
    answer = await aggregate(db, f'[{{"type": "a", "data": {{"{name}": {value}}}}}, {{"type": "a", "value": 1}}]')
    assert (answer["status"], answer["stored"]) == ("stored", 2)
    assert await db.fetchval("select sum(count) from monitoring.metrics_1min") >= 1


async def test_a_repeated_batch_is_stored_once(db: OneTrip) -> None:
    """A retry after a lost reply does not double the counts, and has the first result."""
    batch, metrics = str(uuid.uuid4()), [{"type": "a", "value": 1}, 7]
    first, second = await aggregate(db, metrics, batch), await aggregate(db, metrics, batch)
    assert (first["status"], second["status"]) == ("stored", "duplicate")
    assert list(first.values())[1:] == list(second.values())[1:]
    assert await counts(db) == {"raw": 1, "minutes": 1, "hours": 1}


async def test_concurrent_batches_count_exactly(postgres_url: str) -> None:
    """Forty batches, each sent twice, by eight writers, on the same minute: no deadlock, nothing twice or lost."""
    batches = [str(uuid.uuid4()) for _ in range(40)]
    metrics = [{"type": f"t{n % 5}", "value": 1, "labels": {"l": n % 3}} for n in range(30)]
    queue = [*batches, *reversed(batches)]

    async def work() -> None:
        async with session(postgres_url) as connection:
            while queue:
                answer = await aggregate(connection, metrics if len(queue) % 2 else metrics[::-1], queue.pop())
                assert answer["status"] in {"stored", "duplicate"}, answer["error"]

    await asyncio.gather(*(work() for _ in range(8)))
    async with session(postgres_url) as connection:
        assert await counts(connection) == {"raw": 1200, "minutes": 1200, "hours": 1200}


async def test_a_failure_is_answered_logged_and_free_to_be_tried_again(db: OneTrip) -> None:
    """The log of a function that raises is rolled back with it; so this one answers, and the batch id stays free."""
    batch = str(uuid.uuid4())
    await db.execute("alter table monitoring.metrics_1min add constraint broken check (count < 0) not valid")
    answer = await aggregate(db, [{"type": "a"}], batch)
    assert (answer["status"], answer["stored"]) == ("failed", 0)
    assert "broken" in answer["error"] and "23514" in answer["error"]
    assert await counts(db) == {"raw": 0, "minutes": 0, "hours": 0}
    row = await db.fetchrow("select status, error, received, rejected from monitoring.metrics_processing_log")
    assert tuple(row) == ("failed", answer["error"], 1, 1)
    await db.execute("alter table monitoring.metrics_1min drop constraint broken")
    assert (await aggregate(db, [{"type": "a"}], batch))["status"] == "stored"


async def test_rows_that_others_insert_are_summed_up_too(db: OneTrip) -> None:
    """The sums follow the table, not a function that may be gone round; so there is never anything to refresh."""
    await db.execute(
        'insert into monitoring.metrics_raw (type, data, "timestamp")'
        " select 'direct', jsonb_build_object('value', n), now() from generate_series(1, 100) n"
    )
    assert await counts(db) == {"raw": 100, "minutes": 100, "hours": 100}
    assert await db.fetchval("select sum(sum) from monitoring.metrics_1hour") == 5050
    before = await db.fetch("select xmin::text, k.* from monitoring.metrics_1min k")
    await db.execute("select monitoring.refresh_metrics_views()")
    assert await db.fetch("select xmin::text, k.* from monitoring.metrics_1min k") == before


async def test_recent_metrics_are_the_newest_first(db: OneTrip) -> None:
    """Of one type or of all, within the minutes, up to the limit."""
    for minutes in (1, 5, 59, 61):
        for type_ in ("a", "b"):
            await aggregate(db, [{"type": type_, "value": minutes, "timestamp": at(minutes=minutes)}])
    recent = "select type, (data->>'value')::int v from monitoring.get_recent_metrics($1::text, $2::int, $3::int)"
    assert [tuple(row) for row in await db.fetch(recent, "a", 60, 10)] == [("a", 1), ("a", 5), ("a", 59)]
    assert [row["v"] for row in await db.fetch(recent, None, 10, 3)] == [1, 1, 5]
    assert len(await db.fetch("select * from monitoring.get_recent_metrics('a')")) == 3
    assert len(await db.fetch("select * from monitoring.get_recent_metrics(p_minutes => null, p_limit => null)")) == 6
    assert await db.fetch(recent, "a", -5, 10) == await db.fetch(recent, "a", 60, -1) == []
    assert [row["v"] for row in await db.fetch(recent, "none", 60, 10)] == []


async def test_no_question_brings_back_everything(db: OneTrip) -> None:
    """The limit has a limit."""
    await aggregate(db, [{"type": "a"}] * 1200)
    assert len(await db.fetch("select * from monitoring.get_recent_metrics('a', 10, 100000)")) == 1000


async def partitions(db: OneTrip) -> list[str]:
    rows = await db.fetch(
        "select c.relname::text from pg_inherits i join pg_class c on c.oid = i.inhrelid"
        " where i.inhparent = 'monitoring.metrics_raw'::regclass and c.relname ~ '\\d{8}$' order by 1"
    )
    return [row[0] for row in rows]


async def test_partitions_are_made_ahead_once(db: OneTrip) -> None:
    """For a week, since the daemon that makes them may be stopped."""
    today = await db.fetchval("select (now() at time zone 'UTC')::date")
    wanted = [f"metrics_raw_{today + timedelta(days=n):%Y%m%d}" for n in range(8)]
    assert await partitions(db) == wanted
    assert await db.fetchval("select monitoring.create_partitions(7)") == 0
    assert await db.fetchval("select monitoring.create_partitions(9)") == 2
    assert len(await partitions(db)) == 10


async def test_a_partition_made_late_takes_its_rows_out_of_the_default_one(db: OneTrip) -> None:
    """Without a partition rows are accepted; with it none is counted twice."""
    await db.execute("insert into monitoring.metrics_raw (type, \"timestamp\") values ('a', now() + interval '8 days')")
    assert await db.fetchval("select count(*) from only monitoring.metrics_raw_default") == 1
    assert await db.fetchval("select monitoring.create_partitions(8)") == 1
    assert await db.fetchval("select count(*) from only monitoring.metrics_raw_default") == 0
    assert await counts(db) == {"raw": 1, "minutes": 1, "hours": 1}
    indexes = await db.fetchval(
        "select count(*) from pg_index where indrelid = (select tableoid from monitoring.metrics_raw limit 1)"
    )
    assert indexes == 2


async def test_retention_drops_whole_days_and_old_rows_in_batches(db: OneTrip) -> None:
    """Partitions by their last row, sums by their bucket; younger rows stay."""
    today = await db.fetchval("select (now() at time zone 'UTC')::date")
    for day in (today - timedelta(days=n) for n in range(1, 6)):
        await db.execute(
            f"create table monitoring.metrics_raw_{day:%Y%m%d} partition of monitoring.metrics_raw"
            f" for values from ('{day} 00:00+00') to ('{day + timedelta(days=1)} 00:00+00')"
        )
    await aggregate(db, [{"type": "a", "timestamp": at(days=days)} for days in (0, 2, 5)])
    await db.execute(
        "insert into monitoring.metrics_1min (bucket, type, count)"
        " select now() - interval '31 days' - n * interval '1 minute', 'a', 1 from generate_series(1, 25) n"
    )
    await db.execute(
        "insert into monitoring.metrics_1hour (bucket, type, count) values (now() - interval '401 days', 'a', 1)"
    )
    await db.execute("update monitoring.metrics_processing_log set processed_at = now() - interval '8 days'")
    await db.execute(
        "insert into monitoring.metrics_raw (type, \"timestamp\") values ('a', now() - interval '90 days')"
    )

    async def retained() -> dict[str, int]:
        rows = await db.fetch("select * from monitoring.apply_retention(p_limit => 10)")
        return {row["what"]: row["removed"] for row in rows}

    found = await retained()
    assert found == {
        "partitions": 0,
        "metrics_raw_default": 1,
        "metrics_processing_log": 1,
        "metrics_1min": 10,
        "metrics_1hour": 1,
    }
    assert [(await retained())["metrics_1min"] for _ in range(3)] == [10, 5 + 1, 0]
    removed = await db.fetchval(
        "select removed from monitoring.apply_retention(interval '3 days') where what = 'partitions'"
    )
    assert removed == 2
    assert (await partitions(db))[0] == f"metrics_raw_{today - timedelta(days=3):%Y%m%d}"
    assert await db.fetchval("select count(*) from monitoring.metrics_raw") == 2


async def test_upkeep_runs_once_at_a_time(postgres_url: str, db: OneTrip) -> None:
    """Any number of daemons may try; the others have nothing to do and do not wait."""
    async with session(postgres_url) as other, other.transaction():
        await other.execute("select monitoring.create_partitions()")
        assert await db.fetchval("select monitoring.create_partitions(30)") == 0
        assert await db.fetch("select * from monitoring.apply_retention()") == []
    assert await db.fetchval("select monitoring.create_partitions(30)") == 23


async def test_days_begin_in_utc_wherever_the_session_is(db: OneTrip) -> None:
    """Otherwise two sessions would cut the same day differently."""
    await db.execute("select set_config('timezone', 'Pacific/Kiritimati', false)")
    await db.execute("select monitoring.create_partitions(20)")
    bounds = await db.fetch(
        "select pg_get_expr(c.relpartbound, c.oid) b from pg_inherits i join pg_class c on c.oid = i.inhrelid"
        " where i.inhparent = 'monitoring.metrics_raw'::regclass and c.relname ~ '\\d{8}$'"
    )
    assert all(row["b"].count(" 14:00:00+14") == 2 for row in bounds)
    await db.execute("insert into monitoring.metrics_raw (type) values ('a')")
    bucket = await db.fetchval("select bucket at time zone 'UTC' from monitoring.metrics_1hour")
    assert bucket.minute == 0


async def test_a_service_role_may_do_what_it_needs_and_no_more(empty_postgres_url: str) -> None:
    """Metrics are about all owners, so the roles of the public interface cannot read them."""
    from exai.db.migrations.migrate import upgrade

    async with session(empty_postgres_url) as connection:
        for role in ("anon", "authenticated", "service_role"):
            await connection.execute(
                f"do $$ begin create role {role}; exception when duplicate_object then null; end $$"
            )
        if not await connection.fetchval("select rolsuper from pg_roles where rolname = current_user"):
            pytest.skip("only a superuser can let a role by row level security")
        await connection.execute("alter role service_role bypassrls")
    await upgrade(empty_postgres_url)
    async with session(empty_postgres_url) as connection:
        for role in ("anon", "authenticated"):
            async with connection.transaction():
                await connection.execute(f"set local role {role}")
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.execute("select monitoring.insert_metric('a')")
        await connection.execute("set role service_role")
        await connection.execute("select monitoring.insert_metric('a', '{}', now() - interval '1 year')")
        assert (await aggregate(connection, [{"type": "a"}]))["status"] == "stored"
        assert len(await connection.fetch("select * from monitoring.get_recent_metrics()")) == 1
        await connection.execute("select monitoring.refresh_metrics_views(), monitoring.apply_retention()")
        assert await connection.fetchval("select sum(count) from monitoring.metrics_1hour") == 2
        for forbidden in ("delete from monitoring.metrics_raw", "update monitoring.metrics_1hour set count = 0"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(forbidden)
