"""Starts `exai` commands by forking a process that has imported EXAI already, which takes a fifth of the time.

Started by `tests.support.commands`. Each request names the module, the arguments, the environment and the directory of
a command, and brings its standard streams and a pipe. The command runs in a session of its own, as from `python -m`;
into the pipe go its process id, and its exit status when it has ended.

Invariant: nothing runs in this process but the loop below; a command has none of its descriptors and signal handlers.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import selectors
import signal
import socket
import sys
from typing import NoReturn

MAX_REQUEST_BYTES = 1_000_000
STREAMS = 3


class Forks:
    """The commands that run, by process id; to each belongs the pipe for its exit status."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._woken, self._wake = socket.socketpair()
        self._reports: dict[int, int] = {}

    def loop(self) -> dict[str, object] | None:
        """Serve requests until the other end closes: None. In a forked command: return its request."""
        for end in (self._woken, self._wake):
            end.setblocking(False)
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        with selectors.DefaultSelector() as selector:
            selector.register(self._control, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._woken:
                        self._reap()
                        continue
                    message, descriptors, _, _ = socket.recv_fds(self._control, MAX_REQUEST_BYTES, STREAMS + 1)
                    if not message:
                        return None
                    if (request := self._fork(json.loads(message), descriptors)) is not None:
                        return request

    def _fork(self, request: dict[str, object], descriptors: list[int]) -> dict[str, object] | None:
        *streams, report = descriptors
        pid = os.fork()
        if pid:
            for each in streams:
                os.close(each)
            self._reports[pid] = report
            return None
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.write(report, f"{os.getpid()}\n".encode())
        for target, each in enumerate(streams):
            os.dup2(each, target)
        for each in (*descriptors, *self._reports.values()):
            os.close(each)
        for each in (self._control, self._woken, self._wake):
            each.close()
        return request

    def _reap(self) -> None:
        self._woken.recv(MAX_REQUEST_BYTES)
        while self._reports:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            report = self._reports.pop(pid)
            os.write(report, f"{os.waitstatus_to_exitcode(status)}\n".encode())
            os.close(report)


def run(module: str, arguments: list[str], environ: dict[str, str], directory: str) -> NoReturn:
    """Be the command."""
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environ)
    if encoding := environ.get("PYTHONIOENCODING"):
        for stream, errors in ((sys.stdin, "strict"), (sys.stdout, "strict"), (sys.stderr, "backslashreplace")):
            stream.reconfigure(encoding=encoding, errors=errors)
    if not sys.flags.safe_path:
        sys.path[0] = directory
    sys.argv = ["", *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    raise SystemExit


def preload() -> None:
    """Import what the commands import."""
    import uvloop  # noqa: F401

    import exai.app
    import exai.cli.archive
    import exai.cli.browse
    import exai.cli.chat
    import exai.cli.doctor
    import exai.cli.health_client
    import exai.cli.supabase_checks
    import exai.daemon.serve
    import exai.daemon.workers
    import exai.db.migrations.migrate  # noqa: F401


if __name__ == "__main__":
    preload()
    gc.collect()
    # A collection in a command would otherwise copy the pages of all modules.
    gc.freeze()
    command = Forks(socket.socket(fileno=int(sys.argv[1]))).loop()
    if command is not None:
        run(**command)
