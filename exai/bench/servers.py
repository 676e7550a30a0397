"""The servers of a run, connected directly or through the proxy that counts and delays.

Invariant: EXAI and what it is compared with go the same way to the same servers.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlencode

from exai.bench.proxy.counting import digest
from exai.bench.proxy.wire import HOST, LatencyProxy, Upstream, open_wire
from exai.cache.redis.address import parse_address as parse_redis
from exai.cache.redis.scripts import load_scripts
from exai.db.driver.address import parse_address as parse_postgres
from exai.db.driver.statements import load_statements
from exai.db.migrations.migrate import upgrade
from exai.embedded.launcher import start_embedded
from exai.errors import ConfigError, StartupError
from exai.settings.addresses import redact
from exai.settings.load import Settings

OWN_STATEMENTS: Final = ("changes", "index_messages", "ping", "revision", "renew_leases")
"""Statements of the service's background tasks."""

OWN_COMMANDS: Final = ("TIME", "INFO")
DIRECTORY: Final = "/var/run/postgresql"


@dataclass(frozen=True, slots=True)
class ServerAddresses:
    """Addresses, and their description for a report. Without a cache `redis_url` is None."""

    postgres_url: str
    redis_url: str | None
    shown: str


@asynccontextmanager
async def open_servers(settings: Settings, *, here: bool) -> AsyncIterator[ServerAddresses]:
    """Return the configured servers if `here`, else start embedded ones in a temporary directory.

    Raises `ConfigError` or `StartupError`.
    """
    if here:
        yield configured(settings)
        return
    with tempfile.TemporaryDirectory(prefix="exai-bench-") as directory:
        async with start_embedded(Path(directory) / "data", pg_bin=settings.pg_bin) as embedded:
            if embedded.postgres_url is None:
                raise StartupError("embedded Postgres", "it is not there", "; ".join(embedded.notes))
            await upgrade(embedded.postgres_url)
            names = [f"Postgres {embedded.postgres_version}"]
            names += [f"Valkey {embedded.valkey_version}"] if embedded.valkey_url else list(embedded.notes)
            shown = f"embedded {', '.join(names)}, durable, in {directory}"
            yield ServerAddresses(embedded.postgres_url, embedded.valkey_url, shown)


def configured(settings: Settings) -> ServerAddresses:
    """The servers that the settings name. Raises `ConfigError`."""
    if settings.database.url is None:
        raise ConfigError("EXAI_DATABASE__URL", "is not set", "Set it, or leave out --here to use servers of its own")
    postgres_url = settings.database.url.get_secret_value()
    cache = settings.cache.url
    redis_url = None if cache is None or isinstance(cache, str) else cache.get_secret_value()
    if redis_url is not None and parse_redis(redis_url).mode != "standalone":
        raise ConfigError("EXAI_CACHE__URL", "names more than one server", "The bench measures one: name that one")
    return ServerAddresses(postgres_url, redis_url, f"{redact(postgres_url)}, {redact(redis_url or 'no cache')}")


@asynccontextmanager
async def through_wire(
    servers: ServerAddresses, delay_ms: float
) -> AsyncIterator[tuple[ServerAddresses, LatencyProxy]]:
    """Put the proxy in front of the servers. Raises `ConfigError` if the traffic is encrypted, or `StartupError`."""
    upstreams = [_postgres_upstream(servers.postgres_url)]
    if servers.redis_url is not None:
        upstreams.append(_redis_upstream(servers.redis_url))
    async with open_wire(tuple(upstreams), delay_ms=delay_ms) as wire:
        redis_url = None
        if servers.redis_url is not None:
            redis_url = _redis_through(servers.redis_url, wire.ports["redis"])
        yield (
            ServerAddresses(_postgres_through(servers.postgres_url, wire.ports["postgres"]), redis_url, servers.shown),
            wire,
        )


def _postgres_upstream(url: str) -> Upstream:
    address = parse_postgres(url)
    if address.tls.get("sslmode") in ("require", "verify-ca", "verify-full"):
        raise ConfigError("EXAI_DATABASE__URL", "asks for encryption", "Round trips can be counted without it only")
    host, port = address.hosts[0] if address.hosts else (DIRECTORY, 5432)
    statements = load_statements()
    background = tuple(digest(statements[name].text.encode()) for name in OWN_STATEMENTS)
    if host.startswith("/"):
        return Upstream("postgres", path=f"{host}/.s.PGSQL.{port}", background=background)
    return Upstream("postgres", host, port, background=background)


def _postgres_through(url: str, port: int) -> str:
    address = parse_postgres(url)
    password = f":{quote(address.password, safe='')}" if address.password else ""
    user = f"{quote(address.user, safe='')}{password}@" if address.user else ""
    query = urlencode({"sslmode": "disable", **address.server_settings}, quote_via=quote)
    return f"postgresql://{user}{HOST}:{port}/{quote(address.database or '', safe='')}?{query}"


def _redis_upstream(url: str) -> Upstream:
    server = parse_redis(url).primary
    if server.tls is not None:
        raise ConfigError("EXAI_CACHE__URL", "asks for encryption", "Round trips can be counted without it only")
    scripts = load_scripts()
    background = (
        *OWN_COMMANDS,
        scripts.watermark.sha,
        scripts.advance.sha,
        scripts.watermark.text,
        scripts.advance.text,
    )
    return Upstream("redis", server.host, server.port, server.path, background=background)


def _redis_through(url: str, port: int) -> str:
    user, database = "", 0
    for command, *words in parse_redis(url).primary.greeting:
        if command == "AUTH":
            name, password = ("", *words)[-2:]
            user = f"{quote(str(name), safe='')}:{quote(str(password), safe='')}@"
        elif command == "SELECT":
            database = int(words[0])
    return f"redis://{user}{HOST}:{port}/{database}"
