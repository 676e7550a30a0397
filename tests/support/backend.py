"""The real Postgres and Redis the tests run against: addresses given, containers, or embedded servers.

Invariant: what was asked for by name is used or the session ends with the reason; only `auto` chooses, and says what.
"""

from __future__ import annotations

import asyncio
import gc
import os
import re
import secrets
import socket
import subprocess
import tempfile
import warnings
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar, get_args
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import redis

from exai.db.migrations.migrate import upgrade
from exai.embedded.launcher import LaunchOptions, Servers, open_servers
from exai.embedded.postgres import PostgresServer
from exai.embedded.valkey import ValkeyServer

Kind = Literal["url", "docker", "embedded"]
T = TypeVar("T")
Preparation = Callable[[str], Awaitable[None]]
"""Changes the database at an address, and closes its connections."""

DOCKER_PROBE_S = 2.0
DOCKER_HOST = "unix:///var/run/docker.sock"
ADMIN_LIMIT_S = 30.0
POSTGRES_IMAGE = "postgres:17-alpine"
REDIS_IMAGE = "redis:7-alpine"
FIRST_TO_CLONE = 18
MEMORY = Path("/dev/shm")
LEAST_ROOM_BYTES = 4 * 1024**3
"""More than the servers of all processes of a suite have stored at any time."""


class NoBackend(Exception):
    """The named backend is not available; the text has the reason."""


@dataclass(frozen=True)
class Choice:
    """The backend of the session, and the sentence that is printed about it."""

    kind: Kind
    reason: str
    named: bool

    def __str__(self) -> str:
        return f"{self.kind} ({self.reason})"


def choose(environ: Mapping[str, str]) -> Choice:
    """Read EXAI_TEST_BACKEND; for `auto`: addresses if given, else containers if Docker answers, else embedded."""
    asked = environ.get("EXAI_TEST_BACKEND", "auto")
    if asked not in {"auto", *get_args(Kind)}:
        raise NoBackend(f"EXAI_TEST_BACKEND={asked}: it is one of auto, url, docker, embedded")
    missing = [name for name in ("EXAI_TEST_DATABASE_URL", "EXAI_TEST_REDIS_URL") if not environ.get(name)]
    if asked == "url" or (asked == "auto" and len(missing) < 2):
        if missing:
            raise NoBackend(f"tests against given addresses need {' and '.join(missing)} too")
        return Choice("url", "addresses given", named=True)
    if asked == "embedded":
        return Choice("embedded", "as asked", named=True)
    problem = docker_problem(environ)
    if problem is None:
        return Choice("docker", "Docker answers", named=asked == "docker")
    if asked == "docker":
        raise NoBackend(f"EXAI_TEST_BACKEND=docker: {problem}")
    return Choice("embedded", f"no Docker: {problem}", named=False)


def docker_problem(environ: Mapping[str, str]) -> str | None:
    """Why containers cannot be used, or None. Bounded, and without importing testcontainers, which takes a second."""
    address = urlsplit(environ.get("DOCKER_HOST") or DOCKER_HOST)
    family = socket.AF_UNIX if address.scheme == "unix" else socket.AF_INET
    target = address.path if address.scheme == "unix" else (address.hostname, address.port or 2375)
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.settimeout(DOCKER_PROBE_S)
        try:
            connection.connect(target)
            if environ.get("DOCKER_TLS_VERIFY"):
                return None
            connection.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
            status = connection.recv(64).split(b"\r\n")[0]
        except OSError as error:
            return f"{address.geturl()}: {error.strerror or error}"
    return None if b" 200 " in status else f"{address.geturl()} answered {status!r}"


def migrate_by(checkout: Path, url: str) -> None:
    """Migrate a database by the code of another checkout, with its own environment."""
    kept = {name: text for name, text in os.environ.items() if name != "PYTHONPATH" and not name.startswith("EXAI_")}
    subprocess.run(
        [checkout / ".venv" / "bin" / "python", "-m", "exai", "migrate"],
        cwd=checkout, check=True, env={**kept, "EXAI_DATABASE__URL": url}, stdout=subprocess.DEVNULL,
    )  # fmt: skip


class Databases:
    """Fresh databases on one server: empty ones, and copies of those that were migrated or prepared once."""

    def __init__(self, url: str, run: Callable[[Awaitable[T]], T]) -> None:
        self._url, self._run = url, run
        self._stem = f"exai_test_{secrets.token_hex(4)}"
        self._made = 0
        self._templates: dict[tuple[bool, Preparation | None], str] = {}
        self._connection: asyncpg.Connection | None = None

    def create(self, *, migrated: bool, prepare: Preparation | None = None) -> str:
        """The address of a new database, like an empty or a migrated one that `prepare` has changed once."""
        return self._copy(self._template(prepare, migrated=migrated))

    def drop(self, url: str) -> None:
        """Also while connections to it are open."""
        self._execute(f'drop database if exists "{urlsplit(url).path[1:]}" with (force)')

    def close(self) -> None:
        """Leave nothing of ours on a server that goes on."""
        for template in self._templates.values():
            self._execute(f'drop database if exists "{template}" with (force)')
        if self._connection is not None:
            self._run(self._connection.close())

    def _copy(self, template: str) -> str:
        self._made += 1
        name = f"{self._stem}_{self._made}"
        self._execute(f'create database "{name}" template "{template}"', is_copy=True)
        return self._address(name)

    def _template(self, prepare: Preparation | None, *, migrated: bool) -> str:
        if prepare is None and not migrated:
            return "template0"
        key = migrated, prepare
        if key not in self._templates:
            url = self._copy(self._template(None, migrated=migrated) if prepare else "template0")
            if prepare is not None:
                self._run(prepare(url))
            elif other := os.environ.get("EXAI_TEST_MIGRATED_BY"):
                migrate_by(Path(other), url)
            else:
                self._run(upgrade(url))
            self._templates[key] = urlsplit(url).path[1:]
        return self._templates[key]

    def _address(self, name: str) -> str:
        return urlunsplit(urlsplit(self._url)._replace(path=f"/{name}"))

    def _execute(self, command: str, *, is_copy: bool = False) -> None:
        """Run a command on a connection that stays open, since opening one costs as much as the command."""

        async def execute() -> None:
            if self._connection is None or self._connection.is_closed():
                self._connection = await asyncpg.connect(self._url, timeout=ADMIN_LIMIT_S)
                if self._connection.get_server_version().major >= FIRST_TO_CLONE:
                    await self._connection.execute("set file_copy_method = clone", timeout=ADMIN_LIMIT_S)
            strategy = strategy_of(self._connection.get_server_version().major) if is_copy else ""
            await self._connection.execute(command + strategy, timeout=ADMIN_LIMIT_S)

        try:
            self._run(execute())
        except (OSError, asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError):
            # A test has restarted the server.
            self._run(execute())


def strategy_of(major: int) -> str:
    """Return the clause with which this version copies a database at the least cost."""
    if major >= FIRST_TO_CLONE:
        # The kernel copies, or shares, the blocks.
        return " strategy file_copy"
    # Copying through the log needs no checkpoint, which copying files would wait for.
    return " strategy wal_log" if major >= 15 else ""


class Backend:
    """The session's servers, started when first used. All methods are for synchronous fixtures in the main thread."""

    def __init__(self, choice: Choice, pg_bin: Path | None) -> None:
        self.choice, self._pg_bin = choice, pg_bin
        self._cleanup = ExitStack()
        self._runner: asyncio.Runner | None = None
        self.version = ""
        self.redis_url = ""
        self._databases: Databases | None = None

    def run(self, awaitable: Awaitable[T]) -> T:
        """Run it in a loop of our own, which no test sees."""

        async def wait() -> T:
            return await awaitable

        return self._opened().run(wait())

    def _opened(self) -> asyncio.Runner:
        if self._runner is None:
            # With a factory the runner leaves the current event loop of the thread alone.
            self._runner = self._cleanup.enter_context(asyncio.Runner(loop_factory=asyncio.new_event_loop))
        return self._runner

    def start(self) -> None:
        """Have both servers answer. Raises NoBackend, or StartupError from the embedded ones."""
        if self._databases is not None:
            return
        match self.choice.kind:
            case "url":
                postgres = os.environ["EXAI_TEST_DATABASE_URL"]
                self.redis_url = own_database(os.environ["EXAI_TEST_REDIS_URL"], os.environ.get("PYTEST_XDIST_WORKER"))
            case "docker":
                postgres, self.redis_url = self._start_containers()
            case "embedded":
                postgres, self.redis_url = self._start_embedded()
        self._databases = self.databases_on(postgres)

    @property
    def databases(self) -> Databases:
        """On the session's Postgres."""
        assert self._databases is not None, "the backend was not started"
        return self._databases

    def databases_on(self, url: str) -> Databases:
        """Databases on one server; `close` removes all of them."""
        # Before the callback, which runs in it and in the reverse order.
        self._opened()
        databases = Databases(url, self.run)
        self._cleanup.callback(databases.close)
        return databases

    def embedded(self, *, durable: bool) -> Servers:
        """A new pair of embedded servers, which lasts until `close`; with its data in memory unless `durable`."""
        place = None if durable else roomy_memory()
        directory = Path(self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="exai-test-", dir=place)))
        stack = AsyncExitStack()
        servers = self.run(
            stack.enter_async_context(
                open_servers(directory / "data", LaunchOptions(durable=durable, pg_bin=self._pg_bin))
            )
        )
        self._cleanup.callback(lambda: self.run(stack.aclose()))
        return servers

    def close(self) -> None:
        """Stop everything; no process is left."""
        self._cleanup.close()

    def _start_embedded(self) -> tuple[str, str]:
        embedded = self.embedded(durable=False).embedded
        if embedded.postgres_url is None or embedded.valkey_url is None:
            raise NoBackend(f"embedded servers: {'; '.join(embedded.notes)}")
        self.version = f", Postgres {embedded.postgres_version}, Valkey {embedded.valkey_version}"
        return embedded.postgres_url, embedded.valkey_url

    def _start_containers(self) -> tuple[str, str]:
        from testcontainers.community.postgres import PostgresContainer
        from testcontainers.community.redis import RedisContainer

        problem = ""
        try:
            postgres = self._cleanup.enter_context(PostgresContainer(POSTGRES_IMAGE, driver=None))
            cache = self._cleanup.enter_context(RedisContainer(REDIS_IMAGE))
        except Exception as error:
            # Docker without the image and without a network shows itself only here.
            problem = f"{type(error).__name__}: {error}"
        if problem:
            forget_sockets()
            if self.choice.named:
                raise NoBackend(f"EXAI_TEST_BACKEND=docker: {problem}")
            self.choice = Choice("embedded", f"Docker cannot run the images: {problem}", named=False)
            return self._start_embedded()
        port = cache.get_exposed_port(6379)
        self.version = f", {POSTGRES_IMAGE}, {REDIS_IMAGE}"
        return postgres.get_connection_url(driver=None), f"redis://{cache.get_container_host_ip()}:{port}/0"


class FaultServer:
    """A server that a test may kill and start again, for each backend of the session."""

    def __init__(self, server: PostgresServer | ValkeyServer, url: str) -> None:
        self._server, self.url = server, url

    @property
    def pid(self) -> int | None:
        """Of the server's first process."""
        return self._server.pid

    @property
    def socket_path(self) -> Path:
        """Where it listens."""
        return self._server.socket_path

    def is_running(self) -> bool:
        """Whether its process is there."""
        return self._server.is_running()

    def kill(self) -> None:
        """SIGKILL."""
        self._server.kill()

    async def stop(self) -> None:
        """In its own way."""
        await self._server.stop()

    async def start(self) -> None:
        """On the same data and the same socket, until it answers; nothing to do when it runs."""
        if not self._server.is_running():
            await self._server.start()


def forget_sockets() -> None:
    """Close sockets that the Docker client left open when it failed, so that no test reports them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def roomy_memory() -> Path | None:
    """Return the file system in memory, None where there is none with room for the servers' data.

    Each test creates and deletes the 300 files of a database. For some seconds Ext4 does not use the number of a
    deleted file again, and passes such numbers one by one: up to 0.3 s of processor time for a database.
    """
    try:
        room = os.statvfs(MEMORY)
        available = re.search(r"^MemAvailable: +(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    free_bytes = min(room.f_bavail * room.f_frsize, int(available[1]) * 1024 if available else 0)
    return MEMORY if free_bytes >= LEAST_ROOM_BYTES and os.access(MEMORY, os.W_OK) else None


def own_database(url: str, worker: str | None) -> str:
    """Return the Redis `url` with a logical database of its own for each process of a suite, since tests empty theirs.

    Raises NoBackend where an address leaves no room for that.
    """
    number = int(worker.removeprefix("gw")) if worker else 0
    if number == 0:
        return url
    parts = urlsplit(url)
    database = parts.path.strip("/") or "0"
    if parts.scheme not in ("redis", "rediss") or not database.isdecimal():
        raise NoBackend("EXAI_TEST_REDIS_URL is not of the form redis://host:port/0: run one process, ARGS=-n0")
    return urlunsplit(parts._replace(path=f"/{int(database) + number}"))


def flush(url: str) -> None:
    """Empty one logical database of a Redis."""
    with redis.Redis.from_url(url) as client:
        client.flushdb()
