"""The source distributions of frameworks, whose own tests run with EXAI in the place of their stores."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SWAP = Path(__file__).resolve().parent / "swap"
PASSED = re.compile(r"^PASSED (\S+)", re.MULTILINE)
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Outcome:
    """The names of the tests that passed and failed, and the output."""

    passed: frozenset[str]
    failed: frozenset[str]
    output: str


def version_of(distribution: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version(distribution).split(".") if part.isdecimal())


def source_of(distribution: str) -> Path:
    """Return the unpacked source distribution of the installed release, which pip downloads once per environment."""
    directory = Path(sys.prefix) / "sources"
    name = f"{distribution.replace('-', '_')}-{version(distribution)}"
    if not (directory / name).is_dir():
        command = ["-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", str(directory)]
        requirement = f"{distribution}=={version(distribution)}"
        subprocess.run([str(ROOT / ".venv/bin/python"), *command, requirement], check=True)
        with tarfile.open(directory / f"{name}.tar.gz") as archive:
            # The first releases of Python 3.11 have no filters.
            archive.extraction_filter = getattr(tarfile, "data_filter", None)
            archive.extractall(directory)
    return directory / name


def run_suite(source: Path, files: Sequence[str], plugin: str, address: str, *, without: Sequence[str]) -> Outcome:
    """Run tests of a source distribution but those that are named, with a plugin and a daemon."""
    environment = {
        **os.environ,
        "EXAI_ADAPTER_ADDRESS": address,
        "PYTHONPATH": os.pathsep.join([str(SWAP), str(ROOT)]),
    }
    left_out = [f"--deselect={file}::{name}" for file in files for name in without]
    command = [sys.executable, "-m", "pytest", "-p", plugin, "-p", "no:xdist", "-q", "-rA", "--tb=short"]
    done = subprocess.run(
        [*command, *left_out, *files],
        cwd=source,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    # A suite that could not start has no test that passed.
    names = frozenset(PASSED.findall(done.stdout)), frozenset(FAILED.findall(done.stdout))
    return Outcome(*names, done.stdout + done.stderr)
