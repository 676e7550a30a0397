"""Find a release of Python: on PATH, at pyenv, at uv; or bring one by uv or from Debian.

Invariant: a Python that is returned runs, is of the release that was asked for, and can make environments.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.containers.engine import mirrors
from tests.packaging.wheels import LIMIT_S

ROOT: Final = Path(__file__).resolve().parents[2]
KEPT: Final = ROOT / ".venv" / "pythons"
SUITES: Final = ("trixie", "forky", "sid")
"""Of Debian, in the order of their age; each has one release or two."""

WORKS: Final = "import ctypes, sqlite3, ssl, sys, venv; print(*sys.version_info[:2], sep='.')"


def python(release: str, uv: Path, patchelf: Path) -> Path | None:
    """Return the program of a release such as `3.14`, or None where it is neither found nor brought."""
    found = (each for each in _installed(release, uv) if _works(each, release))
    return next(found, None) or _by_uv(release, uv) or _from_debian(release, patchelf)


def _installed(release: str, uv: Path) -> Iterator[Path]:
    for directory in os.get_exec_path():
        # A shim of pyenv has the name of every release and runs the ones that are chosen.
        yield Path(directory, f"python{release}")
    versions = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    yield from sorted(versions.glob(f"{release}.*/bin/python{release}"))
    found = _run(uv, "python", "find", "--no-python-downloads", "--no-project", release)
    if found.returncode == 0:
        yield Path(found.stdout.strip())


def _works(program: Path, release: str) -> bool:
    if not os.access(program, os.X_OK):
        return False
    done = _run(program, "-c", WORKS)
    return done.returncode == 0 and done.stdout.strip() == release


def _by_uv(release: str, uv: Path) -> Path | None:
    """Let uv download one, where its source can be reached."""
    directory = {"UV_PYTHON_INSTALL_DIR": str(KEPT / "uv"), "UV_HTTP_TIMEOUT": "10", "UV_HTTP_RETRIES": "0"}
    if _run(uv, "python", "install", "--no-bin", release, **directory).returncode:
        return None
    found = _run(uv, "python", "find", "--managed-python", "--no-project", release, **directory)
    program = Path(found.stdout.strip())
    return program if found.returncode == 0 and _works(program, release) else None


def _from_debian(release: str, patchelf: Path) -> Path | None:
    """Unpack the packages of a newer Debian beside this system; its programs use the libraries that come with them."""
    program = KEPT / f"debian-{release}" / "usr" / "bin" / f"python{release}"
    if _works(program, release):
        return program
    if sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("mmdebstrap"):
        return None
    packages = f"python{release},python{release}-venv"
    for suite in SUITES:
        tree = KEPT / f"debian-{release}"
        shutil.rmtree(tree, ignore_errors=True)
        tree.parent.mkdir(parents=True, exist_ok=True)
        options = ("--variant=extract", f"--include={packages}", '--aptopt=Acquire::Check-Valid-Until "false"')
        if _run("mmdebstrap", *options, suite, tree, *mirrors()).returncode:
            continue
        [loader] = (tree / "usr").glob("lib*/ld-linux-*.so.*")
        [libraries] = {found.parent for found in (tree / "usr" / "lib").glob("*-linux-gnu/libc.so.6")}
        path = os.path.relpath(libraries, program.parent)
        # The older kind of path holds for the libraries of libraries, too.
        places = ("--force-rpath", "--set-rpath", f"$ORIGIN/{path}", "--set-interpreter", str(loader))
        if _run(patchelf, *places, program).returncode == 0 and _works(program, release):
            return program
    return None


def _run(program: Path | str, *arguments: Path | str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
