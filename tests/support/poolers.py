"""Poolers in front of the session's Postgres: EXAI_TEST_POOLER=direct|strict|pgbouncer.

`strict` is our own, as unkind as a pooler may be, `pgbouncer` the one that is installed: both in transaction mode, and
without support for prepared statements. Invariant: a test that is marked `direct` sees none of them.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar, get_args

from exai.db.driver.address import parse_address
from tests.support.backend import NoBackend
from tests.support.fault_proxy import FaultProxy
from tests.support.pg_wire import first_host, through
from tests.support.pooler import Pooler
from tests.support.valkey import free_port

Kind = Literal["direct", "strict", "pgbouncer"]
T = TypeVar("T")

SESSIONS = 24
"""Server connections for one database; tests hold some of them for a while."""

START_LIMIT_S = 10.0
PROGRAM_DIRECTORIES = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin"))
KNOWS_PREPARED = (1, 21)

SUPERVISED = """trap 'kill $!; wait; exit' TERM; until "$@" & wait $!; do sleep 0.1; done"""
"""Starts a program again when it fails, as a service manager does: PgBouncer 1.18 ends with "bad client state: 0" if a
client leaves while its login waits, as happens when a network is cut."""


def chosen_pooler(environ: Mapping[str, str]) -> Kind:
    """Read EXAI_TEST_POOLER."""
    asked = environ.get("EXAI_TEST_POOLER", "direct")
    for kind in get_args(Kind):
        if kind == asked:
            if kind == "pgbouncer" and pgbouncer() is None:
                raise NoBackend("EXAI_TEST_POOLER=pgbouncer: it is not installed")
            return kind  # type: ignore[no-any-return]
    raise NoBackend(f"EXAI_TEST_POOLER={asked}: it is one of {', '.join(get_args(Kind))}")


def pgbouncer() -> str | None:
    """Where the program is."""
    return shutil.which("pgbouncer", path=PROGRAM_DIRECTORIES)


class Poolers:
    """Fronts databases with the chosen pooler; made once a session, used from synchronous fixtures."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self._stack = ExitStack()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._bouncer: int | None = None

    @contextmanager
    def front(self, url: str) -> Iterator[str]:
        """The address of one database through the pooler."""
        match self.kind:
            case "direct":
                yield url
            case "strict":
                stack = AsyncExitStack()
                pooler = self._run(stack.enter_async_context(Pooler(url, sessions=SESSIONS)))
                try:
                    yield pooler.url
                finally:
                    self._run(stack.aclose())
            case "pgbouncer":
                if self._bouncer is None:
                    self._bouncer = self._start_pgbouncer(url)
                yield through(url, self._bouncer)

    def close(self) -> None:
        """Stop the poolers."""
        self._stack.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run the coroutine in the loop of another thread, beside those of the tests."""
        if self._loop is None:
            self._loop = self._stack.enter_context(LoopThread())
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(START_LIMIT_S)

    def _start_pgbouncer(self, url: str) -> int:
        address = parse_address(url)
        host, port = first_host(address)
        if host.startswith("/"):
            # It refuses to run as root, and whom it runs as then may not look into the directory of the socket.
            stack = AsyncExitStack()
            door = self._run(stack.enter_async_context(FaultProxy(f"{host}/.s.PGSQL.{port}")))
            self._stack.callback(lambda: self._run(stack.aclose()))
            host, port = door.host, door.port
        program = pgbouncer()
        assert program is not None
        directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="exai-pgbouncer-")))
        directory.chmod(0o755)
        own_port = free_port()
        (directory / "users.txt").write_text(f'"{address.user}" "{address.password or ""}"\n')
        (directory / "pgbouncer.ini").write_text(_configuration(program, host, port, own_port, directory))
        command = [program, "-q", str(directory / "pgbouncer.ini")]
        if os.geteuid() == 0:
            command[1:1] = ["-u", "nobody"]
        process = subprocess.Popen(["sh", "-c", SUPERVISED, "sh", *command], stderr=subprocess.DEVNULL)
        self._stack.callback(_end, process)
        end = time.monotonic() + START_LIMIT_S
        while not _answers(own_port):
            assert time.monotonic() < end, f"pgbouncer does not answer; by hand: {' '.join(command)}"
            time.sleep(0.05)
        return own_port


class LoopThread:
    """`with LoopThread() as loop:` runs an event loop in a thread of its own."""

    def __enter__(self) -> asyncio.AbstractEventLoop:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="poolers", daemon=True)
        self._thread.start()
        return self._loop

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _configuration(program: str, host: str, port: int, own_port: int, directory: Path) -> str:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    version = tuple(int(part) for part in re.findall(r"\d+", said)[:2])
    return "\n".join(
        (
            "[databases]",
            f"* = host={host} port={port}",
            "[pgbouncer]",
            "listen_addr = 127.0.0.1",
            f"listen_port = {own_port}",
            "unix_socket_dir =",
            "auth_type = trust",
            f"auth_file = {directory / 'users.txt'}",
            "pool_mode = transaction",
            f"default_pool_size = {SESSIONS}",
            "max_client_conn = 1000",
            "server_tls_sslmode = disable",
            *(("max_prepared_statements = 0",) if version >= KNOWS_PREPARED else ()),
            "",
        )
    )


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(START_LIMIT_S)
