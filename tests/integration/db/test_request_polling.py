"""The cost of an idle daemon that answers stored requests: statements, counted while the clock is moved."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable

import pytest

from exai.db.driver.pool import Database, OneTrip
from exai.db.requests import RequestRepository
from exai.requests.queue import PRUNE_S, open_requests
from exai.settings.requests import RequestSettings
from tests.support.counters import Counters
from tests.support.database import opened
from tests.support.mcp_server import Tools, fast_settings, new_server
from tests.support.migrations import session

CLAIM, PRUNE = "claim_requests", "prune_requests"
STEP_S = 0.25
MINUTE_S = 60.0
PAUSES = [1.0, 1.5, 2.25, 3.375, 5.0625, 7.59375, 11.390625, 15.0]
"""Seconds between statements after activity: each is longer by half than the one before, up to 15."""

LIMIT_S = 30.0


class Clock:
    """The clock of the event loop, which the test moves; statements are counted when they have ended."""

    def __init__(self, database: Database, counters: Counters) -> None:
        loop = asyncio.get_running_loop()
        self._real: Callable[[], float] = loop.time
        self._database, self._counters = database, counters
        self.ahead_s = 0.0
        self.claims: list[float] = []
        loop.time = lambda: self._real() + self.ahead_s  # type: ignore[method-assign]

    def statements(self, name: str | None = None) -> int:
        """Count statements of one name, or all of them."""
        ended = self._counters.counts
        return round(sum(n for key, n in ended.items() if key[0] == "db_statements_total" and name in (None, key[1])))

    async def move(self, by_s: float) -> None:
        """Move it in steps, in each of which everything that is due comes to its end."""
        for _ in range(round(by_s / STEP_S)):
            self.ahead_s += STEP_S
            before = self.statements(CLAIM)
            await self.settle()
            self.claims += [self.ahead_s] * (self.statements(CLAIM) - before)

    async def settle(self) -> None:
        """Wait until no task waits for the database."""
        async with asyncio.timeout(LIMIT_S):
            quiet = 0
            while quiet < 5:
                await asyncio.sleep(0)
                in_use, _, _ = self._database.usage()
                quiet = 0 if in_use else quiet + 1


@pytest.fixture
def counters() -> Counters:
    return Counters()


@pytest.fixture
async def clock(postgres_url: str, counters: Counters) -> AsyncIterator[Clock]:
    """A daemon's queue of requests, which nothing notifies, with a moved clock."""
    async with opened(postgres_url, recorder=counters) as database:
        clock = Clock(database, counters)
        server = new_server(Tools(), fast_settings())
        async with open_requests(server, RequestRepository(database), RequestSettings(), counters, None):
            await clock.settle()
            clock.claims = [0.0] * clock.statements(CLAIM)
            yield clock


@pytest.fixture
async def sql(postgres_url: str) -> AsyncIterator[OneTrip]:
    async with session(postgres_url) as connection:
        yield connection


def pauses(claims: list[float]) -> list[float]:
    """Return the times between statements."""
    return [after - before for before, after in itertools.pairwise(claims)]


async def test_an_idle_daemon_polls_from_one_second_after_activity_to_fifteen(clock: Clock) -> None:
    """Nine statements in the first minute, four in each later one, and none that is not a claim."""
    await clock.move(MINUTE_S)
    assert pauses(clock.claims) == pytest.approx(PAUSES, abs=STEP_S)
    for _ in range(5):
        before = clock.statements()
        await clock.move(MINUTE_S)
        assert clock.statements() - before == 4
    assert clock.statements() - clock.statements(CLAIM) == clock.statements(PRUNE) == 1
    await clock.move(PRUNE_S - 6 * MINUTE_S)
    assert clock.statements() - clock.statements(CLAIM) == clock.statements(PRUNE) == 2


async def test_a_request_starts_the_intervals_again(clock: Clock, sql: OneTrip) -> None:
    """Without a notification it waits for the next poll; the next one is asked for at once when it has ended."""
    await clock.move(2 * MINUTE_S)
    ask = "insert into requests (owner, tool, arguments) values ('a', 'echo', $1::jsonb)"
    await sql.execute(ask, json.dumps({"text": "Hello"}))
    known = len(clock.claims)
    while len(clock.claims) == known:
        await clock.move(STEP_S)
    async with asyncio.timeout(LIMIT_S):
        while await sql.fetchval("select state from requests") != "done":
            await clock.move(STEP_S)
    await clock.settle()
    last = len(clock.claims) - 1
    await clock.move(MINUTE_S)
    assert pauses(clock.claims[last:]) == pytest.approx(PAUSES, abs=STEP_S)
