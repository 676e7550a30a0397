"""Fixtures every test may use: real servers, a database of its own per test, an empty cache.

EXAI_TEST_BACKEND=auto|url|docker|embedded chooses the servers, EXAI_TEST_PG_BIN (or --pg-bin) the embedded Postgres,
EXAI_TEST_POOLER=direct|strict|pgbouncer what stands between it and the tests that are not marked `direct`.
Server fixtures are synchronous and last a session, so that they belong to no test's event loop. The suite is shared out
to as many processes as there are cores, and each of them has servers of its own; given addresses are used by one.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from exai.embedded.launcher import Servers
from exai.errors import StartupError
from tests.support.backend import Backend, Databases, FaultServer, NoBackend, Preparation, choose, flush
from tests.support.poolers import Poolers, chosen_pooler

BACKEND = pytest.StashKey[Backend]()
USED = pytest.StashKey[set[str]]()
MOST_PROCESSES = 4
POOLERS = pytest.StashKey[Poolers]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--pg-bin",
        default=os.environ.get("EXAI_TEST_PG_BIN"),
        help="directory of the Postgres binaries for embedded servers (EXAI_TEST_PG_BIN)",
    )


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One process for given addresses, because a test empties the Redis it is given."""
    try:
        shared = choose(os.environ).kind == "url"
    except NoBackend:
        shared = True
    return 0 if shared else min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2, MOST_PROCESSES)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[USED] = set()
    # `nohup` ignores hangups in all its children, and a daemon respects that; tests send hangups to daemons.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell makes its commands in the background ignore interrupts, and programs inherit that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Without compiled modules each program that a test starts takes a third longer; `git` ignores their files.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Nothing of a collection is garbage, and the collector would look through all of it again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_sessionstart(session: pytest.Session) -> None:
    config = session.config
    pg_bin = config.getoption("--pg-bin")
    try:
        config.stash[BACKEND] = Backend(choose(os.environ), Path(pg_bin) if pg_bin else None)
        config.stash[POOLERS] = Poolers(chosen_pooler(os.environ))
    except NoBackend as error:
        pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if POOLERS in session.config.stash:
        session.config.stash[POOLERS].close()
    if BACKEND in session.config.stash:
        session.config.stash[BACKEND].close()
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["backend"] = describe(session.config)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """A process has ended: what it used is known only to it."""
    node.config.stash[USED].update(filter(None, [getattr(node, "workeroutput", {}).get("backend")]))


def describe(config: pytest.Config) -> str:
    if config.stash[USED]:
        return "; ".join(sorted(config.stash[USED]))
    backend = config.stash.get(BACKEND, None)
    if backend is None:
        return "backend: none"
    return f"backend: {backend.choice}{backend.version}, {config.stash[POOLERS].kind}"


def pytest_report_header(config: pytest.Config) -> str:
    return describe(config)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    # With -q the header is not shown, and only now is it known what was really used.
    terminalreporter.write_line(describe(config))


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Logging is global to the process, and some tests run commands that set it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    logging.captureWarnings(False)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture(scope="session")
def backend(pytestconfig: pytest.Config) -> Backend:
    """The servers of this session, answering."""
    backend = pytestconfig.stash[BACKEND]
    try:
        backend.start()
    except (NoBackend, StartupError) as error:
        pytest.exit(str(error), returncode=pytest.ExitCode.INTERNAL_ERROR)
    return backend


@pytest.fixture
def filling() -> Preparation | None:
    """What `postgres_url` has beside the newest revision; a module overrides it to fill one for all its tests."""
    return None


@pytest.fixture
def postgres_url(request: pytest.FixtureRequest, backend: Backend, filling: Preparation | None) -> Iterator[str]:
    """A database of this test alone, at the newest revision; through the session's pooler unless marked `direct`."""
    for url in fresh(backend.databases, migrated=True, prepare=filling):
        if request.node.get_closest_marker("direct"):
            yield url
            continue
        with request.config.stash[POOLERS].front(url) as fronted:
            yield fronted


@pytest.fixture
def empty_postgres_url(backend: Backend) -> Iterator[str]:
    """A database of this test alone, with nothing in it."""
    yield from fresh(backend.databases, migrated=False)


@pytest.fixture
def redis_url(backend: Backend) -> Iterator[str]:
    """An empty Redis database."""
    flush(backend.redis_url)
    yield backend.redis_url
    flush(backend.redis_url)


@pytest.fixture(scope="session")
def fault_servers(pytestconfig: pytest.Config) -> tuple[Servers, Databases]:
    """Servers with the settings users have, for tests that kill them."""
    backend = pytestconfig.stash[BACKEND]
    servers = backend.embedded(durable=True)
    return servers, backend.databases_on(servers.embedded.postgres_url)


@pytest.fixture
def postgres_server(pytestconfig: pytest.Config, fault_servers: tuple[Servers, Databases]) -> Iterator[FaultServer]:
    """A Postgres to kill; its `url` is a migrated database of this test alone."""
    servers, databases = fault_servers
    for url in fresh(databases, migrated=True):
        server = FaultServer(servers.postgres, url)
        yield server
        pytestconfig.stash[BACKEND].run(server.start())


@pytest.fixture
def valkey_server(pytestconfig: pytest.Config, fault_servers: tuple[Servers, Databases]) -> Iterator[FaultServer]:
    """A Valkey to kill, empty."""
    servers, _ = fault_servers
    server = FaultServer(servers.valkey, servers.embedded.valkey_url)
    flush(server.url)
    yield server
    pytestconfig.stash[BACKEND].run(server.start())


def fresh(databases: Databases, *, migrated: bool, prepare: Preparation | None = None) -> Iterator[str]:
    url = databases.create(migrated=migrated, prepare=prepare)
    yield url
    databases.drop(url)
