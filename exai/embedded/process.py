"""Server processes as direct children: started, supervised, stopped, and ended together with this program.

Invariant: a process started here holds the descriptors in `held_fds`, so a file lock among them stays taken until the
last process of the server has ended, however the program itself ended.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

CHILD = Path(__file__).with_name("child.py")

POLL_S = 0.01
STOP_LIMIT_S = 15.0
KILL_LIMIT_S = 5.0
LOG_MAX_BYTES = 8 * 1_048_576
LOG_TAIL_BYTES = 4096
LOG_TAIL_LINES = 8

# The only variables passed to servers: others may hold keys and addresses of other services.
PASSED_ENVIRONMENT = ("PATH", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")


@dataclass(frozen=True, slots=True)
class Launch:
    """The command to run, and its environment.

    `named_user` requests an identity that is not root and has a name, which then owns `private_dirs`.
    """

    argv: tuple[str, ...]
    cwd: Path
    log: Path
    stop_signal: signal.Signals
    held_fds: tuple[int, ...] = ()
    named_user: bool = False
    private_dirs: tuple[Path, ...] = ()


class ServerProcess:
    """One running child process. It is not bound to an event loop: any loop may wait for it."""

    def __init__(self, launch: Launch) -> None:
        """Start the process. Raises OSError if the log or the process cannot be created."""
        self._launch = launch
        rotate(launch.log)
        # A parent death signal is tied to the forking thread, so it is usable only from the main thread.
        by_signal = sys.platform.startswith("linux") and threading.current_thread() is threading.main_thread()
        plan = {
            "argv": launch.argv,
            "stop_signal": int(launch.stop_signal),
            "parent_pid": os.getpid(),
            "named_user": launch.named_user,
            "private_dirs": [str(path) for path in launch.private_dirs],
            "tie": "signal" if by_signal else "pipe",
        }
        environment = {name: os.environ[name] for name in PASSED_ENVIRONMENT if name in os.environ}
        with open_private(launch.log) as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(  # noqa: S603
                # An exec of the interpreter instead of `preexec_fn`, which is unsafe in a program with threads.
                [sys.executable, "-I", "-S", str(CHILD), json.dumps(plan)],
                cwd=launch.cwd,
                stdin=subprocess.DEVNULL if by_signal else subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment | {"LC_ALL": "C"},
                pass_fds=launch.held_fds,
                # Ctrl-C at the terminal then does not reach the server, and `kill` can kill the whole group.
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Return the id of the server, or of its supervisor if there is one."""
        return self._process.pid

    def is_running(self) -> bool:
        """Return whether the process runs; also reaps a process that has ended."""
        return self._process.poll() is None

    @property
    def was_killed(self) -> bool:
        """Return whether it was killed, and so may have left child processes."""
        return self._process.returncode == -signal.SIGKILL

    async def wait(self, limit_s: float) -> int | None:
        """Return the exit status, or None if the process still runs after `limit_s`."""
        await wait_until(lambda: not self.is_running(), limit_s)
        return self._process.returncode

    async def stop(self) -> None:
        """Stop it with its own signal, within a limit; kill it after that, or when cancelled meanwhile."""
        try:
            if self.is_running():
                self._process.send_signal(self._launch.stop_signal)
                await self.wait(STOP_LIMIT_S)
        finally:
            self.kill()

    def kill(self) -> None:
        """Kill it with its supervisor; does nothing if it has ended."""
        if self.is_running():
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(KILL_LIMIT_S)
        if self._process.stdin is not None:
            self._process.stdin.close()

    def log_tail(self) -> str:
        """Return the last lines logged since this start, on one line."""
        return tail(self._launch.log, self._log_start)


async def wait_until(condition: Callable[[], bool], limit_s: float) -> bool:
    """Poll `condition` until it holds or the time is over. Returns whether it holds."""
    end = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() >= end:
            return False
        await asyncio.sleep(POLL_S)
    return True


def open_private(log: Path) -> BinaryIO:
    """Open a log for appending that only this user may read, since it can quote data."""
    return os.fdopen(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600), "ab")


def rotate(log: Path) -> None:
    """Bound the size of a log by renaming it when it is too large; one older log is kept."""
    if log.exists() and log.stat().st_size > LOG_MAX_BYTES:
        log.replace(log.with_suffix(".log.1"))


def tail(log: Path, start: int = 0) -> str:
    """Return the last lines of a log from byte `start` on, joined by ` | `."""
    with log.open("rb") as stream:
        end = stream.seek(0, os.SEEK_END)
        stream.seek(max(start, end - LOG_TAIL_BYTES))
        lines = stream.read().decode("utf-8", "replace").splitlines()
    return " | ".join(line.strip() for line in lines[-LOG_TAIL_LINES:] if line.strip()) or "the log is empty"
