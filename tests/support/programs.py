"""Runs `embedded_program.py` and observes its processes.

Invariant: no program and no server outlives the test, also if the test killed its parent.
"""

from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from exai.embedded.ownership import read_running, remove_socket_dir
from tests.support.waiting import wait_until

PROGRAM = Path(__file__).with_name("embedded_program.py")
ROOT = PROGRAM.parents[2]
GRACE_S = 30.0
END_LIMIT_S = 120.0


class Program:
    """One run of the program. `said` is its JSON line: the embedded servers, or the error."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.family: set[int] = set()
        self.said: dict[str, Any] = {}

    def listen(self) -> None:
        """Wait for its line, and see which processes it has by then."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.said = json.loads(line) if line else {"error": "it ended without a word"}
        self.family = descendants(self.process.pid)

    def end(self, number: signal.Signals | None = None) -> int:
        """End it by a signal, or in its own way; its exit status."""
        if number is None:
            assert self.process.stdin is not None
            self.process.stdin.close()
        else:
            self.process.send_signal(number)
        return self.process.wait(END_LIMIT_S)

    def all_gone(self) -> bool:
        """Whether nothing is left of it and its servers."""
        return not any(is_alive(pid) for pid in self.family)


@contextmanager
def program(
    plan: dict[str, Any],
    *,
    python: tuple[str, ...] = (sys.executable,),
    path: Path = ROOT,
    environ: Mapping[str, str] = {},
    user: str | None = None,
    wait: bool = True,
) -> Iterator[Program]:
    """Run it, as another `user` where we may, until it has said its line, unless told not to `wait`."""
    script = path / PROGRAM.relative_to(ROOT)
    process = subprocess.Popen(
        [*python, str(script), json.dumps(plan)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(path), "HOME": "/nonexistent", **environ},
        **({"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []} if user else {}),
    )
    run = Program(process)
    try:
        if wait:
            run.listen()
        yield run
    finally:
        # In its own way if it can, so that it tidies up behind itself.
        process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
        for pid in {process.pid} | run.family | descendants(process.pid):
            # It may end by itself between the question and the signal.
            with suppress(ProcessLookupError):
                if is_alive(pid):
                    os.kill(pid, signal.SIGKILL)
        process.wait(END_LIMIT_S)
        process.stdout.close()
        left = read_running(Path(plan["data_dir"]))
        if left is not None and left.pid == process.pid:
            remove_socket_dir(Path(left.socket_dir))


def descendants(pid: int) -> set[int]:
    """Its children, theirs, and so on."""
    parents = parent_ids()
    found: set[int] = set()
    new = {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new} - found
        found |= new
    return found


def parent_ids() -> dict[int, int]:
    """The parent of every process that is not a zombie."""
    if not sys.platform.startswith("linux"):
        command = ["ps", "-A", "-o", "pid=,ppid=,stat="]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rows = [line.split() for line in listed.splitlines()]
        return {int(pid): int(parent) for pid, parent, state in rows if not state.startswith("Z")}
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            # The name in parentheses may hold anything, spaces and parentheses too.
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                found[int(entry.name)] = int(parent)
    return found


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    return pid in parent_ids()


async def gone(run: Program) -> None:
    """Wait until nothing is left of it."""
    await wait_until(run.all_gone, lambda: f"still running: {[pid for pid in run.family if is_alive(pid)]}")
