"""Valkey processes of a test's own: any settings, killed and started again on the same address, in groups.

Invariant: no process and no file outlives the `with` block.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import redis
from redis.backoff import ConstantBackoff, NoBackoff
from redis.retry import Retry

from exai.embedded.valkey import ValkeyBinary, find_valkey

START_LIMIT_S = 10.0


def free_port() -> int:
    """A port without a listener."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Valkey:
    """`with Valkey() as server:` one process; `options` are its settings, a flag being an empty text."""

    def __init__(self, *, sentinel: bool = False, **options: str) -> None:
        self.port = free_port()
        self._sentinel, self._options = sentinel, options
        self._lines: tuple[str, ...] = ()
        self._directory = tempfile.TemporaryDirectory(prefix="exai-valkey-")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def configure(self, *lines: str) -> None:
        """Add lines to the settings; before the first start."""
        self._lines = lines

    @property
    def directory(self) -> Path:
        """Where its files are."""
        return Path(self._directory.name)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._directory.cleanup()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._directory.cleanup()

    def start(self) -> None:
        """Run, on the same port and files as before, and wait until it answers."""
        if self._process is not None and self._process.poll() is None:
            self.thaw()
            return
        directory = self.directory
        config = directory / "valkey.conf"
        if not config.exists():
            options = {"port": str(self.port), "bind": "127.0.0.1", "dir": str(directory)} | self._options
            if not self._sentinel:
                options = {"save": '""', "enable-debug-command": "yes"} | options
            config.write_text(
                "".join(f"{name.replace('_', '-')} {value}\n" for name, value in options.items())
                + "\n".join(self._lines)
            )
        binary = find_valkey()
        assert isinstance(binary, ValkeyBinary), binary
        with (directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(binary.path), str(config), *(["--sentinel"] if self._sentinel else [])], stdout=log, stderr=log
            )
        try:
            # Older releases of redis-py do not try again what the operating system refuses, unless it is named.
            again = (redis.ConnectionError, redis.TimeoutError, OSError)
            retry = Retry(ConstantBackoff(0.02), int(START_LIMIT_S / 0.02), again)
            with redis.Redis(port=self.port, socket_connect_timeout=START_LIMIT_S, retry=retry) as client:
                client.ping()
        except redis.RedisError:
            self.kill()
            raise

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nothing is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def do(self, *command: Any) -> Any:
        """Run one command on a connection of its own; an error of the server is raised, not retried."""
        once = Retry(NoBackoff(), 0)
        with redis.Redis(port=self.port, socket_timeout=START_LIMIT_S, protocol=2, retry=once) as client:
            return client.execute_command(*command)
