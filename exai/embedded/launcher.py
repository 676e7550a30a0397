"""Starts EXAI's own Postgres and Valkey for a data directory, or attaches to those another program runs there.

Invariant: the servers live exactly as long as the program that started them, and what was acknowledged is found again
at the next start, however it ended.
"""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from exai.embedded.ownership import Running, claim, locked, make_socket_dir, remove_socket_dir
from exai.embedded.postgres import PostgresServer, find_postgres, postgres_url
from exai.embedded.valkey import ValkeyServer, find_valkey, valkey_url
from exai.errors import StartupError

WATCH_INTERVAL_S = 0.2
RESTART_PAUSE_MAX_S = 30.0

NO_CACHE = "no Valkey here ({}): running without a cache"


@dataclass(frozen=True, slots=True)
class Embedded:
    """Where the servers are. A URL is None when that server was not asked for or, with a note, is not to be had.

    `notes` are sentences to be said aloud: nothing that was asked for is missing in silence.
    """

    postgres_url: str | None
    valkey_url: str | None
    postgres_version: str | None
    valkey_version: str | None
    data_dir: Path
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a program asks for; `durable` False is for tests, where a power cut loses nothing of value."""

    postgres: bool = True
    valkey: bool = True
    durable: bool = True
    pg_bin: Path | None = None


@dataclass(frozen=True, slots=True)
class Servers:
    """The servers themselves, for who watches over them; both None when they belong to another program."""

    embedded: Embedded
    postgres: PostgresServer | None = None
    valkey: ValkeyServer | None = None

    def running(self) -> list[PostgresServer | ValkeyServer]:
        """Those we started."""
        return [server for server in (self.postgres, self.valkey) if server is not None]


@asynccontextmanager
async def start_embedded(
    data_dir: Path,
    *,
    postgres: bool = True,
    valkey: bool = True,
    durable: bool = True,
    pg_bin: Path | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> AsyncIterator[Embedded]:
    """Servers that answer, restarted when they die, stopped at the end; call it from the main thread.

    `report` is told in a sentence about every server that died. Raises StartupError.
    """
    wanted = Wanted(postgres, valkey, durable, pg_bin)
    async with open_servers(data_dir, wanted) as servers:
        watches = [
            asyncio.create_task(keep_running(server, report), name=f"embedded {server.name}")
            for server in servers.running()
        ]
        try:
            yield servers.embedded
        finally:
            for watch in watches:
                watch.cancel()
            await asyncio.gather(*watches, return_exceptions=True)


@asynccontextmanager
async def open_servers(data_dir: Path, wanted: Wanted) -> AsyncIterator[Servers]:
    """Like `start_embedded`, with the servers in the caller's hands. Entering and leaving may be in different loops."""
    if sys.platform == "win32":
        raise StartupError(
            "embedded servers",
            "there are none for Windows",
            "Name your own with EXAI_DATABASE__URL and EXAI_CACHE__URL, or run EXAI in WSL",
        )
    async with AsyncExitStack() as stack:
        try:
            servers = await enter_servers(stack, data_dir, wanted)
        except OSError as error:
            raise startup_error(data_dir, error) from error
        yield servers


async def enter_servers(stack: AsyncExitStack, data_dir: Path, wanted: Wanted) -> Servers:
    """Find the binaries, own the directory or attach, start what was asked for; `stack` ends it all."""
    binaries = find_postgres(wanted.pg_bin) if wanted.postgres else None
    binary = find_valkey() if wanted.valkey else None
    data_dir = make_private(data_dir)
    owner_lock, servers_lock = (stack.enter_context(locked(data_dir / f"{name}.lock")) for name in ("owner", "servers"))
    owned = await claim(data_dir, owner_lock, servers_lock)
    if isinstance(owned, Running):
        return Servers(attach(owned, data_dir, wanted))

    socket_dir = make_socket_dir(data_dir)
    stack.callback(remove_socket_dir, socket_dir)
    stack.callback(owned.withdraw)
    starting = Running(os.getpid(), str(socket_dir), wanted.durable)
    owned.publish(starting)
    database = cache = None
    notes: tuple[str, ...] = ()
    if binaries is not None:
        database = PostgresServer(binaries, data_dir, socket_dir, durable=wanted.durable, held_fds=owned.held_fds)
        stack.push_async_callback(database.stop)
        await database.start()
    if isinstance(binary, str):
        notes = (NO_CACHE.format(binary),)
    elif binary is not None:
        cache = ValkeyServer(binary, data_dir, socket_dir, durable=wanted.durable, held_fds=owned.held_fds)
        stack.push_async_callback(cache.stop)
        await cache.start()
    embedded = Embedded(
        postgres_url=database.url if database else None,
        valkey_url=cache.url if cache else None,
        postgres_version=database.binaries.version if database else None,
        valkey_version=cache.binary.version if cache else None,
        data_dir=data_dir,
        notes=notes,
    )
    servers = Servers(embedded, database, cache)
    owned.publish(
        replace(
            starting,
            ready=True,
            postgres_version=embedded.postgres_version,
            valkey_version=embedded.valkey_version,
            sockets=tuple(str(server.socket_path) for server in servers.running()),
        )
    )
    return servers


def make_private(data_dir: Path) -> Path:
    """The directory, made for this user alone if it is new; an existing one keeps its mode."""
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    return data_dir.resolve()


def attach(running: Running, data_dir: Path, wanted: Wanted) -> Embedded:
    """Use the servers of the program that owns the directory. Raises StartupError when they are not those wanted."""
    if wanted.postgres and (running.postgres_version is None or (wanted.durable and not running.durable)):
        kind = "without a Postgres" if running.postgres_version is None else "with a Postgres that may lose data"
        raise StartupError(
            f"data directory {data_dir}",
            f"process {running.pid} holds it, {kind}",
            f"Stop process {running.pid}, or use another data directory (EXAI_DATA_DIR)",
        )
    notes = [f"using the embedded servers of process {running.pid}, which end when it does"]
    if wanted.valkey and running.valkey_version is None:
        notes.append(NO_CACHE.format(f"process {running.pid} runs none"))
    socket_dir = Path(running.socket_dir)
    return Embedded(
        postgres_url=postgres_url(socket_dir) if wanted.postgres else None,
        valkey_url=valkey_url(socket_dir) if wanted.valkey and running.valkey_version else None,
        postgres_version=running.postgres_version if wanted.postgres else None,
        valkey_version=running.valkey_version if wanted.valkey else None,
        data_dir=data_dir,
        notes=tuple(notes),
    )


async def keep_running(server: PostgresServer | ValkeyServer, report: Callable[[str], None]) -> None:
    """Start the server again whenever it has died, ever more slowly while that fails, and say so each time."""
    pause_s = WATCH_INTERVAL_S
    while True:
        await asyncio.sleep(pause_s)
        if server.is_running():
            pause_s = WATCH_INTERVAL_S
            continue
        report(f"the embedded {server.name} died and is started again; its log is {server.log}")
        try:
            await server.start()
        except (StartupError, OSError, subprocess.SubprocessError) as error:
            report(str(error))
        pause_s = min(2 * pause_s, RESTART_PAUSE_MAX_S)


def startup_error(data_dir: Path, error: OSError) -> StartupError:
    """What a failed system call means to the user."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            cure = "Free some space, or use another data directory (EXAI_DATA_DIR)"
        case errno.EACCES | errno.EPERM | errno.EROFS | errno.ENOTDIR | errno.EEXIST:
            cure = "Use a data directory that this user can write (EXAI_DATA_DIR)"
        case _:
            cure = "Use another data directory (EXAI_DATA_DIR), or name servers of your own with EXAI_DATABASE__URL"
    where = f" ({error.filename})" if error.filename else ""
    return StartupError(f"data directory {data_dir}", f"{error.strerror or error}{where}", cure)
