"""One program at a time runs the servers of a data directory; others attach to them or are told who does.

Invariant: `owner.lock` is held by the owning program alone and `servers.lock` by every process of its servers too, so
"the owner is gone" and "its servers are gone" are facts the kernel knows, not guesses about process ids.
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
"""What the name of a cluster ends in while it is being made."""

SOCKET_PATH_MAX_BYTES = 103
"""The least any of our platforms allows, which is macOS's; Linux has 107."""

LONGEST_SOCKET_NAME = "exai-12345678/.s.PGSQL.5432"
PLAIN_PATH = re.compile(r"/[A-Za-z0-9_./+@ -]*")


@dataclass(frozen=True, slots=True)
class ServerRecord:
    """What the owner of a data directory says about its servers; `ready` once they answer."""

    pid: int
    socket_dir: str
    durable: bool
    ready: bool = False
    postgres_version: str | None = None
    valkey_version: str | None = None
    sockets: tuple[str, ...] = ()

    def answers(self) -> bool:
        """Whether every server it names accepts a connection."""
        return self.ready and all(accepts(path) for path in self.sockets)


@dataclass(frozen=True, slots=True)
class Claim:
    """This program owns the data directory; `held_fds` go to every server it starts."""

    data_dir: Path
    held_fds: tuple[int, ...]

    def publish(self, running: ServerRecord) -> None:
        """Tell programs that come later where the servers are."""
        new = self.data_dir / f"running.json.{os.getpid()}"
        new.write_text(json.dumps(asdict(running)), encoding="utf-8")
        new.replace(self.data_dir / "running.json")

    def withdraw(self) -> None:
        """Nothing runs any more."""
        (self.data_dir / "running.json").unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """An open lock file, not locked yet; closing it gives the lock up."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Take the lock if nobody has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(descriptor: int) -> None:
    """Let others take it."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)


async def claim(
    data_dir: Path, owner_lock: int, servers_lock: int, *, limit_s: float = OWNER_STARTING_LIMIT_S
) -> Claim | ServerRecord:
    """Own the directory, or learn about the servers that run in it.

    Raises StartupError when another program owns it and its servers do not answer, or when servers of a program that
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
    """Servers of a killed program end by themselves, and are helped along; two servers must never share their data."""
    if await wait_until(lambda: try_lock(servers_lock), limit_s):
        return
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
    """The signal that ends a leftover process at once.

    To both servers SIGQUIT means that: Postgres recovers from its log, Valkey from its own. But initdb listens only
    between its steps, and what it has half made is thrown away anyhow.
    """
    half_made = any(works_in(pid, new) for new in data_dir.glob(f"*{HALF_MADE}"))
    return signal.SIGKILL if half_made else signal.SIGQUIT


def process_ids() -> list[int]:
    """Of every process that can be seen; empty where there is no /proc."""
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]


def works_in(pid: int, data_dir: Path) -> bool:
    """Whether the process still is the server it was: ids are used again, working directories are not."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        return Path(f"/proc/{pid}/cwd").readlink().is_relative_to(data_dir)
    except OSError:
        return False


def has_open(pid: int, lock: int) -> bool:
    """Whether another process has this lock file open, as every process of our servers has."""
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
    """What the last owner said, or None when it said nothing that can be read."""
    try:
        said: dict[str, Any] = json.loads((data_dir / "running.json").read_text(encoding="utf-8"))
        return ServerRecord(**said | {"sockets": tuple(said["sockets"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def accepts(path: str) -> bool:
    """Whether somebody listens on a Unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(CONNECT_LIMIT_S)
        try:
            connection.connect(path)
        except OSError:
            return False
    return True


def make_socket_dir(data_dir: Path) -> Path:
    """A new private directory with a path short enough for sockets; those of earlier runs are removed.

    In the data directory where that is possible: nobody tidies up there, and it goes when the data goes.
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
    """Whether sockets below it can be addressed: by the kernel, and by drivers, to which commas and more are syntax."""
    short = len(os.fsencode(Path(parent, LONGEST_SOCKET_NAME))) <= SOCKET_PATH_MAX_BYTES
    return short and PLAIN_PATH.fullmatch(parent) is not None


def new_socket_dir(parent: str) -> Path:
    """Raises OSError where there can be none: some shared and network file systems hold files but no sockets."""
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
    """Make the directory of sockets of an owner that is gone, under its old path. Raises OSError if it is another's.

    Programs that used its servers find those of the next owner there.
    """
    if path.is_symlink():
        path.unlink()
    remove_socket_dir(path)
    path.mkdir(mode=0o700)


def lead_to(path: Path, target: Path) -> None:
    """Let `path`, which an owner that is gone used, lead to the sockets of the next one. Raises OSError."""
    if path.is_symlink():
        if path.readlink() == target:
            return
    else:
        remove_socket_dir(path)
    link = path.with_name(f"{path.name}.{os.getpid()}")
    link.symlink_to(target, target_is_directory=True)
    try:
        # Replaces a link at once, and fails where there is a directory that is not ours to remove.
        link.replace(path)
    except OSError:
        link.unlink()
        raise


def remove_link(path: Path) -> None:
    """Remove what `lead_to` made."""
    with suppress(OSError):
        if path.is_symlink():
            path.unlink()


def remove_socket_dir(path: Path) -> None:
    """Remove it if it is ours; a link or somebody else's directory of that name is left alone."""
    with suppress(OSError):
        status = path.lstat()
        if path.name.startswith("exai-") and stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid():
            shutil.rmtree(path)
