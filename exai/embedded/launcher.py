"""Starts EXAI's own Postgres and Valkey for a data directory, or attaches to those that another program runs there.

Invariant: the servers live exactly as long as the program that started them. When it ends, also by a signal, one of
the attached programs restarts them at the same addresses with all acknowledged data.
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

from exai.background import open_background
from exai.embedded.ownership import (
    Claim,
    ServerRecord,
    claim,
    lead_to,
    locked,
    make_again,
    make_socket_dir,
    outlast_leftovers,
    read_running,
    remove_link,
    remove_socket_dir,
    try_lock,
    unlock,
)
from exai.embedded.postgres import PostgresBinaries, PostgresServer, find_postgres, service_url
from exai.embedded.valkey import ValkeyBinary, ValkeyServer, find_valkey, valkey_url
from exai.errors import StartupError

WATCH_INTERVAL_S = 0.2
RESTART_PAUSE_MAX_S = 30.0

NO_CACHE = "no Valkey here ({}): running without a cache"


@dataclass(frozen=True, slots=True)
class Embedded:
    """The addresses of the servers. A URL is None if that server was not requested or, with a note, is unavailable.

    `notes` are sentences for the user about each requested server that is unavailable.
    """

    postgres_url: str | None
    valkey_url: str | None
    postgres_version: str | None
    valkey_version: str | None
    data_dir: Path
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """The requested servers; `durable` is False in tests, which may lose data in a power failure."""

    postgres: bool = True
    valkey: bool = True
    durable: bool = True
    pg_bin: Path | None = None


@dataclass(frozen=True, slots=True)
class Guest:
    """The state of a program attached to another one's servers, which it needs to take them over."""

    running: ServerRecord
    data_dir: Path
    wanted: LaunchOptions
    owner_lock: int
    servers_lock: int
    stack: AsyncExitStack

    @property
    def socket_dir(self) -> Path:
        """Return the directory where this program finds the servers, which may be those of another program."""
        return Path(self.running.socket_dir)


@dataclass(frozen=True, slots=True)
class Servers:
    """The server objects for supervision. Both are None, with a `guest`, if the servers belong to another program."""

    embedded: Embedded
    postgres: PostgresServer | None = None
    valkey: ValkeyServer | None = None
    guest: Guest | None = None

    def running(self) -> list[PostgresServer | ValkeyServer]:
        """Return the servers that this program started."""
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
    """Yield running servers, restarted if they end and stopped at the end. Must be called from the main thread.

    This program takes over another program's servers, at the same addresses, as soon as that one has ended. `report` is
    called with a sentence for every server that died. Raises StartupError.
    """
    wanted = LaunchOptions(postgres, valkey, durable, pg_bin)
    async with open_servers(data_dir, wanted) as servers, open_background() as background:
        for server in servers.running():
            background.start(f"embedded {server.name}", keep_running(server, report))
        if servers.guest is not None:
            background.start("embedded servers of another", succeed(servers.guest, report))
        yield servers.embedded


@asynccontextmanager
async def open_servers(data_dir: Path, wanted: LaunchOptions) -> AsyncIterator[Servers]:
    """Like `start_embedded`, but the caller supervises the servers. Entering and leaving may be in different loops."""
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


async def enter_servers(stack: AsyncExitStack, data_dir: Path, wanted: LaunchOptions) -> Servers:
    """Find the binaries, own the directory or attach, and start the requested servers; `stack` ends all of it."""
    binaries = find_postgres(wanted.pg_bin) if wanted.postgres else None
    binary = find_valkey() if wanted.valkey else None
    data_dir = make_private(data_dir)
    owner_lock, servers_lock = (stack.enter_context(locked(data_dir / f"{name}.lock")) for name in ("owner", "servers"))
    owned = await claim(data_dir, owner_lock, servers_lock)
    if isinstance(owned, ServerRecord):
        guest = Guest(owned, data_dir, wanted, owner_lock, servers_lock, stack)
        return Servers(attach(owned, data_dir, wanted), guest=guest)
    return await start_owned(
        stack, owned, make_socket_dir(data_dir), ServerPrograms(binaries, binary), durable=wanted.durable
    )


@dataclass(frozen=True, slots=True)
class ServerPrograms:
    """The binaries to start; a sentence in place of the cache's is the reason why there is none."""

    postgres: PostgresBinaries | None
    valkey: ValkeyBinary | str | None


async def start_owned(
    stack: AsyncExitStack, owned: Claim, socket_dir: Path, found: ServerPrograms, *, durable: bool
) -> Servers:
    """Start the servers of a directory that this program owns, and publish their addresses."""
    data_dir = owned.data_dir
    stack.callback(remove_socket_dir, socket_dir)
    stack.callback(owned.withdraw)
    starting = ServerRecord(os.getpid(), str(socket_dir), durable)
    owned.publish(starting)
    database = cache = None
    notes: tuple[str, ...] = ()
    if found.postgres is not None:
        database = PostgresServer(found.postgres, data_dir, socket_dir, durable=durable, held_fds=owned.held_fds)
        stack.push_async_callback(database.stop)
        await database.start()
    if isinstance(found.valkey, str):
        notes = (NO_CACHE.format(found.valkey),)
    elif found.valkey is not None:
        cache = ValkeyServer(found.valkey, data_dir, socket_dir, durable=durable, held_fds=owned.held_fds)
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


async def succeed(guest: Guest, report: Callable[[str], None]) -> None:
    """Wait until the owner of the servers has ended, then run them, unless another program was faster.

    In that case continue to wait for the new owner. The addresses of this program stay valid throughout.
    """
    pause_s = WATCH_INTERVAL_S
    guest.stack.callback(remove_link, guest.socket_dir)
    while True:
        await asyncio.sleep(pause_s)
        try:
            if not try_lock(guest.owner_lock):
                _follow(guest)
                continue
            servers = await take_over(guest)
        except (StartupError, OSError, subprocess.SubprocessError) as error:
            report(f"the embedded servers are gone and cannot be started here: {error}")
            # Release the locks: another program may be able to start them.
            unlock(guest.servers_lock)
            unlock(guest.owner_lock)
            pause_s = min(2 * pause_s, RESTART_PAUSE_MAX_S)
            continue
        report(f"the embedded servers ended with process {guest.running.pid} and are run by this process now")
        await asyncio.gather(*(keep_running(server, report) for server in servers.running()))


def _follow(guest: Guest) -> None:
    """Make this program's path lead to the servers of the current owner of the directory."""
    running = read_running(guest.data_dir)
    if running is not None and running.ready and running.socket_dir != guest.running.socket_dir:
        lead_to(guest.socket_dir, Path(running.socket_dir))


async def take_over(guest: Guest) -> Servers:
    """Start the servers of the former owner under its path. Raises StartupError or OSError; then nothing runs."""
    wanted, before = guest.wanted, guest.running
    needs_postgres = wanted.postgres or before.postgres_version is not None
    needs_valkey = wanted.valkey or before.valkey_version is not None
    found = ServerPrograms(
        await asyncio.to_thread(find_postgres, wanted.pg_bin) if needs_postgres else None,
        await asyncio.to_thread(find_valkey) if needs_valkey else None,
    )
    # The owner has ended, but its servers may still be shutting down: they must not share their data with new ones.
    await outlast_leftovers(guest.data_dir, guest.servers_lock)
    # The last owner may be a successor with another path, to which this program's path is then a link.
    last = read_running(guest.data_dir)
    if last is not None:
        remove_socket_dir(Path(last.socket_dir))
    make_again(guest.socket_dir)
    owned = Claim(guest.data_dir, (guest.servers_lock,))
    async with AsyncExitStack() as own:
        durable = wanted.durable or before.durable
        servers = await start_owned(own, owned, guest.socket_dir, found, durable=durable)
        # Only after the start has succeeded: a failed one leaves nothing to stop at exit.
        guest.stack.push_async_exit(own.pop_all())
    return servers


def make_private(data_dir: Path) -> Path:
    """Return the directory, created for this user alone if it is new; an existing one keeps its mode."""
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    return data_dir.resolve()


def attach(running: ServerRecord, data_dir: Path, wanted: LaunchOptions) -> Embedded:
    """Use the servers of the directory's owner. Raises StartupError if they differ from those requested."""
    if wanted.postgres and (running.postgres_version is None or (wanted.durable and not running.durable)):
        kind = "without a Postgres" if running.postgres_version is None else "with a Postgres that may lose data"
        raise StartupError(
            f"data directory {data_dir}",
            f"process {running.pid} holds it, {kind}",
            f"Stop process {running.pid}, or use another data directory (EXAI_DATA_DIR)",
        )
    notes = [f"the embedded servers of process {running.pid} are used; when it ends, this process starts them again"]
    if wanted.valkey and running.valkey_version is None:
        notes.append(NO_CACHE.format(f"process {running.pid} runs none"))
    socket_dir = Path(running.socket_dir)
    return Embedded(
        postgres_url=service_url(socket_dir) if wanted.postgres else None,
        valkey_url=valkey_url(socket_dir) if wanted.valkey and running.valkey_version else None,
        postgres_version=running.postgres_version if wanted.postgres else None,
        valkey_version=running.valkey_version if wanted.valkey else None,
        data_dir=data_dir,
        notes=tuple(notes),
    )


async def keep_running(server: PostgresServer | ValkeyServer, report: Callable[[str], None]) -> None:
    """Restart the server whenever it ends, with growing pauses while that fails, and report each time."""
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
    """Return the error that explains a failed system call to the user."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            cure = "Free some space, or use another data directory (EXAI_DATA_DIR)"
        case errno.EACCES | errno.EPERM | errno.EROFS | errno.ENOTDIR | errno.EEXIST:
            cure = "Use a data directory that this user can write (EXAI_DATA_DIR)"
        case _:
            cure = "Use another data directory (EXAI_DATA_DIR), or name servers of your own with EXAI_DATABASE__URL"
    where = f" ({error.filename})" if error.filename else ""
    return StartupError(f"data directory {data_dir}", f"{error.strerror or error}{where}", cure)
