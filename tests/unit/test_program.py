"""The commands in error messages can be typed as they are."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from exai.program import program
from tests.support.daemon import ROOT, environment


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A console script in a checkout's environment; the checkout is the working directory."""
    file = tmp_path / "checkout" / ".venv" / "bin" / "exai"
    file.parent.mkdir(parents=True)
    file.touch(mode=0o755)
    monkeypatch.chdir(tmp_path / "checkout")
    return file


@pytest.mark.parametrize(
    ("called", "expected"),
    [
        (".venv/bin/exai", ".venv/bin/exai"),
        ("{script}", ".venv/bin/exai"),
        ("/opt/my tools/exai", "'/opt/my tools/exai'"),
        ("/usr/bin/pytest", "exai"),
        ("/usr/lib/pytest/__main__.py", "exai"),
        ("-c", "exai"),
        ("", "exai"),
    ],
)
def test_script_is_named_as_it_was_called(
    called: str, expected: str, script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its path from the working directory; within another program by its plain name."""
    monkeypatch.setattr(sys, "argv", [called.format(script=script)])
    assert program() == expected


def test_script_on_the_path_is_named_without_it(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first on the PATH only: another `exai` before it would be another program."""
    monkeypatch.setattr(sys, "argv", [str(script)])
    monkeypatch.setenv("PATH", os.pathsep.join(("/nowhere", str(script.parent))))
    assert program() == "exai"
    other = script.parents[2] / "other"
    other.mkdir()
    (other / "exai").touch(mode=0o755)
    monkeypatch.setenv("PATH", os.pathsep.join((str(other), str(script.parent))))
    assert program() == ".venv/bin/exai"


def test_module_is_named_with_its_interpreter(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make run` starts EXAI so."""
    monkeypatch.setattr(sys, "argv", ["/site-packages/exai/__main__.py"])
    monkeypatch.setattr(sys, "executable", str(script.with_name("python")))
    assert program() == ".venv/bin/python -m exai"
    script.with_name("python3").touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(script.with_name("python3")))
    monkeypatch.setenv("PATH", str(script.parent))
    assert program() == "python3 -m exai"


def test_error_of_a_command_advises_the_command_that_was_used(tmp_path: Path) -> None:
    """No daemon is running: the cure is to start one."""
    done = subprocess.run(
        [sys.executable, "-m", "exai", "health", "--url", "http://127.0.0.1:1"],
        check=False,
        capture_output=True,
        text=True,
        env=environment({"PYTHONPATH": str(ROOT), "PATH": str(tmp_path)}),
        cwd=tmp_path,
        timeout=60,
    )
    assert done.returncode == 3
    assert f"Start the daemon with `{shlex.quote(sys.executable)} -m exai serve`" in done.stderr
