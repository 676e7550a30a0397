"""docker/exai.service, as systemd reads it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "docker" / "exai.service"
MOST_EXPOSURE = 2.0

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"},
    )


@needs_systemd
def test_every_key_is_known(tmp_path: Path) -> None:
    """An unknown one would be ignored, and with it what it protects."""
    unit = tmp_path / "exai.service"
    unit.write_text(UNIT.read_text().replace("/opt/exai/bin/exai", "/bin/true"))
    done = analyze("verify", str(unit))
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
def test_service_is_hardly_exposed() -> None:
    done = analyze("security", "--offline=true", str(UNIT))
    [exposure] = re.findall(r"Overall exposure level for exai\.service: ([\d.]+)", done.stdout)
    assert float(exposure) < MOST_EXPOSURE


def test_unit_leaves_time_for_the_shutdown_and_holds_no_secret() -> None:
    text = UNIT.read_text()
    assert re.search(r"(?m)^TimeoutStopSec=40$", text)
    assert not re.search(r"(?m)^Environment=.*(TOKEN|KEY|URL)", text)
    assert "EXAI_SECRETS_DIR=%d" in text
