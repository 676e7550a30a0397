"""Stores for programs without an event loop: every call runs on a loop in a thread of its own.

Invariant: the loop runs from entering to leaving the context; calls of any number of threads run on it side by side.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, ParamSpec, TypeVar

from exai.client.connection import TokenSource
from exai.client.store import CHAT_TIMEOUT_S, DEFAULT_URL, MAX_CONNECTIONS, TIMEOUT_S, connect
from exai.store import Chats, Checkpoints, Conversations, Files, Store

P = ParamSpec("P")
R = TypeVar("R")


class LoopThread:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="exai client", daemon=True)
        self._thread.start()

    def wait(self, work: Coroutine[Any, Any, R]) -> R:
        """Run work on the loop and wait for its end; an interruption of the wait cancels it."""
        future = self.start(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def blocking(self, function: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, R]:
        """Return a function that waits for what `function` returns."""

        def call(*arguments: P.args, **named: P.kwargs) -> R:
            return self.wait(function(*arguments, **named))

        return call

    def start(self, work: Coroutine[Any, Any, R]) -> Future[R]:
        """Start work on the loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def call(self, function: Callable[[], object]) -> None:
        """Call a function on the loop soon."""
        self._loop.call_soon_threadsafe(function)

    def close(self) -> None:
        """End the loop and its thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class BlockingConversations:
    """Conversations; see `exai.store.protocols.Conversations`."""

    def __init__(self, thread: LoopThread, service: Conversations) -> None:
        self.append = thread.blocking(service.append)
        self.read = thread.blocking(service.read)
        self.list = thread.blocking(service.list)
        self.search = thread.blocking(service.search)
        self.find = thread.blocking(service.find)
        self.fork = thread.blocking(service.fork)
        self.rewind = thread.blocking(service.rewind)
        self.change = thread.blocking(service.change)
        self.delete = thread.blocking(service.delete)
        self.restore = thread.blocking(service.restore)


class BlockingFiles:
    """Files; see `exai.store.protocols.Files`."""

    def __init__(self, thread: LoopThread, service: Files) -> None:
        self.put = thread.blocking(service.put)
        self.get = thread.blocking(service.get)
        self.read = thread.blocking(service.read)
        self.list = thread.blocking(service.list)
        self.link = thread.blocking(service.link)
        self.delete = thread.blocking(service.delete)


class BlockingChats:
    """Turns of models; see `exai.store.protocols.Chats`."""

    def __init__(self, thread: LoopThread, service: Chats) -> None:
        self.run = thread.blocking(service.run)
        self.result = thread.blocking(service.result)
        self.cancel = thread.blocking(service.cancel)


class BlockingCheckpoints:
    """Checkpoints of agents; see `exai.store.protocols.Checkpoints`."""

    def __init__(self, thread: LoopThread, service: Checkpoints) -> None:
        self.put = thread.blocking(service.put)
        self.put_writes = thread.blocking(service.put_writes)
        self.get = thread.blocking(service.get)
        self.list = thread.blocking(service.list)
        self.ancestry = thread.blocking(service.ancestry)
        self.prune = thread.blocking(service.prune)
        self.copy = thread.blocking(service.copy)


class BlockingStore:
    """A store whose methods return their results; names and arguments are those of `exai.store.Store`."""

    def __init__(self, thread: LoopThread, store: Store) -> None:
        self.conversations = BlockingConversations(thread, store.conversations)
        self.files = BlockingFiles(thread, store.files)
        self.chat = BlockingChats(thread, store.chat)
        self.checkpoints = BlockingCheckpoints(thread, store.checkpoints)


@contextmanager
def blocking(opened: AbstractAsyncContextManager[Store]) -> Iterator[BlockingStore]:
    """Open a store, such as `open_app(settings)`, on a loop of its own; it is closed at the end of the block."""
    thread = LoopThread()
    try:
        # One task enters and leaves, as cancel scopes demand.
        ended, entered = asyncio.Event(), threading.Event()
        found: list[Store] = []

        async def hold() -> None:
            try:
                async with opened as store:
                    found.append(store)
                    entered.set()
                    await ended.wait()
            finally:
                entered.set()

        holding = thread.start(hold())
        entered.wait()
        if not found:
            holding.result()
        try:
            yield BlockingStore(thread, found[0])
        finally:
            thread.call(ended.set)
            holding.result()
    finally:
        thread.close()


@contextmanager
def connect_blocking(
    url: str = DEFAULT_URL,
    *,
    token: TokenSource = None,
    timeout_s: float = TIMEOUT_S,
    chat_timeout_s: float = CHAT_TIMEOUT_S,
    max_connections: int = MAX_CONNECTIONS,
) -> Iterator[BlockingStore]:
    """Open a client of a daemon; the arguments are those of `connect`."""
    opened = connect(
        url, token=token, timeout_s=timeout_s, chat_timeout_s=chat_timeout_s, max_connections=max_connections
    )
    with blocking(opened) as store:
        yield store
