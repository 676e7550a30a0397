"""The wheel in empty environments: a library without extras, a daemon with `server`.

EXAI_TEST_WHEELS names the directory that holds the wheel, EXAI_TEST_VERSIONS a lock whose versions are used; without it
they are the newest. Needs the package registry; run by `make test-lowest` and `make test-newest`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.packaging.wheels import LIMIT_S
from tests.support.daemon import environment, start_daemon
from tests.support.mcp_server import handshake, request

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).resolve().parents[2]

LIBRARY = """
import asyncio, sys
from exai.app import open_app
from exai.settings.load import load_settings
from exai.conversations import AppendRequest
from exai.models import LOCAL_OWNER, NewMessage

async def main():
    async with open_app(load_settings()) as app:
        stored = await app.conversations.append(AppendRequest(LOCAL_OWNER, [NewMessage("user", "kept")]))
        page = await app.conversations.read(LOCAL_OWNER, stored.continuation_id, limit=10)
        print(*(message.content for message in page.messages))

asyncio.run(main())
print(sorted({"websockets", "uvicorn", "starlette", "httptools", "jwt", "uvloop"} & set(sys.modules)))
"""


@dataclass(frozen=True)
class Installed:
    """An environment that holds EXAI and what its metadata asks for."""

    directory: Path
    variables: dict[str, str]

    def run(self, *command: str, given: str = "") -> subprocess.CompletedProcess[str]:
        """Run a program of the environment in a directory without a checkout and without a `.env`."""
        return subprocess.run(
            [self.directory / "bin" / command[0], *command[1:]],
            check=False,
            input=given,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            cwd=self.directory,
            env=environment(self.variables),
        )

    def names(self) -> set[str]:
        """The distributions it holds."""
        listed = subprocess.run(
            [sys.executable, "-m", "pip", "--python", self.directory / "bin/python", "list", "--format=json"],
            check=True,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        return {each["name"].lower() for each in json.loads(listed.stdout)}


@pytest.fixture
def installed(
    request: pytest.FixtureRequest, wheel: Path, tmp_path: Path, empty_postgres_url: str, redis_url: str
) -> Installed:
    """The wheel with the extra that the test names."""
    directory = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(directory)], check=True, timeout=LIMIT_S)
    options = ["--no-compile", "-q", f"{wheel}{request.param}"]
    if versions := os.environ.get("EXAI_TEST_VERSIONS"):
        # Without the hashes, which pip would then want of the wheel, too.
        pins = re.findall(r"^[A-Za-z0-9._-]+==\S+", (ROOT / versions).read_text(encoding="utf-8"), flags=re.MULTILINE)
        constraints = tmp_path / "constraints.txt"
        constraints.write_text("\n".join(pins), encoding="utf-8")
        options += ["-c", str(constraints)]
    pip = [sys.executable, "-m", "pip", "--python", str(directory / "bin/python"), "install", *options]
    subprocess.run(pip, check=True, timeout=LIMIT_S)
    return Installed(directory, {"EXAI_DATABASE__URL": empty_postgres_url, "EXAI_CACHE__URL": redis_url})


def test_wheel_holds_the_migrations_and_no_tests(wheel: Path) -> None:
    """The installed package migrates a database without the checkout's alembic.ini."""
    names = zipfile.ZipFile(wheel).namelist()
    shipped = {name.removeprefix("exai/db/alembic/") for name in names if name.startswith("exai/db/alembic/")}
    kept = {str(path.relative_to(ROOT / "alembic")) for path in (ROOT / "alembic").rglob("*") if path.is_file()}
    assert shipped == {name for name in kept if "__pycache__" not in name}
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"exai"}


@pytest.mark.parametrize("installed", [""], indirect=True)
def test_library_works_against_given_addresses(installed: Installed) -> None:
    """`pip install exai` suffices to migrate, store and read; the daemon's commands name the missing extra."""
    migrated = installed.run("exai", "migrate")
    assert migrated.returncode == 0, migrated.stderr
    used = installed.run("python", "-c", LIBRARY)
    assert (used.returncode, used.stdout) == (0, "kept\n[]\n"), used.stderr
    assert not {"websockets", "uvicorn", "starlette", "httptools", "pyjwt", "uvloop"} & installed.names()
    for command in ("serve", "connect", "bench"):
        refused = installed.run("exai", command)
        assert (refused.returncode, refused.stdout) == (3, "")
        assert 'pip install "exai[server]"' in refused.stderr
        assert len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize("installed", ["[server]"], indirect=True)
def test_daemon_serves_and_the_bridge_connects(installed: Installed) -> None:
    """`exai[server]` holds both ends of the WebSocket."""
    assert installed.run("exai", "migrate").returncode == 0
    with start_daemon(installed.variables, program=[str(installed.directory / "bin" / "exai")]) as daemon:
        assert daemon.get("/health/ready")[0] == 200
        ping = json.dumps(request(2, "tools/list"))
        answered = installed.run("exai", "connect", "--url", daemon.url, given=f"{json.dumps(handshake())}\n{ping}\n")
        assert answered.returncode == 0, answered.stderr
        assert '"chat"' in answered.stdout
        assert daemon.stop() == 0
