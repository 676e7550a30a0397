"""The service as a library: a real database, a real Redis and a provider on loopback, each behind a counting proxy."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from pydantic import SecretStr

from exai.app import App, open_app
from exai.conversations import AppendRequest
from exai.models import NewMessage, Owner
from exai.settings.load import (
    CacheSettings,
    DatabaseSettings,
    EndpointSettings,
    FileSettings,
    ProviderSettings,
    ProvidersSettings,
    Settings,
    StoreSettings,
)
from tests.support.pg_proxy import PgProxy
from tests.support.pooler import Pooler
from tests.support.provider_server import ProviderServer
from tests.support.redis_proxy import RedisProxy
from tests.support.waiting import START_WAIT_S

WARM_UP = Owner("warm-up")

NO_PASS_S = 3_600.0
"""A reconciliation of the cache, or word indexing, costs a statement; only the cost of a call is counted here."""


@dataclass
class Rig:
    """The open application and everything it talks to."""

    app: App
    database: PgProxy
    cache: RedisProxy
    provider: ProviderServer

    def reset(self) -> None:
        """Count from nought."""
        self.database.reset()
        self.cache.reset_counters()

    def cost(self) -> tuple[int, int]:
        """Round trips to the database and to Redis since the last reset."""
        return self.database.round_trips, self.cache.round_trips


@asynccontextmanager
async def open_rig(
    postgres_url: str,
    redis_url: str,
    data_dir: Path,
    *,
    pooled: bool = False,
    endpoint: ProviderServer | None = None,
    fallback: Sequence[str] = (),
    roots: Sequence[Path] = (),
    store: StoreSettings | None = None,
    **cache_settings: Any,
) -> AsyncIterator[Rig]:
    """Open the application on proxies; with `pooled` a transaction-mode pooler stands in front of the database.

    A running `endpoint` replaces Kimi as the endpoint `local`, whose models are not configured. Files below the `roots`
    may be read.
    """
    async with AsyncExitStack() as stack:
        upstream = (await stack.enter_async_context(Pooler(postgres_url))).url if pooled else postgres_url
        database = await stack.enter_async_context(PgProxy(upstream))
        cache = await stack.enter_async_context(RedisProxy(redis_address(redis_url)))
        provider = await stack.enter_async_context(ProviderServer())
        settings = Settings(
            database=DatabaseSettings(url=SecretStr(database.url), pool_size=2, index_pause_s=NO_PASS_S),
            cache=CacheSettings(
                url=SecretStr(cache.url),
                reconcile_interval_s=NO_PASS_S,
                max_staleness_s=60,
                verify_one_in=0,
                **cache_settings,
            ),
            providers=ProvidersSettings(
                kimi=ProviderSettings(api_key=None if endpoint else SecretStr("sk-test"), base_url=provider.base_url),
                endpoints={"local": EndpointSettings(base_url=endpoint.base_url)} if endpoint else {},
                connect_timeout_s=60.0 if endpoint else 5.0,
                fallback=tuple(fallback),
                models_file=_small_model(data_dir),
            ),
            files=FileSettings(roots=tuple(roots)),
            store=store or StoreSettings(),
            data_dir=data_dir,
            start_wait_s=START_WAIT_S,
        )
        app = await stack.enter_async_context(open_app(settings))
        await load_scripts(app)
        yield Rig(app, database, cache, provider)


def _small_model(data_dir: Path) -> Path:
    """Describe a model of Kimi's whose window is filled by little text."""
    path = data_dir / "models.toml"
    data_dir.mkdir(parents=True, exist_ok=True)
    path.write_text('[models.small-8k]\nprovider = "kimi"\ncontext_window = 8192\nmax_output_tokens = 8192\n')
    return path


async def load_scripts(app: App) -> None:
    """Use every script once: the first use of each on a server costs it a second round trip, which is not counted."""
    new = await app.conversations.append(AppendRequest(WARM_UP, [NewMessage("user", "first")]))
    await app.conversations.read(WARM_UP, new.continuation_id)


def redis_address(url: str) -> tuple[str, int] | str:
    """Return where a proxy has to connect to."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return parts.path
    return parts.hostname or "127.0.0.1", parts.port or 6379


@pytest.fixture(params=["direct", "pooled"])
async def rig(request: pytest.FixtureRequest, postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Rig]:
    """The application, once with its database directly and once behind a transaction-mode pooler."""
    async with open_rig(postgres_url, redis_url, tmp_path, pooled=request.param == "pooled") as opened:
        yield opened
