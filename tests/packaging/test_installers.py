"""The wheel by the installers of commands, uv and pipx, and on every Python that is found.

uv looks for the Pythons; each release that is not installed is skipped by name.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import exai
from tests.packaging.wheels import LIMIT_S

pytestmark = pytest.mark.heavy

PYTHONS = ("3.11", "3.12", "3.13", "3.14")


@pytest.fixture(scope="session")
def installers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the programs `uv` and `pipx`, in an environment of their own."""
    directory = tmp_path_factory.mktemp("installers")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(directory)], check=True, timeout=LIMIT_S)
    pip = [sys.executable, "-m", "pip", "--python", str(directory / "bin/python"), "install", "-q", "uv", "pipx", "pip"]
    subprocess.run(pip, check=True, timeout=LIMIT_S)
    return directory / "bin"


@pytest.mark.parametrize("release", PYTHONS)
def test_daemon_is_installed_on_each_python(installers: Path, wheel: Path, tmp_path: Path, release: str) -> None:
    """With all extras; every module is imported."""
    find = [installers / "uv", "python", "find", "--no-python-downloads", "--no-project", release]
    found = subprocess.run(find, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    if found.returncode:
        pytest.skip(f"Python {release} is not installed")
    python = found.stdout.strip()
    subprocess.run([python, "-m", "venv", "--without-pip", str(tmp_path)], check=True, timeout=LIMIT_S)
    pip = [sys.executable, "-m", "pip", "--python", str(tmp_path / "bin/python"), "install", "-q"]
    subprocess.run([*pip, f"{wheel}[server,embedded,documents,otel,s3]"], check=True, timeout=LIMIT_S)
    everything = (
        "import importlib, pkgutil, exai\n"
        "for each in pkgutil.walk_packages(exai.__path__, 'exai.'):\n"
        "    if 'alembic' not in each.name and each.name != 'exai.__main__': importlib.import_module(each.name)\n"
        "print(exai.__version__)\n"
    )
    assert _output(tmp_path, tmp_path / "bin/python", "-c", everything) == exai.__version__
    assert _output(tmp_path, tmp_path / "bin/exai", "version").startswith(f"exai {exai.__version__}")


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
