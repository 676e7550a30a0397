"""Three daemons behind PgBouncer with Redis under Sentinel or in a Cluster, while servers die and daemons are replaced.

Every client writes to a conversation of its own through any daemon that answers, and repeats a call under its key. It
may see a connection that ends and a daemon that stops, and nothing else; every acknowledged message is stored once, in
order. `make fault` runs it.
"""

from __future__ import annotations

import asyncio
import signal

import pytest

from tests.fault.fleet import CLIENTS, DAEMONS, Client, Fleet, Redundant, check_stored

pytestmark = pytest.mark.heavy

MESSAGES = 24
LIMIT_S = 180
STOPPING = {"shutting_down", "cancelled"}


@pytest.fixture
async def running(fleet: Fleet) -> Fleet:
    """All daemons of the fleet, serving."""
    await fleet.start_all()
    return fleet


async def test_no_acknowledged_message_is_lost_while_servers_die_and_daemons_are_replaced(
    running: Fleet, redis: Redundant
) -> None:
    """A failover of Redis, a killed daemon, and a rolling restart of all three, each while clients write."""
    fleet = running
    clients = [Client(fleet.urls, number, map(str, range(MESSAGES))) for number in range(CLIENTS)]
    stored = asyncio.Semaphore(0)

    async def after(count: int) -> None:
        for _ in range(count):
            await stored.acquire()

    async def faults() -> None:
        await after(CLIENTS * 3)
        await asyncio.to_thread(redis.victim.kill)
        await after(CLIENTS * 4)
        assert await fleet.replace(0, signal.SIGKILL) == -signal.SIGKILL
        for number in range(DAEMONS):
            await after(CLIENTS)
            assert await fleet.replace(number, signal.SIGTERM) == 0

    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
        group.create_task(faults())
        for client in clients:
            group.create_task(client.run(stored.release))
    assert {facts["code"] for client in clients for _, facts in client.refusals} <= STOPPING
    assert not [number for client in clients for number in client.unanswered]
    await check_stored(fleet.urls, clients)
