"""Applications as daemons run them, several on the same servers, each with its own way to them, which can be broken.

Invariant: nothing of EXAI is replaced. A fault is done to a connection, a server or a process, never to the code.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr

from exai.app import App, open_app
from exai.conversations import Appended, AppendRequest, ConversationStore
from exai.db.driver.address import parse_address
from exai.models import LOCAL_OWNER, ContinuationId, NewMessage, Page
from exai.settings.load import CacheSettings, DatabaseSettings, ProviderSettings, ProvidersSettings, Settings
from tests.support.fault_proxy import FaultProxy, Link
from tests.support.pg_wire import first_host, through
from tests.support.provider_server import ProviderServer
from tests.support.redis_proxy import RedisProxy
from tests.support.waiting import START_WAIT_S

BOUND_S = 2.0
POOL_SIZE = 2
NO_PASS_S = 3_600.0


class PostgresProxy(FaultProxy):
    """Between a pool and its Postgres (or pooler)."""

    def __init__(self, url: str) -> None:
        host, port = first_host(parse_address(url))
        super().__init__(f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port))
        self._behind = url
        self._held: tuple[bytes, asyncio.Event] | None = None

    @property
    def url(self) -> str:
        """For the pool."""
        return through(self._behind, self.port)

    def hold_replies_from(self, needle: bytes) -> asyncio.Event:
        """From the next request that contains `needle` on, let no reply through until the mode is `pass` again.

        The event is set when that request goes to the server.
        """
        came = asyncio.Event()
        self._held = needle, came
        return came

    def saw_request(self, link: Link, data: bytes) -> None:
        if self._held is not None and self._held[0] in data:
            self._held[1].set()
            self._held = None
            self.mode = "stall_down"


def redis_proxy(url: str) -> RedisProxy:
    """Between a cache client and its Redis."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return RedisProxy(parts.path)
    return RedisProxy((parts.hostname or "127.0.0.1", parts.port or 6379))


@dataclass
class Service:
    """One open application and its ways to Postgres and Redis."""

    app: App
    database: PostgresProxy
    cache: RedisProxy

    @property
    def conversations(self) -> ConversationStore:
        return self.app.conversations

    def count(self, name: str, **labels: str) -> int:
        """A counter of this application since it was opened."""
        return round(self.app.recorder.value(name, **labels))

    async def append(self, continuation_id: ContinuationId | None, *contents: str, key: str | None = None) -> Appended:
        """Append user messages."""
        messages = [NewMessage("user", content) for content in contents]
        return await self.conversations.append(
            AppendRequest(LOCAL_OWNER, messages, continuation_id, idempotency_key=key)
        )

    async def read(self, continuation_id: ContinuationId) -> Page:
        """Read the newest page."""
        return await self.conversations.read(LOCAL_OWNER, continuation_id)

    async def contents(self, continuation_id: ContinuationId) -> list[str]:
        """What the newest page says."""
        return [message.content for message in (await self.read(continuation_id)).messages]


@dataclass
class Servers:
    """What services are opened on."""

    postgres_url: str
    redis_url: str | None
    provider: ProviderServer
    data_dir: Path
    stack: AsyncExitStack

    async def open(self, *, database: dict[str, Any] | None = None, at: str | None = None, **cache: Any) -> Service:
        """Open one more application; `database` and `cache` are settings of those sections, `at` another Postgres."""
        to_postgres = await self.stack.enter_async_context(PostgresProxy(at or self.postgres_url))
        to_redis = await self.stack.enter_async_context(redis_proxy(self.redis_url or "redis://127.0.0.1:1"))
        settings = Settings(
            database=DatabaseSettings.model_validate(
                {"url": to_postgres.url, "pool_size": POOL_SIZE, **(database or {})}
            ),
            cache=CacheSettings.model_validate(
                {"url": "off" if self.redis_url is None else to_redis.url, "verify_one_in": 0, **cache}
            ),
            providers=ProvidersSettings(
                kimi=ProviderSettings(api_key=SecretStr("sk-test"), base_url=self.provider.base_url)
            ),
            data_dir=self.data_dir,
            start_wait_s=START_WAIT_S,
        )
        app = await self.stack.enter_async_context(open_app(settings))
        return Service(app, to_postgres, to_redis)


@asynccontextmanager
async def servers(postgres_url: str, redis_url: str | None, data_dir: Path) -> AsyncIterator[Servers]:
    """Servers with a provider on loopback; every service opened on them is closed at the end."""
    async with AsyncExitStack() as stack:
        provider = await stack.enter_async_context(ProviderServer())
        yield Servers(postgres_url, redis_url, provider, data_dir, stack)


async def converges(service: Service, continuation_id: ContinuationId, contents: list[str]) -> int:
    """Read until `contents` are there; returns how many older answers came before. Bounded by the staleness bound."""
    older = 0
    loop = asyncio.get_running_loop()
    began, last_start = loop.time(), -math.inf
    while True:
        last_start = loop.time()
        found = await service.contents(continuation_id)
        if found == contents:
            return older
        assert found == contents[: len(found)]
        assert last_start - began < BOUND_S, f"still {found} after the staleness bound"
        older += 1
        await asyncio.sleep(0.02)
