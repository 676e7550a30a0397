"""`exai bench` on real servers: counts are exact, the report is complete, and nothing is left behind.

How long anything takes is never asserted.
"""

from __future__ import annotations

import gc
import io
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
import redis

from exai.app import App
from exai.bench.command import bench, bench_cloud
from exai.bench.contestants import UNSAMPLED, open_contestants, seed
from exai.bench.floors.postgres import OWNER, remove_all
from exai.bench.measure import Cost, count
from exai.bench.operations import (
    APPEND,
    APPEND_FILES,
    FULL,
    GET,
    HIT,
    INSERT,
    LIST,
    MISS,
    SEARCH,
    SELECT,
    UNCACHED,
    Operations,
    Pair,
)
from exai.bench.plan import QUICK, Texts
from exai.bench.proxy.wire import LatencyProxy
from exai.bench.servers import OWN_STATEMENTS, ServerAddresses, through_wire
from exai.cli import main as cli
from exai.errors import ConfigError
from tests.support.pg_proxy import PgProxy
from tests.support.redis_proxy import RedisProxy

COSTS = {
    HIT: (0, 0, 1, 1),
    MISS: (1, 1, 2, 2),
    UNCACHED: (1, 1, 0, 0),
    APPEND: (1, 1, 1, 1),
    APPEND_FILES: (1, 1, 1, 1),
    FULL: (1, 1, 2, 2),
    LIST: (1, 1, 0, 0),
    SEARCH: (1, 1, 0, 0),
}
"""Statements, database round trips, commands, cache round trips of one operation, as the service promises them."""

REPEATS = 3
ROOT = Path(__file__).parents[3]

FLOOR_COSTS = {GET: (0, 0, 1, 1), SELECT: (1, 1, 0, 0), INSERT: (1, 1, 0, 0)}


@pytest.fixture(autouse=True)
def small_heap() -> Iterator[None]:
    """The bench collects garbage before each batch: let it not go through all that the suite has loaded each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@dataclass
class Rig:
    """The contestants behind the bench's own proxy."""

    operations: Operations
    wire: LatencyProxy
    app: App

    def pairs(self) -> list[Pair]:
        return [each for each in self.operations.all() if isinstance(each, Pair)]


@asynccontextmanager
async def open_rig(postgres_url: str, redis_url: str) -> AsyncIterator[Rig]:
    """Everything that `exai bench` opens for counting, with every operation done once."""
    texts = Texts(QUICK.message_bytes)
    async with AsyncExitStack() as stack:
        servers = ServerAddresses(postgres_url, redis_url, "")
        through, wire = await stack.enter_async_context(through_wire(servers, 0.0))
        contestants = await stack.enter_async_context(open_contestants(through, QUICK.messages, UNSAMPLED))
        data = await seed(contestants.app, servers, QUICK, texts)
        contestants = await stack.enter_async_context(open_contestants(through, QUICK.messages, UNSAMPLED))
        operations = Operations(contestants, data, texts)
        await operations.prepare()
        rig = Rig(operations, wire, contestants.app)
        for pair in rig.pairs():
            for operation in (pair.operation, pair.floor):
                await operation.prepare()
                await operation.run(0)
        yield rig
        await remove_all(postgres_url)


def numbers(cost: Cost) -> tuple[int, int, int | None, int | None]:
    return cost.statements, cost.database_round_trips, cost.commands, cost.cache_round_trips


async def test_each_operation_costs_what_the_service_promises(postgres_url: str, redis_url: str) -> None:
    """The design's promises 1 to 3: a cached read 1 Redis round trip, a miss and an append 1 of the database."""
    async with open_rig(postgres_url, redis_url) as rig:
        costs = [await count(pair.operation, rig.wire, QUICK.counted) for pair in rig.pairs()]
        floors = [await count(pair.floor, rig.wire, QUICK.counted) for pair in rig.pairs()]
    assert {each.operation: numbers(each) for each in costs} == COSTS
    assert {name: each for name, each in seen(floors).items() if name in FLOOR_COSTS} == FLOOR_COSTS


def seen(costs: list[Cost]) -> dict[str, tuple[int, int, int | None, int | None]]:
    return {each.operation: numbers(each) for each in costs}


async def test_what_the_wire_counts_is_what_the_service_counts(postgres_url: str, redis_url: str) -> None:
    """The recorder's counters are the ones a user can see, so they must say what passes on the wire."""
    async with open_rig(postgres_url, redis_url) as rig:
        for pair in rig.pairs():
            await pair.operation.prepare()
            await rig.wire.take_counts()
            before = statements(rig.app)
            await pair.operation.run(1)
            assert (await rig.wire.take_counts())["postgres"].requests == statements(rig.app) - before


def statements(app: App) -> float:
    """The statements that the service counted, except those of its background tasks."""
    counted = app.recorder.labelled("db_statements_total")
    return sum(value for labels, value in counted.items() if dict(labels)["statement"] not in OWN_STATEMENTS)


async def test_another_proxy_counts_the_same(
    postgres_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bench's counting is not trusted on its own word: the tests' proxies stand behind it."""
    # Those proxies count everything, so the service's own reconciliations must not come between.
    monkeypatch.setenv("EXAI_CACHE__RECONCILE_INTERVAL_S", "59")
    monkeypatch.setenv("EXAI_CACHE__MAX_STALENESS_S", "60")
    monkeypatch.setenv("EXAI_DATABASE__INDEX_PAUSE_S", "60")
    path = urlsplit(redis_url).path
    parts = urlsplit(redis_url)
    upstream = path if parts.scheme == "unix" else (parts.hostname or "127.0.0.1", parts.port or 6379)
    async with (
        PgProxy(postgres_url) as database,
        RedisProxy(upstream) as cache,
        open_rig(database.url, cache.url) as rig,
    ):
        for pair in rig.pairs():
            for operation in (pair.operation, pair.floor):
                cost = await count(operation, rig.wire, 1)
                behind = []
                for _ in range(REPEATS):
                    await operation.prepare()
                    database.reset()
                    cache.reset_counters()
                    await operation.run(2)
                    await operation.finish()
                    behind.append((database.round_trips, len(cache.commands)))
                # A health probe may come between now and then; the operation's cost is what is always there.
                assert tuple(map(min, zip(*behind, strict=True))) == (cost.database_round_trips, cost.commands)


async def test_report_is_complete_and_nothing_is_left(
    postgres_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run on given servers leaves no rows and no keys."""
    monkeypatch.setenv("EXAI_DATABASE__URL", postgres_url)
    monkeypatch.setenv("EXAI_CACHE__URL", redis_url)
    printed = json.loads(
        await bench(here=True, quick=True, latency_ms=0, at_scale=False, as_json_text=True, error=io.StringIO())
    )
    near, far = printed["sections"]
    cells = {(each["operation"], each["callers"]) for each in near["comparisons"]}
    assert cells == {(name, callers) for name in COSTS for callers in (1, 16, 64)}
    assert [(each["operation"], each["callers"]) for each in far["comparisons"]] == [(FULL, 1)]
    assert [each["name"] for each in printed["absent"]] == []
    assert {each["operation"] for each in printed["costs"]} >= set(COSTS)
    assert all(each["verdict"] in ("met", "missed") for each in printed["targets"])
    assert len(printed["targets"]) == 5
    assert printed["indexing_us"] > 0
    assert await rows_left(postgres_url) == []
    with redis.Redis.from_url(redis_url) as client:
        assert [key for key in client.keys() if b"watermark" not in key] == []


async def test_callers_with_a_far_database_are_compared_with_one(
    postgres_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis is asked directly, and nothing is left behind."""
    monkeypatch.setenv("EXAI_DATABASE__URL", postgres_url)
    monkeypatch.setenv("EXAI_CACHE__URL", redis_url)
    printed = json.loads(
        await bench_cloud(here=True, quick=True, latency_ms=1.0, as_json_text=True, error=io.StringIO())
    )
    cells = {(each["operation"], each["callers"]) for each in printed["concurrent"]}
    assert cells == {(name, callers) for name in (HIT, APPEND, FULL) for callers in (1, 16, 64)}
    assert all(each["latency_ratio"] == 1 for each in printed["concurrent"] if each["callers"] == 1)
    assert len(printed["targets"]) == 4
    assert all(each["verdict"] in ("met", "missed") for each in printed["targets"])
    assert await rows_left(postgres_url) == []


def test_the_comparison_with_other_stores_finds_what_it_imports() -> None:
    """It is outside the package, so types and import contracts are not checked there."""
    program = [sys.executable, str(ROOT / "bench" / "peers.py"), "--help"]
    found = subprocess.run(
        program, check=False, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert "--cloud" in found.stdout, found.stderr


async def rows_left(url: str) -> list[Any]:
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch("select id from public.conversations where owner = $1", OWNER)
        rows += await connection.fetch("select id from public.files where owner = $1", OWNER)
        return rows + await connection.fetch("select 1 from pg_namespace where nspname = 'exai_bench'")
    finally:
        await connection.close()


async def test_without_a_cache_the_cached_operations_say_so(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operation that cannot be measured is shown with the reason."""
    monkeypatch.setenv("EXAI_DATABASE__URL", postgres_url)
    monkeypatch.setenv("EXAI_CACHE__URL", "off")
    text = await bench(here=True, quick=True, latency_ms=0, at_scale=False, as_json_text=False, error=io.StringIO())
    assert f"{HIT}      not measured: no Redis is configured" in text
    assert "not measured" in text.splitlines()[-1]


async def test_here_without_addresses_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing falls back in silence: who asks for the configured servers does not get others."""
    monkeypatch.delenv("EXAI_DATABASE__URL", raising=False)
    with pytest.raises(ConfigError, match="EXAI_DATABASE__URL: is not set"):
        await bench(here=True, quick=True, latency_ms=0, at_scale=False, as_json_text=False, error=io.StringIO())


async def test_encrypted_connections_are_timed_but_not_counted(redis_url: str) -> None:
    """The counting proxy cannot read TLS, so it reports no counts."""
    servers = ServerAddresses("postgresql://user@host/database?sslmode=require", redis_url, "")
    with pytest.raises(ConfigError, match="asks for encryption"):
        async with through_wire(servers, 0.0):
            raise AssertionError


def test_latency_out_of_range_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2 is for wrong arguments."""
    assert cli.main(["bench", "--latency-ms", "-1"]) == 2
    assert "--latency-ms" in capsys.readouterr().err
