"""Starts `exai serve` in a process of its own, and tells when it answers.

Invariant: no daemon outlives its test: leaving the context kills the whole process group.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.commands import ROOT, Process, environment, start
from tests.support.waiting import START_WAIT_S

START_LIMIT_S = 60.0
STOP_LIMIT_S = 40.0


@dataclass
class Daemon:
    """A running daemon; `port` is known once it listens, `output` is everything it printed so far."""

    process: Process
    log: Path
    port: int = 0

    @property
    def output(self) -> str:
        """Everything it printed so far."""
        return self.log.read_text(errors="replace")

    @property
    def url(self) -> str:
        """Address of the WebSocket door."""
        return f"ws://127.0.0.1:{self.port}/"

    def get(self, path: str) -> tuple[int, dict[str, object]]:
        """GET a path of the same port; returns the status and the decoded JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def kill(self) -> None:
        """End it as the kernel would, without a chance to say goodbye."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(STOP_LIMIT_S)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to end; returns its exit status."""
        self.process.send_signal(number)
        return self.process.wait(STOP_LIMIT_S)


@contextlib.contextmanager
def start_daemon(
    overrides: Mapping[str, str],
    arguments: Sequence[str] = (),
    *,
    program: Sequence[str] = (),
    group: int | None = None,
) -> Iterator[Daemon]:
    """Start a daemon and wait for its address; it runs in a directory without a developer's `.env`.

    `program` starts that one, such as an installed EXAI, by itself (`tests/support/commands.py`); `group` is the group
    of its process.
    """
    directory = Path(tempfile.mkdtemp(prefix="exai-daemon-"))
    log = directory / "output.log"
    with log.open("wb") as stream:
        own = {"PYTHONPATH": str(ROOT), "EXAI_START_WAIT_S": str(START_WAIT_S)}
        given = environment({**({} if program else own), **overrides})
        if program or group is not None:
            process: Process = subprocess.Popen(
                [*(program or (sys.executable, "-m", "exai")), "serve", *arguments],
                env=given,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                group=group,
            )
        else:
            process = start("exai", "serve", *arguments, env=given, cwd=directory, stdout=stream, stderr=stream)
    daemon = Daemon(process, log)
    try:
        _await_address(daemon)
        yield daemon
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(STOP_LIMIT_S)
        shutil.rmtree(directory)


def _await_address(daemon: Daemon) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        if found := re.search(r"ws://127\.0\.0\.1:(\d+)/", daemon.output):
            daemon.port = int(found.group(1))
            return
        if daemon.process.poll() is not None:
            break
        time.sleep(0.02)
    raise AssertionError(f"the daemon did not start:\n{daemon.output}")
