"""The store behind an adapter: one that is open, or a daemon that is connected to at the first call."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import NamedTuple
from weakref import WeakKeyDictionary

from exai.client import Client, connect
from exai.client.connection import TokenSource
from exai.store import Store


class Connected(NamedTuple):
    """A client of a daemon, and what closes it."""

    client: Client
    stack: AsyncExitStack


class StoreSource:
    """A store, or the address of a daemon.

    Invariant: each event loop has its own connections to a daemon. They end with `close`, or with `asyncio.run`, which
    closes the generator behind `connect`.
    """

    def __init__(self, store: Store | str, token: TokenSource = None) -> None:
        self._store, self._token = store, token
        self._connected: WeakKeyDictionary[asyncio.AbstractEventLoop, Connected] = WeakKeyDictionary()

    async def open(self) -> Store:
        """Return the store; it stays open."""
        if not isinstance(self._store, str):
            return self._store
        loop = asyncio.get_running_loop()
        if loop not in self._connected:
            stack = AsyncExitStack()
            client = await stack.enter_async_context(connect(self._store, token=self._token))
            self._connected.setdefault(loop, Connected(client, stack))
        return self._connected[loop].client

    async def close(self) -> None:
        """Close the connections of this event loop; a store that was given stays open."""
        connected = self._connected.pop(asyncio.get_running_loop(), None)
        if connected is not None:
            await connected.stack.aclose()
