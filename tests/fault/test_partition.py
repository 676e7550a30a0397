"""Three daemons behind PgBouncer with Redis under Sentinel or in a Cluster, while the network between them is cut.

A cut ends no connection: packets vanish, in one of the two directions. The other daemons serve meanwhile; a daemon
without its database refuses calls, with an error that may be repeated, and is not ready; one without Redis serves.
`make fault` runs it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator, Sequence

import pytest

from tests.fault.fleet import CLIENTS, DAEMONS, Client, Fleet, Redundant, check_stored
from tests.fault.partition import OWN_NETWORK, Lost, Network, Packets, Proxies, Side
from tests.support.waiting import wait_until

pytestmark = pytest.mark.heavy

LIMIT_S, STEP_LIMIT_S = 300, 40.0
SIDES: Sequence[Side] = ("database", "redis", "client")
LOST: Sequence[Lost] = ("requests", "replies")
STOPPING = {"shutting_down", "cancelled"}


@pytest.fixture(
    params=[
        pytest.param(
            "packets",
            marks=pytest.mark.skipif(
                not os.environ.get(OWN_NETWORK),
                reason="packets are dropped in a network namespace (make fault, as root)",
            ),
        ),
        "proxies",
    ]
)
async def network(request: pytest.FixtureRequest, fleet: Fleet, redis: Redundant) -> AsyncIterator[Network]:
    """Between the daemons of the fleet, which serve."""
    made: Network = Packets(fleet, redis) if request.param == "packets" else Proxies(fleet, redis)
    async with made:
        await fleet.start_all()
        yield made
        # A daemon that is ended while it is cut would wait for its database.
        made.heal()


class Traffic:
    """Clients that write until `over`."""

    def __init__(self, fleet: Fleet, network: Network) -> None:
        self.fleet, self.network, self.over = fleet, network, asyncio.Event()
        self.clients = [Client(network.urls, number, self._contents()) for number in range(CLIENTS)]

    def _contents(self) -> itertools.takewhile[str]:
        return itertools.takewhile(lambda _: not self.over.is_set(), map(str, itertools.count()))

    @property
    def busiest(self) -> int:
        """The daemon with the most clients."""
        return max(range(DAEMONS), key=lambda number: len(self.at(number)))

    def at(self, number: int) -> list[Client]:
        return [client for client in self.clients if client.at == number]

    def acknowledged(self, by: int | None = None) -> int:
        return sum(len(each.acknowledged) if by is None else each.acknowledged_by.count(by) for each in self.clients)

    def refused(self, by: int) -> int:
        return sum(number == by for client in self.clients for number, _ in client.refusals)

    async def goes_on(self, count: int, by: int | None = None) -> None:
        """Wait until so many more messages are acknowledged."""
        wanted = self.acknowledged(by) + count
        await wait_until(lambda: self.acknowledged(by) >= wanted, lambda: f"no {count} more by {by}", STEP_LIMIT_S)

    async def until_ready(self, number: int, wanted: bool) -> None:
        async with asyncio.timeout(STEP_LIMIT_S):
            while await self.fleet.is_ready(number) is not wanted:
                await asyncio.sleep(0.05)


async def partitioned(traffic: Traffic, side: Side, lost: Lost) -> None:
    """Cut the busiest daemon from one side until that has had its effect, and heal."""
    number = traffic.busiest
    there, refused = traffic.at(number), traffic.refused(number)
    traffic.network.cut(number, side, lost)
    match side:
        case "database":
            await wait_until(lambda: traffic.refused(number) > refused, lambda: "no call was refused", STEP_LIMIT_S)
            if lost == "requests":
                # By several probes, which take a while; once suffices.
                await traffic.until_ready(number, False)
        case "redis":
            await traffic.goes_on(2 * CLIENTS, number)
        case "client":
            left = lambda: not [client for client in there if client.at == number]  # noqa: E731
            await wait_until(left, lambda: "clients wait for a daemon that is cut off", STEP_LIMIT_S)
    await traffic.goes_on(CLIENTS)
    traffic.network.heal()
    if side == "database" and lost == "requests":
        await traffic.until_ready(number, True)
    await traffic.goes_on(CLIENTS)


async def test_no_acknowledged_message_is_lost_while_the_network_is_cut(network: Network, fleet: Fleet) -> None:
    """Each daemon and each side in turn, and a restart of a daemon that cannot reach its database."""
    traffic = Traffic(fleet, network)
    cut_from_database: set[int] = set()
    cut_from_clients: set[int] = set()

    async def faults() -> None:
        await traffic.goes_on(CLIENTS)
        for side, lost in itertools.product(SIDES, LOST):
            {"database": cut_from_database, "client": cut_from_clients}.get(side, set()).add(traffic.busiest)
            await partitioned(traffic, side, lost)
        number = traffic.busiest
        cut_from_database.add(number)
        network.cut(number, "database", "requests")
        assert await fleet.stop(number, signal.SIGTERM) == 0
        starting = asyncio.create_task(fleet.start(number))
        await traffic.goes_on(CLIENTS)
        network.heal()
        await starting
        await traffic.goes_on(CLIENTS)
        traffic.over.set()

    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
        group.create_task(faults())
        for client in traffic.clients:
            group.create_task(client.run())
    refusals = [refusal for client in traffic.clients for refusal in client.refusals]
    assert {number for number, facts in refusals if facts["code"] not in STOPPING} <= cut_from_database
    assert [facts for _, facts in refusals if not facts["retryable"]] == []
    assert {number for client in traffic.clients for number in client.unanswered} <= cut_from_clients
    await check_stored(network.urls, traffic.clients)
