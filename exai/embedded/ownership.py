"""Ownership of a data directory: one program runs its servers; others attach to them or fail with the owner's name.

Invariant: `owner.lock` is held by the owning program alone, and `servers.lock` also by every process of its servers, so
the kernel knows whether the owner and its servers are gone; process ids are not relied on.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exai.embedded.process import wait_until
from exai.errors import StartupError

OWNER_STARTING_LIMIT_S = 20.0
LEFTOVER_LIMIT_S = 5.0
CONNECT_LIMIT_S = 2.0

HALF_MADE = ".new"
"""Suffix of a cluster's name while the cluster is being created."""

SOCKET_PATH_MAX_BYTES = 103
"""The smallest limit of all supported platforms, which is macOS's; Linux has 107."""

LONGEST_SOCKET_NAME = "exai-12345678/.s.PGSQL.5432"
PLAIN_PATH = re.compile(r"/[A-Za-z0-9_./+@ -]*")


@dataclass(frozen=True, slots=True)
class ServerRecord:
    """The owner's published description of its servers; `ready` once they accept connections."""

    pid: int
    socket_dir: str
    durable: bool
    ready: bool = False
    postgres_version: str | None = None
    valkey_version: str | None = None
    sockets: tuple[str, ...] = ()

    def answers(self) -> bool:
        """Return whether every named server accepts a connection."""
        return self.ready and all(accepts(path) for path in self.sockets)


@dataclass(frozen=True, slots=True)
class Claim:
    """Ownership of the data directory; every started server inherits `held_fds`."""

    data_dir: Path
    held_fds: tuple[int, ...]

    def publish(self, running: ServerRecord) -> None:
        """Publish the addresses of the servers for other programs."""
        new = self.data_dir / f"running.json.{os.getpid()}"
        new.write_text(json.dumps(asdict(running)), encoding="utf-8")
        new.replace(self.data_dir / "running.json")

    def withdraw(self) -> None:
        """Remove the published addresses: no server runs any more."""
        (self.data_dir / "running.json").unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """Yield an open lock file, not locked yet; closing it releases the lock."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Take the lock if it is free. Returns whether it was."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(descriptor: int) -> None:
    """Release the lock."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)


async def claim(
    data_dir: Path, owner_lock: int, servers_lock: int, *, limit_s: float = OWNER_STARTING_LIMIT_S
) -> Claim | ServerRecord:
    """Own the directory, or return the description of the servers that run in it.

    Raises StartupError if another program owns it and its servers do not answer, or if servers of a program that
    is gone do not end.
    """
    found: ServerRecord | None = None

    def is_settled() -> bool:
        nonlocal found
        if try_lock(owner_lock):
            found = None
            return True
        found = read_running(data_dir)
        return found is not None and found.answers()

    if not await wait_until(is_settled, limit_s):
        who = f"process {found.pid}" if found else "another process"
        raise StartupError(
            f"data directory {data_dir}",
            f"{who} holds it and its servers do not answer",
            f"Stop {who}, or use another data directory (EXAI_DATA_DIR)",
        )
    if found is not None:
        return found
    await outlast_leftovers(data_dir, servers_lock)
    return Claim(data_dir, (servers_lock,))


async def outlast_leftovers(data_dir: Path, servers_lock: int, *, limit_s: float = LEFTOVER_LIMIT_S) -> None:
    """Wait for, and hasten, the end of a killed program's servers: two servers must never share their data."""
    if await wait_until(lambda: try_lock(servers_lock), limit_s):
        return
    # Both conditions: another program may hold the lock file open, or work in the directory, without being a server.
    left = [pid for pid in process_ids() if works_in(pid, data_dir) and has_open(pid, servers_lock)]
    for pid in left:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, ending(pid, data_dir))
    if left and await wait_until(lambda: try_lock(servers_lock), limit_s):
        return
    who = f"process ids {', '.join(map(str, left))}" if left else "postgres or valkey-server"
    raise StartupError(
        f"data directory {data_dir}",
        f"servers of an earlier run still use it ({who})",
        "End them with kill, then start again",
    )


def ending(pid: int, data_dir: Path) -> signal.Signals:
    """Return the signal that ends a leftover process at once.

    For both servers that is SIGQUIT: Postgres and Valkey recover from their logs. But initdb handles it only between
    its steps, so it gets SIGKILL; its incomplete cluster is discarded anyway.
    """
    half_made = any(works_in(pid, new) for new in data_dir.glob(f"*{HALF_MADE}"))
    return signal.SIGKILL if half_made else signal.SIGQUIT


def process_ids() -> list[int]:
    """Return the ids of all visible processes; empty without /proc."""
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]


def works_in(pid: int, data_dir: Path) -> bool:
    """Return whether the process is still that server: process ids are reused, working directories are not."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        return Path(f"/proc/{pid}/cwd").readlink().is_relative_to(data_dir)
    except OSError:
        return False


def has_open(pid: int, lock: int) -> bool:
    """Return whether another process has this lock file open, as every process of the servers has."""
    if pid == os.getpid():
        return False
    ours, opened = os.fstat(lock), []
    with suppress(OSError):
        opened = list(Path(f"/proc/{pid}/fd").iterdir())
    for entry in opened:
        with suppress(OSError):
            if os.path.samestat(entry.stat(), ours):
                return True
    return False


def read_running(data_dir: Path) -> ServerRecord | None:
    """Return the last owner's description, or None if there is no readable one."""
    try:
        said: dict[str, Any] = json.loads((data_dir / "running.json").read_text(encoding="utf-8"))
        return ServerRecord(**said | {"sockets": tuple(said["sockets"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def accepts(path: str) -> bool:
    """Return whether a process listens on a Unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(CONNECT_LIMIT_S)
        try:
            connection.connect(path)
        except OSError:
            return False
    return True


def make_socket_dir(data_dir: Path) -> Path:
    """Create a private directory with a path short enough for sockets; those of earlier runs are removed.

    It is in the data directory if possible: no cleaner deletes it there, and it is deleted together with the data.
    """
    earlier = read_running(data_dir)
    if earlier is not None:
        remove_socket_dir(Path(earlier.socket_dir))
    for parent in (str(data_dir), os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir(), "/tmp"):  # noqa: S108
        if fits(parent):
            with suppress(OSError):
                return new_socket_dir(parent)
    raise StartupError(
        "embedded servers",
        "no directory for their sockets: the path of the data directory is too long or not plain, and no directory for "
        "temporary files can be written",
        "Point TMPDIR at a directory with a short path that this user can write",
    )


def fits(parent: str) -> bool:
    """Return whether sockets below it can be addressed: by the kernel, and by drivers, where commas are syntax."""
    short = len(os.fsencode(Path(parent, LONGEST_SOCKET_NAME))) <= SOCKET_PATH_MAX_BYTES
    return short and PLAIN_PATH.fullmatch(parent) is not None


def new_socket_dir(parent: str) -> Path:
    """Create a directory for sockets. Raises OSError on file systems that hold no sockets, as some network ones."""
    directory = Path(tempfile.mkdtemp(prefix="exai-", dir=parent))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(str(directory / "probe"))
            (directory / "probe").unlink()
        except OSError:
            directory.rmdir()
            raise
    return directory


def make_again(path: Path) -> None:
    """Create the socket directory of a former owner again, under its old path. Raises OSError if it is another user's.

    Programs that used its servers find those of the next owner there.
    """
    if path.is_symlink():
        path.unlink()
    remove_socket_dir(path)
    path.mkdir(mode=0o700)


def lead_to(path: Path, target: Path) -> None:
    """Make `path`, which a former owner used, a link to the sockets of the next one. Raises OSError."""
    if path.is_symlink():
        if path.readlink() == target:
            return
    else:
        remove_socket_dir(path)
    link = path.with_name(f"{path.name}.{os.getpid()}")
    link.symlink_to(target, target_is_directory=True)
    try:
        # Replaces a link atomically, and fails on a directory, which this program must not remove.
        link.replace(path)
    except OSError:
        link.unlink()
        raise


def remove_link(path: Path) -> None:
    """Remove the link made by `lead_to`."""
    with suppress(OSError):
        if path.is_symlink():
            path.unlink()


def remove_socket_dir(path: Path) -> None:
    """Remove the directory if it belongs to this user; a link or another user's directory is kept."""
    with suppress(OSError):
        status = path.lstat()
        if path.name.startswith("exai-") and stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid():
            shutil.rmtree(path)
