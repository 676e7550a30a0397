"""Connections of a client to one daemon, in several small pools.

Invariant: at most the given number of connections is open, and a request waits only if all of them are in use.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import httpx

from exai import __version__
from exai.settings.addresses import is_loopback

CONNECT_S: Final = 5.0
POOL_CONNECTIONS: Final = 4
"""Of a pool of httpcore, whose work for a request grows with the square of their number: 48 took 3 ms of processor time
for each request, 4 take less than 0.1 ms."""


class HttpPools:
    """HTTP clients of a few connections each, made as requests run at the same time."""

    def __init__(self, url: str, max_connections: int) -> None:
        address = httpx.URL(url)
        self._trusts_env, is_tls = not is_loopback(address.host), address.scheme == "https"
        # Reading the certificates of authorities takes longer than a hundred calls.
        self._verify: ssl.SSLContext | bool = is_tls and httpx.create_ssl_context(trust_env=self._trusts_env)
        self._sizes = [POOL_CONNECTIONS] * (max_connections // POOL_CONNECTIONS)
        if rest := max_connections % POOL_CONNECTIONS:
            self._sizes.append(rest)
        self._clients: list[httpx.AsyncClient] = []
        self._running: list[int] = []

    @contextmanager
    def borrow(self) -> Iterator[httpx.AsyncClient]:
        """Return the client for one request: the first with a connection left, a new one, or the least busy."""
        place = next((n for n, running in enumerate(self._running) if running < self._sizes[n]), len(self._clients))
        if place == len(self._sizes):
            place = min(range(place), key=lambda n: self._running[n] / self._sizes[n])
        elif place == len(self._clients):
            self._clients.append(self._made(self._sizes[place]))
            self._running.append(0)
        self._running[place] += 1
        try:
            yield self._clients[place]
        finally:
            self._running[place] -= 1

    async def close(self) -> None:
        """Close all connections."""
        while self._clients:
            await self._clients.pop().aclose()

    def _made(self, connections: int) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            verify=self._verify,
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            # Proxies of the environment are not used on the way to this machine.
            trust_env=self._trusts_env,
            follow_redirects=False,
            timeout=httpx.Timeout(None, connect=CONNECT_S),
            headers={"user-agent": f"exai-client/{__version__}", "accept-encoding": "identity"},
        )


@asynccontextmanager
async def open_pools(url: str, max_connections: int) -> AsyncIterator[HttpPools]:
    """Open the pools for a daemon; nothing is connected before the first request."""
    pools = HttpPools(url, max_connections)
    try:
        yield pools
    finally:
        await pools.close()
