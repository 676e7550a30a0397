"""A Valkey that these tests may break, and caches on it.

Invariant: each test finds the server empty, with its first settings, and running.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack

import pytest

from exai.cache.conversations import ConversationCache, open_cache
from exai.cache.reconciliation import ChangedRevisions
from exai.settings.load import CacheSettings
from tests.integration.cache.stored import Stored
from tests.support.counters import Counters
from tests.support.valkey import Valkey

OpenCache = Callable[..., Awaitable[ConversationCache]]


@pytest.fixture(scope="session")
def broken_valkey() -> Iterator[Valkey]:
    with Valkey(maxmemory_policy="volatile-lru") as server:
        yield server


@pytest.fixture
def valkey(broken_valkey: Valkey) -> Valkey:
    """Empty and with its settings."""
    for dump in broken_valkey.directory.glob("dump.rdb"):
        dump.unlink()
    broken_valkey.start()
    for name, value in {"maxmemory": 0, "busy-reply-threshold": 5_000, "appendonly": "no"}.items():
        broken_valkey.do("CONFIG", "SET", name, value)
    broken_valkey.do("CLIENT", "UNPAUSE")
    broken_valkey.do("REPLICAOF", "NO", "ONE")
    broken_valkey.do("FLUSHALL")
    broken_valkey.do("SCRIPT", "FLUSH")
    return broken_valkey


@pytest.fixture
def recorder() -> Counters:
    return Counters()


@pytest.fixture
def stored() -> Stored:
    """The database behind the caches of this test."""
    return Stored()


@pytest.fixture
async def cache_at(recorder: Counters, stored: Stored) -> AsyncIterator[OpenCache]:
    """Opens a daemon's cache at an address; reconciled only if the test passes its own `changes`."""
    async with AsyncExitStack() as stack:

        async def never(_: str | None) -> ChangedRevisions:
            raise TimeoutError("this test has no reconciliation")

        async def open_at(
            url: str | None, *, changes: Callable[..., Awaitable[ChangedRevisions]] = never, **settings: float
        ) -> ConversationCache:
            # Five minutes cover a whole test, so that nothing here depends on how fast the machine is.
            chosen = CacheSettings(**{"max_staleness_s": 60.0, "verify_one_in": 0, "timeout_s": 2.0, **settings})
            return await stack.enter_async_context(open_cache(chosen, url, recorder=recorder, changes=changes))

        yield open_at
