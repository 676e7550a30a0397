"""The store behind an adapter: one that is open, or a daemon that is connected to at the first call."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from exai.client import Client, connect
from exai.client.blocking import LoopThread
from exai.client.connection import TokenSource
from exai.errors import InvalidArgument
from exai.store import Store

R = TypeVar("R")


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


class StoreLoop:
    """The event loop on which synchronous calls run: that of an open store, or one in a thread of its own."""

    def __init__(self, *, has_own: bool) -> None:
        """Without a loop of its own, it is the loop that runs now."""
        self._home, self._has_own, self._guard = running_loop(), has_own, threading.Lock()
        self._thread: LoopThread | None = None

    def wait(self, work: Coroutine[Any, Any, R]) -> R:
        """Run work and wait for its end. Raises `InvalidArgument` where that would wait for itself."""
        if self._has_own:
            with self._guard:
                thread = self._thread = self._thread or LoopThread()
            return thread.wait(work)
        if self._home is None or not self._home.is_running() or self._home is running_loop():
            work.close()
            raise InvalidArgument(
                "store", "belongs to an event loop", "Use the method that begins with a, another thread, or an address"
            )
        return asyncio.run_coroutine_threadsafe(work, self._home).result()

    def close(self, source: StoreSource) -> None:
        """End the loop of its own, and its connections."""
        with self._guard:
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.wait(source.close())
            thread.close()


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that runs in this thread."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
