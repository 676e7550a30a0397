"""Networks between three daemons, their servers and their clients, which can be cut without ending a connection.

`Packets` drops packets of one daemon by rules of the kernel, which needs root and a network namespace that belongs to
the test alone. `Proxies` holds bytes back, which every user can; there a cut from Redis is a stopped server.
Invariant: after `heal` everything passes again, and what TCP sends once more arrives.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Final, Literal, Protocol, Self, TypeAlias

from exai.db.driver.address import parse_address
from tests.fault.fleet import DAEMONS, Fleet, Redundant
from tests.fault.service import PostgresProxy
from tests.support.fault_proxy import FaultProxy, Mode
from tests.support.pg_wire import first_host

Side: TypeAlias = Literal["database", "redis", "client"]
Lost: TypeAlias = Literal["requests", "replies"]

OWN_NETWORK: Final = "EXAI_TEST_OWN_NETWORK"
"""Set where the run has a network namespace of its own, as `make fault` does for root."""

GROUP: Final = 61_300
"""The group of the first daemon's process, by which its packets are known; the others have the next ones."""


class Network(Protocol):
    """A way to cut one daemon from one side."""

    urls: Sequence[str]

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...

    def cut(self, number: int, side: Side, lost: Lost) -> None:
        """Lose what the daemon sends to a server (or a client to the daemon), or what is sent back."""
        ...

    def heal(self) -> None:
        """Let everything pass."""
        ...


class Packets:
    """Rules of iptables; a connection has the mark of the daemon that has opened it."""

    def __init__(self, fleet: Fleet, redis: Redundant) -> None:
        _, database = first_host(parse_address(fleet.settings["EXAI_DATABASE__URL"]))
        self._ports: dict[Side, Sequence[int]] = {"database": [database], "redis": redis.ports}
        self._doors, self.urls = fleet.ports, fleet.urls
        self._rules: list[list[str]] = []
        fleet.groups = {number: GROUP + number for number in range(DAEMONS)}

    async def __aenter__(self) -> Self:
        for number in range(DAEMONS):
            match = ["-p", "tcp", "-m", "owner", "--gid-owner", str(GROUP + number)]
            self._add("mangle", "OUTPUT", *match, "-j", "CONNMARK", "--set-mark", str(number + 1))
        return self

    async def __aexit__(self, *_: object) -> None:
        while self._rules:
            self._remove()

    def cut(self, number: int, side: Side, lost: Lost) -> None:
        ports = [self._doors[number]] if side == "client" else self._ports[side]
        # Clients open the connections to a daemon; its own port tells them from all others.
        mark = [] if side == "client" else ["-m", "connmark", "--mark", str(number + 1)]
        toward = "--dports" if lost == "requests" else "--sports"
        match = ["-p", "tcp", *mark, "-m", "multiport", toward, ",".join(map(str, ports))]
        self._add("filter", "OUTPUT", *match, "-j", "DROP")

    def heal(self) -> None:
        while len(self._rules) > DAEMONS:
            self._remove()

    def _add(self, table: str, *rule: str) -> None:
        _iptables("-t", table, "-A", *rule)
        self._rules.append(["-t", table, "-D", *rule])

    def _remove(self) -> None:
        _iptables(*self._rules.pop())


def _iptables(*arguments: str) -> None:
    assert os.environ.get(OWN_NETWORK), "rules would change the network of this machine"
    subprocess.run(["iptables", "-w", *arguments], check=True, env={"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"})


class Proxies:
    """Proxies of each daemon: one before its Postgres, one before its own port."""

    def __init__(self, fleet: Fleet, redis: Redundant) -> None:
        self._redis, self._stack = redis, AsyncExitStack()
        database = fleet.settings["EXAI_DATABASE__URL"]
        self._to_database = [PostgresProxy(database) for _ in range(DAEMONS)]
        self._doors = [FaultProxy(("127.0.0.1", port)) for port in fleet.ports]
        self._fleet = fleet
        self.urls: Sequence[str] = ()

    async def __aenter__(self) -> Self:
        for proxy in (*self._to_database, *self._doors):
            await self._stack.enter_async_context(proxy)
        self._fleet.own = {number: {"EXAI_DATABASE__URL": each.url} for number, each in enumerate(self._to_database)}
        self.urls = [f"ws://127.0.0.1:{door.port}/" for door in self._doors]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._redis.victim.thaw()
        await self._stack.aclose()

    def cut(self, number: int, side: Side, lost: Lost) -> None:
        mode: Mode = "stall" if lost == "requests" else "stall_down"
        match side:
            case "database":
                self._to_database[number].mode = mode
            case "client":
                self._doors[number].mode = mode
            case "redis":
                self._redis.victim.freeze()

    def heal(self) -> None:
        for proxy in (*self._to_database, *self._doors):
            proxy.mode = "pass"
        self._redis.victim.thaw()
