"""Roots that cannot be read at all are configuration errors at start, which `exai doctor` reports, too."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import run_exai_as_text


@pytest.mark.parametrize("command", [["serve", "--port", "0"], ["serve", "--port", "0", "--workers", "2"], ["doctor"]])
@pytest.mark.parametrize("inside", ["", "files"])
def test_root_in_the_data_directory_is_refused(tmp_path: Path, command: list[str], inside: str) -> None:
    """Before anything is started: the exit status of a wrong setting, one line, and the cure."""
    (tmp_path / "data" / "files").mkdir(parents=True)
    settings = {
        "EXAI_DATA_DIR": str(tmp_path / "data"),
        "EXAI_DATABASE__URL": "postgresql://exai@127.0.0.1:1/exai",
        "EXAI_FILES__ROOTS": str(tmp_path / "data" / inside),
    }
    done = run_exai_as_text(*command, settings=settings, cwd=tmp_path)
    said = done.stderr + done.stdout
    assert done.returncode == (1 if command == ["doctor"] else 2), said
    assert "EXAI_FILES__ROOTS" in said
    assert "Allow a directory that holds nothing but files to be read" in said
    assert "Traceback" not in said
