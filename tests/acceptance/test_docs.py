"""The programs shown in docs/ run, and the variables that its pages name exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from exai.cli.main import COMMANDS
from exai.settings.load import variables
from tests.support.daemon import ROOT, Daemon, environment

WRITTEN = [each for each in sorted((ROOT / "docs").glob("*.md")) if "Written by" not in each.read_text("utf-8")]


def _program_of(page: str, number: int = 0) -> str:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text("utf-8"), re.DOTALL)[number]


def _run_program_of(page: str, directory: Path, number: int = 0, **variables: str) -> str:
    return _run(_program_of(page, number), directory, **variables)


def _run(program: str, directory: Path, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment({"PYTHONPATH": str(ROOT), **variables}),
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_program_of_the_library_prints_what_its_page_states(postgres_url: str, redis_url: str, tmp_path: Path) -> None:
    addresses = {"EXAI_DATABASE__URL": postgres_url, "EXAI_CACHE__URL": redis_url, "EXAI_DATA_DIR": str(tmp_path)}
    assert _run_program_of("library.md", tmp_path, **addresses) == "refused: revision\n1 mention of Monday\n"


def test_program_with_names_of_its_own_prints_what_is_stored(postgres_url: str, redis_url: str, tmp_path: Path) -> None:
    addresses = {"EXAI_DATABASE__URL": postgres_url, "EXAI_CACHE__URL": redis_url, "EXAI_DATA_DIR": str(tmp_path)}
    assert _run_program_of("library.md", tmp_path, 1, **addresses) == (
        "created: True numbers: (1,) skipped: ()\ncreated: False numbers: (1, 2) skipped: (0,)\nBetter on Monday.\n"
    )


def test_program_of_the_client_keeps_a_message_at_a_daemon(shared_daemon: Daemon, tmp_path: Path) -> None:
    program = _program_of("library.md", 2).replace("127.0.0.1:8079", f"127.0.0.1:{shared_daemon.port}")
    assert _run(program, tmp_path) == "Deploy on Friday?\n"


def test_program_of_the_websocket_page_calls_a_tool(shared_daemon: Daemon, tmp_path: Path) -> None:
    assert _run_program_of("websocket.md", tmp_path, EXAI_URL=shared_daemon.url) == "exai\n"


@pytest.mark.parametrize("page", WRITTEN, ids=lambda path: path.name)
def test_variables_and_commands_of_a_page_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    known = {each.name for each in variables()} | {"EXAI_ENV_FILE", "EXAI_SECRETS_DIR"}
    assert set(re.findall(r"\bEXAI_[A-Z0-9_]*[A-Z0-9]\b(?!__)", text)) <= known
    assert set(re.findall(r"`exai ([a-z]+)", text)) <= COMMANDS.keys()
