"""Three daemons behind PgBouncer with Redis under Sentinel or in a Cluster, while servers die and daemons are replaced.

Every client writes to a conversation of its own through any daemon that answers, and repeats a call under its key. It
may see a connection that ends and a daemon that stops, and nothing else; every acknowledged message is stored once, in
order. `make fault` runs it.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.fault.caller import Caller, Lost, Refused, calling
from tests.support.daemon import Daemon, start_daemon
from tests.support.poolers import Poolers, pgbouncer
from tests.support.valkey import Valkey, free_port
from tests.support.waiting import wait_until

pytestmark = pytest.mark.heavy

DAEMONS, CLIENTS, MESSAGES = 3, 6, 24
SERVICE = "exai-primary"
SLOTS = 16_384
LIMIT_S = 180
PAUSE_S = 0.05
STOPPING = {"shutting_down", "cancelled"}


@dataclass
class Redundant:
    """A Redis of several servers: its address, and the server whose death is survived."""

    url: str
    victim: Valkey


@pytest.fixture(params=["sentinel", "cluster"])
async def redis(request: pytest.FixtureRequest) -> AsyncIterator[Redundant]:
    """One primary with a replica and a sentinel, or three nodes that share the slots."""
    with ExitStack() as stack:
        yield await (sentinel(stack) if request.param == "sentinel" else cluster(stack))


async def sentinel(stack: ExitStack) -> Redundant:
    primary = stack.enter_context(Valkey(repl_diskless_sync_delay="0"))
    replica = stack.enter_context(Valkey(replicaof=f"127.0.0.1 {primary.port}"))
    await wait_until(lambda: replica.do("ROLE")[3] == b"connected", limit_s=20)
    watch = Valkey(sentinel=True)
    watch.configure(
        f"sentinel monitor {SERVICE} 127.0.0.1 {primary.port} 1",
        f"sentinel down-after-milliseconds {SERVICE} 500",
        f"sentinel failover-timeout {SERVICE} 3000",
    )
    stack.enter_context(watch)
    return Redundant(f"redis+sentinel://127.0.0.1:{watch.port}/{SERVICE}", primary)


async def cluster(stack: ExitStack) -> Redundant:
    buses = [free_port() for _ in range(3)]
    options = {"cluster_enabled": "yes", "cluster_node_timeout": "2000", "cluster_require_full_coverage": "no"}
    nodes = [stack.enter_context(Valkey(**options, cluster_port=str(bus))) for bus in buses]
    for number, node in enumerate(nodes):
        node.do("CLUSTER", "ADDSLOTSRANGE", number * SLOTS // 3, (number + 1) * SLOTS // 3 - 1)
        node.do("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        if number:
            node.do("CLUSTER", "MEET", "127.0.0.1", nodes[0].port, buses[0])
    await wait_until(lambda: all(b"cluster_state:ok" in node.do("CLUSTER", "INFO") for node in nodes), limit_s=20)
    await wait_until(lambda: all(node.do("CLUSTER", "NODES").count(b"master") == 3 for node in nodes), limit_s=20)
    return Redundant(f"redis+cluster://127.0.0.1:{nodes[1].port},127.0.0.1:{nodes[2].port}", nodes[0])


@pytest.fixture
def database(postgres_url: str) -> Iterator[str]:
    """Through the real PgBouncer where it is installed, else through the tests' own pooler."""
    poolers = Poolers("pgbouncer" if pgbouncer() else "strict")
    try:
        with poolers.front(postgres_url) as url:
            yield url
    finally:
        poolers.close()


@dataclass
class Fleet:
    """Daemons on fixed ports, each of which may be replaced."""

    settings: dict[str, str]
    ports: Sequence[int] = field(default_factory=lambda: [free_port() for _ in range(DAEMONS)])
    processes: dict[int, ExitStack] = field(default_factory=dict)
    daemons: dict[int, Daemon] = field(default_factory=dict)

    async def start(self, number: int) -> None:
        stack = self.processes[number] = ExitStack()
        settings = {**self.settings, "EXAI_SERVER__PORT": str(self.ports[number])}
        self.daemons[number] = await asyncio.to_thread(stack.enter_context, start_daemon(settings))

    async def replace(self, number: int, how: int) -> int:
        """End a daemon by a signal and start its successor; returns the exit status of the first."""
        status = await asyncio.to_thread(self.daemons[number].stop, how)
        self.processes[number].close()
        await self.start(number)
        return status

    def close(self) -> None:
        for stack in self.processes.values():
            stack.close()


@pytest.fixture
async def fleet(database: str, redis: Redundant, tmp_path: Path) -> AsyncIterator[Fleet]:
    fleet = Fleet({"EXAI_DATA_DIR": str(tmp_path), "EXAI_DATABASE__URL": database, "EXAI_CACHE__URL": redis.url})
    fleet.settings["EXAI_DATABASE__POOL_SIZE"] = "3"
    # A daemon may be started while a new primary is elected, and then waits for it.
    fleet.settings["EXAI_START_WAIT_S"] = "30"
    try:
        await asyncio.gather(*(fleet.start(number) for number in range(DAEMONS)))
        yield fleet
    finally:
        await asyncio.to_thread(fleet.close)


class Client:
    """One user: connects to a daemon, and to the next one when the connection ends."""

    def __init__(self, fleet: Fleet, number: int) -> None:
        self._urls = itertools.cycle(
            [f"ws://127.0.0.1:{port}/" for port in fleet.ports[number % DAEMONS :] + fleet.ports[: number % DAEMONS]]
        )
        self.number, self.name = number, ""
        self.acknowledged: list[str] = []
        self.refusals: list[str] = []

    async def run(self, progress: Callable[[], None]) -> None:
        """Append every message, each under one key until it is acknowledged."""
        waiting = [f"{self.number}:{count}" for count in range(MESSAGES)]
        while waiting:
            with suppress(Lost):
                async with calling(next(self._urls)) as caller:
                    await self._write(caller, waiting, progress)
            await asyncio.sleep(PAUSE_S)

    async def _write(self, caller: Caller, waiting: list[str], progress: Callable[[], None]) -> None:
        while waiting:
            message = {"role": "user", "content": waiting[0]}
            try:
                answer = await caller.call(
                    "conversation_append",
                    continuation_id=self.name or None,
                    messages=[message],
                    idempotency_key=f"key {waiting[0]}",
                )
            except Refused as refused:
                self.refusals.append(refused.code)
                return
            self.name = answer["continuation_id"]
            self.acknowledged.append(waiting.pop(0))
            progress()
            await asyncio.sleep(PAUSE_S)


async def test_no_acknowledged_message_is_lost_while_servers_die_and_daemons_are_replaced(
    fleet: Fleet, redis: Redundant
) -> None:
    """A failover of Redis, a killed daemon, and a rolling restart of all three, each while clients write."""
    clients = [Client(fleet, number) for number in range(CLIENTS)]
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
    assert {code for client in clients for code in client.refusals} <= STOPPING
    for url in (f"ws://127.0.0.1:{port}/" for port in fleet.ports):
        async with calling(url) as caller:
            for client in clients:
                page = await caller.call("conversation_get", continuation_id=client.name, limit=100)
                assert [message["content"] for message in page["messages"]] == client.acknowledged
