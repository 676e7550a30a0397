"""Parse the Redis address of the settings and open connections to it.

    redis://  rediss://  unix://            one server, or a proxy that looks like one
    redis+sentinel://[user:password@]host:26379,host:26379/service[?db=0]      (rediss+sentinel:// for TLS)
    redis+cluster://[user:password@]host:6379,host:6379                        (rediss+cluster:// for TLS)

Invariant: an address is used in full or rejected, so an unknown option is an error. No error message or representation
contains a password.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, replace
from typing import Final, Literal, cast
from urllib.parse import parse_qs, unquote, urlsplit

from exai.cache.redis.connection import Argument, RedisConnection
from exai.cache.redis.faults import CacheDown, ReplyError
from exai.cache.redis.tls import TLS_OPTIONS, tls_context
from exai.errors import ConfigError

Mode = Literal["standalone", "sentinel", "cluster"]

SETTING: Final = "EXAI_CACHE__URL"
MAX_SERVERS: Final = 16
"""Maximum number of servers in one address."""

PORT: Final = 6379
SENTINEL_PORT: Final = 26379

_SENTINEL_OPTIONS: Final = frozenset({"sentinel_username", "sentinel_password"})


@dataclass(frozen=True, slots=True)
class RedisServer:
    """One server: a socket's `path`, or `host` and `port`; `greeting` holds the first commands of a connection."""

    host: str = "localhost"
    port: int = PORT
    path: str = ""
    tls: ssl.SSLContext | None = None
    greeting: tuple[tuple[Argument, ...], ...] = ()

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"

    def at(self, host: str, port: int) -> RedisServer:
        """Return the server at another address, with the same credentials and TLS context."""
        return replace(self, host=host, port=port)


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """A parsed address. For Sentinel, `primary` is the template of the server that the sentinels (`servers`) name."""

    mode: Mode
    servers: tuple[RedisServer, ...]
    primary: RedisServer
    service: str = ""


def parse_address(url: str) -> RedisAddress:
    """Parse the setting. Raises `ConfigError`."""
    scheme, _, rest = url.partition("://")
    base, _, kind = scheme.lower().partition("+")
    if kind not in ("", "sentinel", "cluster") or base not in ("redis", "rediss", "unix"):
        raise _refused(
            "has an unknown scheme", "Use redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://"
        )
    mode = cast("Mode", kind or "standalone")
    try:
        return _parse(mode, base, rest)
    except OSError:
        raise _refused("names a certificate or key that cannot be used", "Check its ssl_ options") from None
    except ValueError:
        # Chained to nothing: a parser's message quotes the text that it could not read.
        raise _refused("cannot be read as an address", "Percent-encode special characters of the password") from None


def _parse(mode: Mode, base: str, rest: str) -> RedisAddress:
    netloc, slash, tail = rest.partition("/")
    user, at, hosts = netloc.rpartition("@")
    names = hosts.split(",") if mode != "standalone" else [hosts]
    if len(names) > MAX_SERVERS or not (all(names) or base == "unix"):
        raise _refused("names no server, or too many", f"Name 1 to {MAX_SERVERS}, separated by commas")
    path, question, query = tail.partition("?")
    if base == "unix" and not path:
        raise _refused("names no socket", "It looks like unix:///run/valkey/valkey.sock")
    service = ""
    if mode == "sentinel":
        service, path = path, ""
        if not service:
            raise _refused("names no service", "It looks like redis+sentinel://host:26379/service")
    parsed = urlsplit(f"{base}://{user}{at}{names[0]}{slash}{path}{question}{query}")
    options = {name: values[0] for name, values in parse_qs(parsed.query).items()}
    _check_options(parsed.query, mode)
    # redis-py reads the number of the database from `?db=` first, then from the path.
    number = "" if base == "unix" else unquote(parsed.path).strip("/")
    database = int(options.get("db") or number or 0)
    if mode == "cluster" and database:
        raise _refused("names a database, and a cluster has only number 0", "Leave it out")
    primary = RedisServer(
        host=unquote(parsed.hostname or "localhost"),
        port=parsed.port or PORT,
        path=unquote(parsed.path) if base == "unix" else "",
        tls=tls_context(options) if base == "rediss" else None,
        greeting=_greeting(unquote(parsed.username or ""), unquote(parsed.password or ""), database),
    )
    template = primary
    if mode == "sentinel":
        greeting = _greeting(options.get("sentinel_username", ""), options.get("sentinel_password", ""), 0)
        template = replace(primary, greeting=greeting)
    servers = tuple(_at(template, name, SENTINEL_PORT if mode == "sentinel" else PORT) for name in names)
    return RedisAddress(mode, (primary,) if mode == "standalone" else servers, primary, service)


def _at(template: RedisServer, name: str, port: int) -> RedisServer:
    parts = urlsplit(f"//{name}")
    return template.at(parts.hostname or "localhost", parts.port or port)


def _greeting(username: str, password: str, database: int) -> tuple[tuple[Argument, ...], ...]:
    greeting: list[tuple[Argument, ...]] = []
    if password:
        greeting.append(("AUTH", username, password) if username else ("AUTH", password))
    if database:
        greeting.append(("SELECT", database))
    return tuple(greeting)


def _check_options(query: str, mode: Mode) -> None:
    known = {"db"} | TLS_OPTIONS | (_SENTINEL_OPTIONS if mode == "sentinel" else frozenset())
    unknown = sorted(parse_qs(query, keep_blank_values=True).keys() - known)
    if unknown:
        raise _refused(f"has the unknown option {unknown[0]}", f"Known are {', '.join(sorted(known))}")


def _refused(problem: str, cure: str) -> ConfigError:
    return ConfigError(SETTING, problem, cure)


async def dial(server: RedisServer, limit_s: float) -> RedisConnection:
    """Connect, authenticate and choose the database within `limit_s`. Raises `CacheDown`."""
    loop = asyncio.get_running_loop()
    wire: RedisConnection | None = None
    try:
        async with asyncio.timeout(limit_s):
            if server.path:
                _, wire = await loop.create_unix_connection(lambda: RedisConnection(limit_s), server.path)
            else:
                _, wire = await loop.create_connection(
                    lambda: RedisConnection(limit_s), server.host, server.port, ssl=server.tls
                )
            greeted = [(str(command[0]), wire.call(*command)) for command in server.greeting]
            for name, reply in greeted:
                answer = await reply
                if isinstance(answer, ReplyError):
                    raise CacheDown(f"{server} answered {answer.code} to {name}")
    except TimeoutError as error:
        _abandon(wire)
        raise CacheDown(f"no connection to {server} within {limit_s:g} s", is_late=True) from error
    except OSError as error:
        raise CacheDown(f"no connection to {server}: {error.strerror or type(error).__name__}") from error
    except BaseException:
        _abandon(wire)
        raise
    return wire


def _abandon(wire: RedisConnection | None) -> None:
    if wire is not None:
        wire.abandon("not greeted")
