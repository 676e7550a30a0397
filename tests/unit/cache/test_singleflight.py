"""Which callers may share a database read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from exai.cache.singleflight import LINGER_S, SingleFlight
from exai.errors import DeadlineExceeded
from exai.resilience import with_deadline
from tests.support.waiting import WAIT_LIMIT_S


class Reads:
    """Database reads that end when a test releases them; each returns its number."""

    def __init__(self) -> None:
        self.begun = 0
        self.gates: list[asyncio.Event] = []

    def read(self) -> Callable[[], Awaitable[int]]:
        async def run() -> int:
            self.begun += 1
            number, gate = self.begun, asyncio.Event()
            self.gates.append(gate)
            await gate.wait()
            return number

        return run


async def nothing(_: int | None) -> None:
    """Nothing is to be done afterwards."""


async def turn() -> None:
    """Let everything that can run do so."""
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
def flights() -> SingleFlight[str, int]:
    return SingleFlight()


@pytest.fixture
def reads() -> Reads:
    return Reads()


class TestUnderALease:
    async def test_only_the_same_lease_finds_the_read(self, flights: SingleFlight[str, int], reads: Reads) -> None:
        """A reader that saw another lease alive may know of a change in between."""
        flight = flights.lead("key", b"one", reads.read(), nothing)
        assert flights.find("key", b"one") is flight
        assert flights.find("key", b"two") is None
        assert flights.find("other", b"one") is None
        await flights.close()

    async def test_read_under_the_lease_of_another_can_be_found_for_a_moment_longer(
        self, flights: SingleFlight[str, int], reads: Reads
    ) -> None:
        """Its end is not visible here; a reader that found it running shares it. Our own reads end explicitly."""
        own = flights.lead("own", b"one", reads.read(), nothing)
        foreign = flights.lead("foreign", b"one", reads.read())
        await turn()
        for gate in reads.gates:
            gate.set()
        assert (await own.result(), await foreign.result()) == (1, 2)
        await turn()
        assert (flights.find("own", b"one"), flights.find("foreign", b"one")) == (None, foreign)
        async with asyncio.timeout(WAIT_LIMIT_S):
            while flights.find("foreign", b"one") is not None:
                await asyncio.sleep(LINGER_S / 5)

    async def test_newer_lease_takes_the_place_of_the_older(
        self, flights: SingleFlight[str, int], reads: Reads
    ) -> None:
        """And the end of the older read does not remove it."""
        older = flights.lead("key", b"one", reads.read(), nothing)
        await turn()
        newer = flights.lead("key", b"two", reads.read(), nothing)
        await turn()
        reads.gates[0].set()
        assert await older.result() == 1
        await turn()
        assert (flights.find("key", b"one"), flights.find("key", b"two")) == (None, newer)
        await flights.close()

    async def test_caller_that_leaves_does_not_end_the_read(
        self, flights: SingleFlight[str, int], reads: Reads
    ) -> None:
        """Others wait for it, and it fills the cache."""
        flight = flights.lead("key", b"one", reads.read(), nothing)
        first, second = asyncio.create_task(flight.result()), asyncio.create_task(flight.result())
        await turn()
        first.cancel()
        await turn()
        reads.gates[0].set()
        assert await second == 1

    async def test_callers_do_not_wait_for_what_comes_after_the_read(
        self, flights: SingleFlight[str, int], reads: Reads
    ) -> None:
        """The cache is filled in the meantime, and the read can be found until then."""
        seen: list[int | None] = []
        filled = asyncio.Event()

        async def fill(result: int | None) -> None:
            seen.append(result)
            await filled.wait()

        flight = flights.lead("key", b"one", reads.read(), fill)
        await turn()
        reads.gates[0].set()
        assert await flight.result() == 1
        await turn()
        assert (seen, flights.find("key", b"one")) == ([1], flight)
        filled.set()

    @pytest.mark.parametrize("begun", [True, False])
    async def test_cancelled_read_fails_all_its_waiters(
        self, flights: SingleFlight[str, int], reads: Reads, begun: bool
    ) -> None:
        """Also when it had not begun; and a lease it was under is given back when it had."""
        seen: list[int | None] = []

        async def release(result: int | None) -> None:
            seen.append(result)

        waiting = asyncio.create_task(flights.lead("key", b"one", reads.read(), release).result())
        if begun:
            await turn()
        await flights.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert seen == ([None] if begun else [])

    async def test_each_caller_waits_within_its_own_deadline(
        self, flights: SingleFlight[str, int], reads: Reads
    ) -> None:
        """Also the one that began the read: its deadline is not the read's."""

        async def hasty() -> int:
            with with_deadline(0.01):
                return await flights.lead("key", b"one", reads.read(), nothing).result()

        with pytest.raises(DeadlineExceeded, match="the database"):
            await hasty()
        flight = flights.find("key", b"one")
        assert flight is not None
        reads.gates[0].set()
        assert await flight.result() == 1

    async def test_failure_is_raised_in_all_waiters_and_dropped_without_them(
        self, flights: SingleFlight[str, int]
    ) -> None:
        """An exception that is not retrieved would be a warning, and warnings are errors here."""

        async def fail() -> int:
            raise ConnectionError

        results = await asyncio.gather(
            *(flights.lead("key", b"one", fail, nothing).result() for _ in range(3)), return_exceptions=True
        )
        assert all(isinstance(result, ConnectionError) for result in results)
        flights.lead("key", b"two", fail, nothing)
        await turn()


class TestWithoutALease:
    async def test_who_asks_before_the_read_begins_shares_it(
        self, flights: SingleFlight[str, int], reads: Reads
    ) -> None:
        """And who asks later shares the next one: two reads for any number of callers."""
        early = [asyncio.create_task(flights.later("key", reads.read())) for _ in range(100)]
        await turn()
        late = [asyncio.create_task(flights.later("key", reads.read())) for _ in range(100)]
        await turn()
        assert reads.begun == 1
        reads.gates[0].set()
        assert await asyncio.gather(*early) == [1] * 100
        await turn()
        reads.gates[1].set()
        assert await asyncio.gather(*late) == [2] * 100
        assert reads.begun == 2

    async def test_conversations_do_not_wait_for_each_other(
        self, flights: SingleFlight[str, int], reads: Reads
    ) -> None:
        """One at a time is for each."""
        waiting = [asyncio.create_task(flights.later(key, reads.read())) for key in "abc"]
        await turn()
        assert reads.begun == 3
        for gate in reads.gates:
            gate.set()
        assert sorted(await asyncio.gather(*waiting)) == [1, 2, 3]

    async def test_failed_read_lets_the_next_begin(self, flights: SingleFlight[str, int], reads: Reads) -> None:
        """Its error is raised only in the callers that shared it."""

        async def fail() -> int:
            raise ConnectionError

        first = asyncio.create_task(flights.later("key", fail))
        await turn()
        second = asyncio.create_task(flights.later("key", reads.read()))
        with pytest.raises(ConnectionError):
            await first
        await turn()
        reads.gates[0].set()
        assert await second == 1

    async def test_closing_ends_all_reads(self, flights: SingleFlight[str, int], reads: Reads) -> None:
        """No task outlives the cache."""
        waiting = [asyncio.create_task(flights.later("key", reads.read())) for _ in range(2)]
        await turn()
        waiting.append(asyncio.create_task(flights.later("key", reads.read())))
        await turn()
        await flights.close()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
