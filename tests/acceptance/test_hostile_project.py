"""A `.env` of the current directory cannot obtain the user's keys: none is sent to an address that it chose."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.daemon import ROOT, environment

TOKEN = "a-token-of-the-user-0123456789"
LIMIT_S = 60.0


class Trap:
    """A server that records requests and answers none of them usefully."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, name="trap", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                try:
                    self.received.append(connection.recv(65_536))
                    connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                except OSError:
                    pass

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)

    def has_seen(self, secret: str) -> bool:
        return any(secret.encode() in each for each in self.received)


@pytest.fixture
def trap() -> Iterator[Trap]:
    made = Trap()
    yield made
    made.close()


@pytest.fixture
def project(tmp_path: Path, trap: Trap) -> Path:
    """A cloned repository; the user's own data is elsewhere."""
    here = f"127.0.0.1:{trap.port}"
    directory = tmp_path / "project"
    directory.mkdir()
    lines = [
        f"EXAI_URL=ws://{here}/",
        "EXAI_SERVER__HOST=127.0.0.1",
        f"EXAI_SERVER__PORT={trap.port}",
        *(f"{name}=http://{here}" for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "all_proxy")),
    ]
    (directory / ".env").write_text("\n".join(lines))
    return directory


def run(project: Path, variables: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[bytes]:
    environ = environment({"PYTHONPATH": str(ROOT), "EXAI_DATA_DIR": str(project.parent / "data"), **variables})
    # The default port of the daemon may be in use on this machine; nothing answers on this one.
    environ.pop("EXAI_SERVER__PORT", None)
    return subprocess.run(
        [sys.executable, "-m", "exai", *arguments],
        check=False,
        input=b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n',
        capture_output=True,
        env=environ,
        cwd=project,
        timeout=LIMIT_S,
    )


def test_bridge_does_not_connect_to_the_address_or_proxy_of_a_project(project: Path, trap: Trap) -> None:
    """A file named on the command line is trusted."""
    variables = [{name: TOKEN, "EXAI_WS_PORT": "1"} for name in ("EXAI_TOKEN", "EXAI_SERVER__TOKEN")]
    # Each tries for seconds to reach a daemon, so they run at the same time.
    with ThreadPoolExecutor() as pool:
        for done in pool.map(lambda each: run(project, each, "connect"), variables):
            assert done.returncode == 0, done.stderr
            assert b"ws://127.0.0.1:1/" in done.stdout
    assert trap.received == []
    run(project, {"EXAI_TOKEN": TOKEN}, "connect", "--env-file", ".env")
    assert trap.has_seen(TOKEN), "the trap would have seen it"


@pytest.mark.parametrize("command", ["health", "doctor"])
def test_token_is_not_shown_to_the_daemon_of_a_project(command: str, project: Path, trap: Trap) -> None:
    """The commands say why, and how to trust the file."""
    done = run(project, {"EXAI_SERVER__TOKEN": TOKEN}, command)
    assert b"would receive EXAI_SERVER__TOKEN" in done.stdout + done.stderr
    assert b"--env-file" in done.stdout + done.stderr
    assert not trap.has_seen(TOKEN)
    assert str(project / ".env").encode() in done.stdout + done.stderr


def test_key_is_not_shown_to_the_provider_of_a_project(project: Path, trap: Trap) -> None:
    """`exai chat` refuses before anything is started or asked."""
    (project / ".env").write_text(f"EXAI_PROVIDERS__KIMI__BASE_URL=http://127.0.0.1:{trap.port}/v1\n")
    done = run(project, {"KIMI_API_KEY": TOKEN}, "chat", "hello")
    assert (done.returncode, b"would receive KIMI_API_KEY" in done.stderr) == (2, True), done.stderr
    assert trap.received == []
    assert not (project.parent / "data").exists()


@pytest.mark.parametrize("line", ["EXAI_FILES__ROOTS=/", "EXAI_SERVER__ALLOWED_ORIGINS=https://evil.example"])
def test_daemon_does_not_start_with_access_that_a_project_grants(line: str, project: Path) -> None:
    """The variable, the file and the cure are named, and nothing is started."""
    (project / ".env").write_text(line)
    done = run(project, {}, "serve", "--port", "0")
    assert (done.returncode, done.stdout) == (2, b"")
    assert f"{line.partition('=')[0]}: is set in .env and decides".encode() in done.stderr
    assert b"--env-file" in done.stderr
    assert not (project.parent / "data").exists()


def test_worker_takes_no_modules_of_the_working_directory(project: Path) -> None:
    """A project may have a module of any name, on purpose or not."""
    from exai.daemon.workers import PROGRAM

    (project / "asyncpg.py").write_text("raise SystemExit('taken from the project')")
    done = subprocess.run(
        [*PROGRAM[:2], "-c", "import asyncpg, sys; print(asyncpg.__file__)"],
        check=False,
        capture_output=True,
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=LIMIT_S,
    )
    assert str(project).encode() not in done.stdout
    assert done.returncode == 0, done.stderr
