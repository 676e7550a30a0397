"""Runs `exai` and other modules of this checkout in processes of their own, as `python -m` would.

On Linux they are forked from a process that has imported EXAI (`fork_server.py`), once per process of the suite. A test
of the start itself, or of what a start imports, starts `sys.executable` instead.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Protocol

ROOT = Path(__file__).resolve().parents[2]
RUN_LIMIT_S = 60.0
ENCODING = "PYTHONIOENCODING"
CAN_FORK = sys.platform == "linux"
BASE = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
"""What Python itself reads at the start: a command with other values of such variables is started by itself."""


class Process(Protocol):
    """What tests use of `subprocess.Popen`."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None:
        """The exit status of a process that has ended."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; return its exit status."""

    def send_signal(self, sig: int) -> None:
        """Send a signal, unless it has ended."""

    def kill(self) -> None:
        """SIGKILL."""


def environment(overrides: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without any setting of EXAI but `overrides`."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("EXAI_") and not name.endswith(("_API_KEY", "DATABASE_URL", "REDIS_URL", "_DB_URL"))
    }
    return {**kept, "EXAI_SERVER__PORT": "0", "PYTHONUNBUFFERED": "1", **overrides}


def start(
    module: str,
    *arguments: str,
    env: Mapping[str, str],
    cwd: Path,
    stdout: IO[bytes],
    stderr: IO[bytes],
    stdin: IO[bytes] | None = None,
) -> Process:
    """Start `python -m module` in a session of its own, by default with nothing on `stdin`; `env` is all it gets."""
    with Path(os.devnull).open("rb") as nothing:
        streams = [stdin or nothing, stdout, stderr]
        if CAN_FORK and _read_by_python(env) == _read_by_python(environment(BASE)):
            return _fork_server().start(module, arguments, dict(env), cwd, streams)
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=env,
            cwd=cwd,
            stdin=streams[0],
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )


def run_exai(
    *arguments: str, settings: Mapping[str, str], cwd: Path, given: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end, with these variables and `given` on standard input."""
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        stdin.write(given)
        stdin.seek(0)
        env = environment({"PYTHONPATH": str(ROOT), **settings})
        process = start("exai", *arguments, env=env, cwd=cwd, stdin=stdin, stdout=stdout, stderr=stderr)
        try:
            status = process.wait(RUN_LIMIT_S)
        finally:
            process.kill()
            process.wait(RUN_LIMIT_S)
        outputs = [file.seek(0) or file.read() for file in (stdout, stderr)]
    return subprocess.CompletedProcess(list(arguments), status, *outputs)


def run_exai_as_text(
    *arguments: str, settings: Mapping[str, str], cwd: Path, encoding: str = "utf-8"
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, on a terminal of an encoding."""
    done = run_exai(*arguments, settings={**settings, ENCODING: encoding}, cwd=cwd)
    outputs = (each.decode(encoding, "replace") for each in (done.stdout, done.stderr))
    return subprocess.CompletedProcess(done.args, done.returncode, *outputs)


def _read_by_python(env: Mapping[str, str]) -> dict[str, str]:
    names = ("PYTHON", "LC_", "LANG")
    return {name: value for name, value in env.items() if name.startswith(names) and name != ENCODING}


class ForkedProcess:
    """A command that the fork server has started; several threads may wait for it."""

    def __init__(self, report: int) -> None:
        self._report = os.fdopen(report, "rb", buffering=0)
        self.returncode: int | None = None
        self.pid = self._number()
        os.set_blocking(report, False)
        self._ready = select.poll()
        self._ready.register(report, select.POLLIN)

    def poll(self) -> int | None:
        """Return the exit status of a process that has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; return its exit status."""
        end = None if timeout is None else time.monotonic() + timeout
        while self.returncode is None:
            left_ms = None if end is None else max(0.0, end - time.monotonic()) * 1000
            if not self._ready.poll(left_ms):
                raise subprocess.TimeoutExpired("exai", timeout or 0)
            # Another thread may read it first.
            with contextlib.suppress(ValueError):
                self.returncode = self._number()
        return self.returncode

    def send_signal(self, sig: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def __del__(self) -> None:
        self._report.close()

    def _number(self) -> int:
        return int(self._report.readline())


class ForkServer:
    """The process that forks commands; it ends with this process."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.fork_server", str(theirs.fileno())],
                env=environment(BASE),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )

    def start(
        self, module: str, arguments: Sequence[str], env: dict[str, str], cwd: Path, streams: list[IO[bytes]]
    ) -> Process:
        """Fork a command."""
        request = {"module": module, "arguments": list(arguments), "environ": env, "directory": str(cwd)}
        read, write = os.pipe()
        try:
            descriptors = [*(each.fileno() for each in streams), write]
            socket.send_fds(self._control, [json.dumps(request).encode()], descriptors)
        finally:
            os.close(write)
        return ForkedProcess(read)

    def close(self) -> None:
        """End it."""
        self._control.close()
        self._process.wait()


_LOCK = threading.Lock()
_server: ForkServer | None = None


def _fork_server() -> ForkServer:
    global _server  # noqa: PLW0603 - one for the whole process, which ends it
    with _LOCK:
        if _server is None:
            _server = ForkServer()
            atexit.register(_server.close)
        return _server
