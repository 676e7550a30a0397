"""The wheel in empty environments: a library without extras, a daemon with `server`.

EXAI_TEST_WHEELS names the directory that holds the wheel, EXAI_TEST_VERSIONS a lock whose versions are used; without it
they are the newest. Needs the package registry; run by `make test-lowest` and `make test-newest`.
"""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path

import pytest

from tests.packaging.wheels import Installed, check_daemon, install

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


@pytest.fixture
def installed(
    request: pytest.FixtureRequest, wheel: Path, tmp_path: Path, empty_postgres_url: str, redis_url: str
) -> Installed:
    """The wheel with the extra that the test names."""
    options = []
    if versions := os.environ.get("EXAI_TEST_VERSIONS"):
        # Without the hashes, which pip would then want of the wheel, too.
        pins = re.findall(r"^[A-Za-z0-9._-]+==\S+", (ROOT / versions).read_text(encoding="utf-8"), flags=re.MULTILINE)
        constraints = tmp_path / "constraints.txt"
        constraints.write_text("\n".join(pins), encoding="utf-8")
        options += ["-c", str(constraints)]
    variables = {"EXAI_DATABASE__URL": empty_postgres_url, "EXAI_CACHE__URL": redis_url}
    return install(tmp_path / "environment", f"{wheel}{request.param}", *options, variables=variables)


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
    check_daemon(installed)
