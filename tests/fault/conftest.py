"""Fixtures of the fault tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.fault.fleet import TOOL_TIMEOUT_S, Fleet, Redundant, cluster, sentinel
from tests.fault.service import Servers, servers
from tests.support.poolers import Poolers, pgbouncer


@pytest.fixture
async def rig(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Servers]:
    """The suite's servers, which no test may harm, and a provider."""
    async with servers(postgres_url, redis_url, tmp_path) as opened:
        yield opened


@pytest.fixture(params=["sentinel", "cluster"])
async def redis(request: pytest.FixtureRequest) -> AsyncIterator[Redundant]:
    """One primary with a replica and a sentinel, or three nodes that share the slots."""
    with ExitStack() as stack:
        yield await (sentinel(stack) if request.param == "sentinel" else cluster(stack))


@pytest.fixture
def pooled_url(postgres_url: str) -> Iterator[str]:
    """The database through the real PgBouncer where it is installed, else through the tests' own pooler."""
    poolers = Poolers("pgbouncer" if pgbouncer() else "strict")
    try:
        with poolers.front(postgres_url) as url:
            yield url
    finally:
        poolers.close()


@pytest.fixture
async def fleet(pooled_url: str, redis: Redundant, tmp_path: Path) -> AsyncIterator[Fleet]:
    """Three daemons on the same servers; the test starts them."""
    settings = {
        "EXAI_DATA_DIR": str(tmp_path),
        "EXAI_DATABASE__URL": pooled_url,
        "EXAI_DATABASE__POOL_SIZE": "3",
        "EXAI_CACHE__URL": redis.url,
        "EXAI_TOOL_TIMEOUT_S": str(TOOL_TIMEOUT_S),
        # A daemon may be started while a new primary is elected, or cannot be reached, and then waits for it.
        "EXAI_START_WAIT_S": "30",
    }
    fleet = Fleet(settings)
    try:
        yield fleet
    finally:
        await asyncio.to_thread(fleet.close)
