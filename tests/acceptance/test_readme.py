"""The programs shown in the README run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from exai.cli.main import DEFAULT_PORT, banner
from exai.embedded.postgres import find_postgres
from exai.embedded.valkey import find_valkey
from exai.models import Started
from exai.settings.load import load_settings
from tests.support.daemon import ROOT, environment


def test_library_example_prints_what_it_stored(postgres_url: str, redis_url: str, tmp_path: Path) -> None:
    """The example is taken from the text, so that the two cannot differ; run twice, its key makes it one append."""
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert example is not None
    settings = {
        "EXAI_DATABASE__URL": postgres_url,
        "EXAI_CACHE__URL": redis_url,
        "EXAI_DATA_DIR": str(tmp_path),
    }
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", example.group(1)],
            env=environment({"PYTHONPATH": str(ROOT), **settings}),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.stdout == "1 user Which planet is the largest?\n2 assistant Jupiter.\n", done.stderr


def test_screen_of_the_readme_is_what_a_start_prints() -> None:
    """Compared line by line, with the installed versions and the paths of a checkout in a home directory."""
    screen = re.search(r"```\n(EXAI .*?)\n```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    valkey = find_valkey()
    assert screen is not None
    assert not isinstance(valkey, str)
    data_dir = "/home/you/.local/share/exai"
    started = Started(
        host="127.0.0.1",
        port=DEFAULT_PORT,
        database=f"embedded Postgres {find_postgres(None).version} in {data_dir}",
        cache=f"embedded Valkey {valkey.version} in {data_dir}",
        files="in the database",
        providers=("kimi",),
        notes=(),
    )
    printed = banner(load_settings({"HOME": "/home/you"}, None), started)
    assert re.sub(r'"command":"[^"]*"', '"command":"/home/you/exai/.venv/bin/exai"', printed) == screen.group(1)


def test_commands_of_the_readme_exist() -> None:
    """Every make target and every exai command that the text names."""
    text = (ROOT / "README.md").read_text("utf-8")
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"(?:^|`)make ([a-z][a-z-]*)", text, re.MULTILINE))
    assert {"run", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    named = set(re.findall(r"(?:\.venv/bin/|`)exai ([a-z]+)", text))
    done = subprocess.run(
        [sys.executable, "-m", "exai", "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    for command in named:
        assert re.search(rf"^\s+{command}\s", done.stdout, re.MULTILINE), command
