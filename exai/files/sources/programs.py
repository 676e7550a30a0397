"""Runs a program for a reading, within its limits of time and output.

Invariant: the program and its children have ended on return; of the daemon's environment they see what is needed to
start, so no key.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from exai.files.sources.bounds import Bounds

PIECE_BYTES: Final = 65_536
POLL_S: Final = 0.05
NOT_STARTED: Final = -1


@dataclass(frozen=True, slots=True)
class ProgramOutput:
    """The standard output of a program; `is_cut` if a limit ended it."""

    status: int
    data: bytes
    is_cut: bool = False

    @property
    def line(self) -> str:
        """Return the only line of a short answer."""
        return os.fsdecode(self.data.removesuffix(b"\n"))

    @property
    def items(self) -> list[str]:
        """Return the items that NUL ends; an incomplete last one is left out."""
        return [os.fsdecode(item) for item in self.data.split(b"\0")[:-1]]


def run(
    command: Sequence[str],
    directory: Path,
    environment: Mapping[str, str],
    bounds: Bounds,
    *,
    given: bytes = b"",
    limit_bytes: int,
) -> ProgramOutput:
    """Run a program, which reads `given` before it writes more than a pipe holds; blocks.

    The status is `NOT_STARTED` if it cannot be started.
    """
    try:
        process = subprocess.Popen(  # noqa: S603 - git or Python, and no argument of a caller is an option
            command,
            cwd=directory,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except (OSError, ValueError):
        return ProgramOutput(NOT_STARTED, b"")
    return _output(process, given, limit_bytes, bounds)


def inherited() -> dict[str, str]:
    """Return the variables that a program needs to start; any other could change its behaviour."""
    return {name: os.environ[name] for name in ("PATH", "SYSTEMROOT", "TMPDIR") if name in os.environ}


def _output(process: subprocess.Popen[bytes], given: bytes, limit_bytes: int, bounds: Bounds) -> ProgramOutput:
    """Read a process's output up to the limit. The process and its children have ended on return."""
    done = threading.Event()
    watch = threading.Thread(
        target=_kill_when_late, args=(process, bounds, done), name="exai-program-limit", daemon=True
    )
    watch.start()
    pieces: list[bytes] = []
    size = 0
    try:
        with _open(process.stdin) as stdin, suppress(OSError):
            stdin.write(given)
        with _open(process.stdout) as stdout:
            while size <= limit_bytes and (piece := os.read(stdout.fileno(), PIECE_BYTES)):
                pieces.append(piece)
                size += len(piece)
    finally:
        if size > limit_bytes:
            _kill(process)
        status = process.wait()
        done.set()
        watch.join()
    return ProgramOutput(status, b"".join(pieces)[:limit_bytes], size > limit_bytes or bounds.is_late)


def _open(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise RuntimeError("the process was started without this pipe")
    return stream


def _kill_when_late(process: subprocess.Popen[bytes], bounds: Bounds, done: threading.Event) -> None:
    while not done.wait(POLL_S):
        if bounds.is_late:
            _kill(process)
            return


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(OSError):
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
