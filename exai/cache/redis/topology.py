"""Route commands of a slot group to its server, and manage the servers' connections.

Invariant: a command is sent to at most one server and at most once; retries are decided above this module. A `Node` has
one connection, opened on first use and replaced when lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from exai.cache.redis.address import RedisAddress, RedisServer, dial
from exai.cache.redis.connection import Argument, RedisConnection, RedisReply
from exai.cache.redis.faults import DOWN_CODES, REDIS, CacheAway, CacheDown, CacheLost, CacheRefused, ReplyError
from exai.models import Recorder
from exai.resilience import Breaker, BreakerOpen

CLUSTER_GROUPS: Final = 16
"""Slot groups of a cluster; their hash tags fall evenly on three, four and six nodes."""

MAX_NODES: Final = 256
"""Servers of a cluster that are remembered."""

READ_ONLY_AGE_S: Final = 1.0
"""A connection at least this old whose server replies READONLY is replaced: the primary has moved."""


class Node:
    """One server, the one to which `connect` connects at the time, with its own breaker."""

    def __init__(
        self, name: str, connect: Callable[[], Awaitable[RedisConnection]], limit_s: float, recorder: Recorder
    ) -> None:
        self.name = name
        self._connect, self._limit_s = connect, limit_s
        self._wire: RedisConnection | None = None
        self._dialling: asyncio.Task[RedisConnection] | None = None
        self._reported: BaseException | None = None
        self.breaker = Breaker(name, recorder=recorder, failures=(CacheDown,), answers=(CacheRefused,))

    async def call(self, *command: Argument) -> RedisReply:
        """Send one command and return its reply. Raises `CacheDown`, `CacheLost` or `CacheRefused`."""
        try:
            async with self.breaker.attempt():
                return await self._call(command)
        except BreakerOpen as error:
            problem = f"not called for {error.retry_after_s:.1f} s, because it failed repeatedly"
            raise CacheLost(problem, is_late=True) from error

    async def close(self) -> None:
        """Close the connection; also one that is being made."""
        if self._dialling is not None:
            self._dialling.cancel()
            await asyncio.wait({self._dialling})
        if self._wire is not None:
            await self._wire.close()

    async def _call(self, command: tuple[Argument, ...]) -> RedisReply:
        wire = self._wire
        if wire is None or wire.lost is not None:
            wire = await self._await_connection()
        reply = await wire.call(*command)
        if not isinstance(reply, ReplyError):
            return reply
        if reply.code == "READONLY" and asyncio.get_running_loop().time() - wire.made_at > READ_ONLY_AGE_S:
            wire.abandon("the server has become read-only")
        if reply.code in DOWN_CODES:
            raise CacheDown(f"{self.name} answered {reply.code}")
        raise CacheRefused(reply.code, reply.text)

    async def _await_connection(self) -> RedisConnection:
        """Wait for the node's single connection attempt, which continues if the caller is cancelled or times out."""
        task = self._dialling
        if task is None:
            task = self._dialling = asyncio.create_task(self._dial(), name=f"dial {self.name}")
            task.add_done_callback(self._dialled)
        await asyncio.wait({task}, timeout=self._limit_s)
        if not task.done():
            raise CacheLost("still connecting", is_late=True)
        error = None if task.cancelled() else task.exception()
        if task.cancelled():
            raise CacheLost("closed")
        if error is None:
            return task.result()
        problem = error.problem if isinstance(error, CacheAway) else type(error).__name__
        fault: type[CacheAway] = CacheLost if self._reported is error else CacheDown
        self._reported = error
        raise fault(problem) from error

    async def _dial(self) -> RedisConnection:
        self._wire = await self._connect()
        return self._wire

    def _dialled(self, task: asyncio.Task[RedisConnection]) -> None:
        self._dialling = None
        if not task.cancelled():
            task.exception()


class Topology(Protocol):
    """Where commands for a slot group go."""

    groups: int

    def node(self, group: int) -> Node:
        """The server to ask."""

    def moved(self, group: int, node: Node, text: str) -> None:
        """Learn from a MOVED reply of `node`."""

    def failed(self, group: int) -> None:
        """The server of this group is down; ask another one next time, if there is one."""

    async def close(self) -> None:
        """Close all connections."""


class OneServer(Topology):
    """A single primary: at a fixed address, or the one that the sentinels name."""

    groups = 1

    def __init__(self, connect: Callable[[], Awaitable[RedisConnection]], limit_s: float, recorder: Recorder) -> None:
        self._node = Node(REDIS, connect, limit_s, recorder)

    def node(self, group: int) -> Node:
        """Implement `Topology`."""
        del group
        return self._node

    def moved(self, group: int, node: Node, text: str) -> None:
        """Do nothing: a server outside a cluster sends no such reply."""

    def failed(self, group: int) -> None:
        """Do nothing: the next call opens a new connection."""

    async def close(self) -> None:
        """Implement `Topology`."""
        await self._node.close()


class Sentinels:
    """Finds the primary through the sentinels, beginning with the one that answered last."""

    def __init__(self, address: RedisAddress, limit_s: float) -> None:
        self._sentinels = list(address.servers)
        self._service, self._primary, self._limit_s = address.service, address.primary, limit_s

    async def connect(self) -> RedisConnection:
        """Connect to the primary, and let it confirm that it is one. Raises `CacheDown`."""
        problem = ""
        for sentinel in tuple(self._sentinels):
            try:
                found = await self._ask(sentinel)
            except CacheAway as error:
                problem = error.problem
                continue
            if found is None:
                continue
            self._sentinels.remove(sentinel)
            self._sentinels.insert(0, sentinel)
            return await self._confirm(found)
        raise CacheDown(f"no sentinel names a primary of {self._service}; {problem}".rstrip("; "))

    async def _ask(self, sentinel: RedisServer) -> RedisServer | None:
        wire = await dial(sentinel, self._limit_s)
        try:
            reply = await wire.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)
        finally:
            await wire.close()
        match reply:
            case [bytes() as host, bytes() as port]:
                return self._primary.at(host.decode(), int(port))
            case ReplyError():
                raise CacheDown(f"{sentinel} answered {reply.code}")
            case _:
                return None

    async def _confirm(self, server: RedisServer) -> RedisConnection:
        wire = await dial(server, self._limit_s)
        reply = await wire.call("ROLE")
        match reply:
            case [b"master", *_]:
                return wire
            case _:
                wire.abandon("not the primary")
                raise CacheDown(f"{server} does not say that it is the primary")


class Cluster(Topology):
    """A cluster; learns the server of each slot group from MOVED replies, beginning with any configured server."""

    groups = CLUSTER_GROUPS

    def __init__(self, address: RedisAddress, limit_s: float, recorder: Recorder) -> None:
        self._template, self._limit_s, self._recorder = address.primary, limit_s, recorder
        self._nodes: dict[tuple[str, int], Node] = {}
        self._homes: dict[int, Node] = {}
        self._next = 0
        for server in address.servers:
            self._add(server.host, server.port)

    def node(self, group: int) -> Node:
        """Implement `Topology`."""
        home = self._homes.get(group)
        if home is not None:
            return home
        return list(self._nodes.values())[self._next % len(self._nodes)]

    def moved(self, group: int, node: Node, text: str) -> None:
        """Implement `Topology`."""
        host, _, port = text.rsplit(" ", 1)[-1].rpartition(":")
        if host in ("", "?"):
            # The server does not know its own host name: it is that of the connection.
            host = next((known[0] for known, each in self._nodes.items() if each is node), host)
        if port.isdigit() and len(self._nodes) < MAX_NODES:
            self._homes[group] = self._add(host, int(port))

    def failed(self, group: int) -> None:
        """Implement `Topology`."""
        self._homes.pop(group, None)
        self._next += 1

    async def close(self) -> None:
        """Implement `Topology`."""
        await asyncio.gather(*(node.close() for node in self._nodes.values()))

    def _add(self, host: str, port: int) -> Node:
        node = self._nodes.get((host, port))
        if node is None:
            server = self._template.at(host, port)
            node = Node(f"{REDIS} {server}", lambda: dial(server, self._limit_s), self._limit_s, self._recorder)
            self._nodes[host, port] = node
        return node


def open_topology(address: RedisAddress, limit_s: float, recorder: Recorder) -> Topology:
    """The topology an address asks for; connects to nothing yet."""
    match address.mode:
        case "standalone":
            server = address.primary
            return OneServer(lambda: dial(server, limit_s), limit_s, recorder)
        case "sentinel":
            return OneServer(Sentinels(address, limit_s).connect, limit_s, recorder)
        case "cluster":
            return Cluster(address, limit_s, recorder)
