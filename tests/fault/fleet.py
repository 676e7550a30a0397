"""Three daemons on fixed ports behind PgBouncer with a Redis of several servers, and clients that write through them.

Invariant: a client sends a message under the same key until it is acknowledged, and notes every refusal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

from tests.fault.caller import Caller, Lost, Refused, calling
from tests.support.daemon import Daemon, start_daemon
from tests.support.valkey import Valkey, free_port
from tests.support.waiting import wait_until

DAEMONS, CLIENTS = 3, 6
CALL_LIMIT_S = 12.0
"""A client waits this long for an answer, and then connects to the next daemon; longer than a tool may take."""

TOOL_TIMEOUT_S = 8.0
SERVICE = "exai-primary"
SLOTS = 16_384
PAUSE_S = 0.05


@dataclass
class Redundant:
    """A Redis of several servers: its address, the server whose end is survived, and the ports of all of them."""

    url: str
    victim: Valkey
    ports: Sequence[int]


async def sentinel(stack: ExitStack) -> Redundant:
    """Start a primary with a replica and a sentinel."""
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
    ports = [server.port for server in (primary, replica, watch)]
    return Redundant(f"redis+sentinel://127.0.0.1:{watch.port}/{SERVICE}", primary, ports)


async def cluster(stack: ExitStack) -> Redundant:
    """Start three nodes that share the slots."""
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
    url = f"redis+cluster://127.0.0.1:{nodes[1].port},127.0.0.1:{nodes[2].port}"
    return Redundant(url, nodes[0], [node.port for node in nodes])


@dataclass
class Fleet:
    """Daemons on fixed ports, each of which may be replaced; `own` has the settings that are not those of all."""

    settings: Mapping[str, str]
    ports: Sequence[int] = field(default_factory=lambda: [free_port() for _ in range(DAEMONS)])
    own: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    groups: Mapping[int, int] = field(default_factory=dict)
    processes: dict[int, ExitStack] = field(default_factory=dict)
    daemons: dict[int, Daemon] = field(default_factory=dict)

    @property
    def urls(self) -> list[str]:
        """The addresses of all daemons, without anything between."""
        return [f"ws://127.0.0.1:{port}/" for port in self.ports]

    async def start_all(self) -> None:
        """Start every daemon."""
        await asyncio.gather(*(self.start(number) for number in range(DAEMONS)))

    async def start(self, number: int) -> None:
        """Start one daemon on its port."""
        stack = self.processes[number] = ExitStack()
        settings = {**self.settings, **self.own.get(number, {}), "EXAI_SERVER__PORT": str(self.ports[number])}
        starting = start_daemon(settings, group=self.groups.get(number))
        self.daemons[number] = await asyncio.to_thread(stack.enter_context, starting)

    async def stop(self, number: int, how: int) -> int:
        """End a daemon by a signal; returns its exit status."""
        status = await asyncio.to_thread(self.daemons[number].stop, how)
        self.processes[number].close()
        return status

    async def replace(self, number: int, how: int) -> int:
        """End a daemon by a signal and start its successor; returns the exit status of the first."""
        status = await self.stop(number, how)
        await self.start(number)
        return status

    async def is_ready(self, number: int) -> bool:
        """Return whether a load balancer sends clients to it."""
        status, _ = await asyncio.to_thread(self.daemons[number].get, "/health/ready")
        return status == 200

    def close(self) -> None:
        """End all of them."""
        for stack in self.processes.values():
            stack.close()


class Client:
    """One user: connects to a daemon, and to the next one when the connection ends or an answer does not come."""

    def __init__(self, urls: Sequence[str], number: int, contents: Iterable[str]) -> None:
        self._urls, self._contents = urls, iter(contents)
        self.number, self.at, self.name = number, number % len(urls), ""
        self.acknowledged: list[str] = []
        self.acknowledged_by: list[int] = []
        self.refusals: list[tuple[int, dict[str, Any]]] = []
        self.unanswered: list[int] = []
        self._waiting = next(self._contents, None)

    async def run(self, progress: Callable[[], None] = lambda: None) -> None:
        """Append every message, each under one key until it is acknowledged."""
        while self._waiting is not None:
            with suppress(Lost):
                async with calling(self._urls[self.at]) as caller:
                    await self._write(caller, progress)
            if self._waiting is not None:
                self.at = (self.at + 1) % len(self._urls)
                await asyncio.sleep(PAUSE_S)

    async def _write(self, caller: Caller, progress: Callable[[], None]) -> None:
        while self._waiting is not None:
            message = {"role": "user", "content": self._waiting}
            key = f"client {self.number}, {self._waiting}"
            try:
                async with asyncio.timeout(CALL_LIMIT_S):
                    answer = await caller.call(
                        "conversation_append",
                        continuation_id=self.name or None,
                        messages=[message],
                        idempotency_key=key,
                    )
            except Refused as refused:
                self.refusals.append((self.at, refused.facts))
                return
            except TimeoutError:
                self.unanswered.append(self.at)
                return
            self.name = answer["continuation_id"]
            self.acknowledged.append(self._waiting)
            self.acknowledged_by.append(self.at)
            self._waiting = next(self._contents, None)
            progress()
            await asyncio.sleep(PAUSE_S)


async def check_stored(urls: Sequence[str], clients: Sequence[Client]) -> None:
    """Check that every daemon has every acknowledged message, once and in order."""
    for url in urls:
        async with calling(url) as caller:
            for client in clients:
                assert await _contents(caller, client.name) == client.acknowledged


async def _contents(caller: Caller, name: str) -> list[str]:
    """Return all messages of a conversation, the oldest first."""
    contents: list[str] = []
    before: int | None = None
    while True:
        page = await caller.call("conversation_get", continuation_id=name, limit=100, before_seq=before)
        contents[:0] = [message["content"] for message in page["messages"]]
        before = page.get("next_before_seq")
        if before is None:
            return contents
