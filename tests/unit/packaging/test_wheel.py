"""What the wheel holds: each file of the package that git tracks, and the migrations; as the build lists it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

from tests.unit.packaging.imports import ROOT


def tracked(directory: str) -> set[str]:
    """Return the files below a directory of the repository; skip the test where there is none."""
    done = subprocess.run(["git", "ls-files", "-z", directory], cwd=ROOT, capture_output=True, text=True, check=False)
    names = {name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()}
    if not names:
        pytest.skip("this is no git repository")
    return names


def test_every_file_of_the_package_is_in_the_wheel() -> None:
    """Also texts of workflows, statements, scripts and the models file."""
    packed = {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    migrations = {f"exai/db/{name}" for name in tracked("alembic")}
    assert (tracked("exai") | migrations) - packed == set()
    for sample in (
        "exai/workflows/texts/debug.md",
        "exai/workflows/texts/shared/findings.md",
        "exai/workflows/consensus/texts/arbiter.md",
        "exai/providers/models.toml",
        "exai/db/sql/turns.sql",
        "exai/cache/redis/lua/read.lua",
        "exai/db/alembic/functions/begin_turn_v1.sql",
        "exai/py.typed",
    ):
        assert sample in packed


def test_every_file_of_the_wheel_is_in_the_source_distribution() -> None:
    """From which others build the wheel."""
    packed = {Path(file.path).resolve() for file in SdistBuilder(str(ROOT)).recurse_included_files()}
    needed = {Path(file.path).resolve() for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    assert needed <= packed
