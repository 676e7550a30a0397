from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.wheels import LIMIT_S

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one that make has built, or a new one."""
    given = os.environ.get("EXAI_TEST_WHEELS")
    directory = ROOT / given if given else tmp_path_factory.mktemp("wheel")
    if not given:
        options = ("--no-build-isolation", "--no-deps", "--no-index", "-q", "-w", str(directory))
        subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(ROOT)], check=True, timeout=LIMIT_S)
    return next(directory.glob("exai-*.whl"))
