"""The programs shown in the README run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import httpx

from exai.cli.main import COMMANDS, DEFAULT_PORT, banner
from exai.embedded.postgres import find_postgres
from exai.embedded.valkey import find_valkey
from exai.program import Started
from exai.settings.load import load_settings, variables
from exai.settings.sections import CALL_DEADLINES
from exai.tools.limits import ANSWER_CHARS, ANSWER_TOKENS, CLIENT_ANSWERS
from exai.tools.workflow import arguments_of
from exai.workflows import load_workflows
from tests.support.daemon import ROOT, Daemon, environment
from tests.support.provider_server import ProviderServer


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


def test_every_make_target_and_command_is_in_the_readme() -> None:
    """`make help` and `exai --help` list nothing that the text does not name."""
    text = (ROOT / "README.md").read_text("utf-8")
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE):
        assert re.search(rf"make {target}\b(?!-)", text), target
    for command in COMMANDS.keys() - {"worker"}:
        assert re.search(rf"exai {command}\b|`{command}`", text), command


def test_tools_of_the_readme_are_those_that_clients_are_offered(shared_daemon: Daemon) -> None:
    """The first column of the table names each of them once."""
    text = (ROOT / "README.md").read_text("utf-8")
    table = text[text.index("| tool | does |") : text.index("### Ask an expert")]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([a-z_]+)`", row)]
    listed = httpx.post(
        f"http://127.0.0.1:{shared_daemon.port}/mcp",
        json={"jsonrpc": "2.0", "id": 1, "method": "tools/list"},
        headers={"Accept": "application/json, text/event-stream"},
        timeout=30,
    )
    assert sorted(named) == sorted(each["name"] for each in listed.json()["result"]["tools"])


def test_variables_of_the_readme_exist() -> None:
    """Each is a setting or read by the tests; `EXAI_X__...` stands for the names that begin so."""
    text = (ROOT / "README.md").read_text("utf-8")
    known = {each.name for each in variables()} | {"EXAI_ENV_FILE", "EXAI_SECRETS_DIR"}
    for name in set(re.findall(r"\bEXAI_[A-Z0-9_]+", text)):
        if name.startswith(("EXAI_TEST_", "EXAI_FAULT_", "EXAI_SOAK_")):
            continue
        assert name in known or (name.endswith("_") and any(each.startswith(name) for each in known)), name


def test_numbers_of_the_readme_are_those_of_the_code() -> None:
    """Sizes of answers, deadlines, and the defaults that the text names."""
    text = " ".join((ROOT / "README.md").read_text("utf-8").split())
    chars, tokens = CLIENT_ANSWERS["claude-code"]
    assert (
        f"An answer has at most {ANSWER_CHARS:,} characters and {ANSWER_TOKENS:,} tokens "
        f"({chars:,} and {tokens:,} for Claude Code), unless the call asks for more."
    ) in text
    deadlines = {name: f"{limit_s:g} s" for name, limit_s in CALL_DEADLINES.items()}
    assert f"within {deadlines['codex']} for Codex, {deadlines['gemini-cli']} for Gemini CLI" in text
    assert f"and {deadlines['*']} for unknown clients" in text
    settings = load_settings({"HOME": "/home/you"}, None)
    assert f"`EXAI_TOOL_TIMEOUT_S` ({settings.tool_timeout_s:g} s)" in text
    assert f"`EXAI_BUDGETS__ANSWER_TOKENS` ({settings.budgets.answer_tokens:,})" in text
    assert f"`EXAI_ANSWERS__TTL_HOURS` ({settings.answers.ttl_hours:g})" in text
    assert f"`EXAI_SERVER__TASK_AFTER_S` ({settings.server.task_after_s:g} s)" in text


def test_json_and_links_of_the_readme_are_right() -> None:
    """Every JSON example parses, and every linked file exists."""
    text = (ROOT / "README.md").read_text("utf-8")
    blocks = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    assert blocks
    for block in blocks:
        json.loads(block)
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / target).exists(), target


async def test_calls_that_the_readme_shows_are_answered(daemon: Daemon, provider: ProviderServer) -> None:
    """The body of the curl command is sent as it is, and the example of a tool call has the arguments of its tool."""
    text = (ROOT / "README.md").read_text("utf-8")
    body = re.search(r"-d '(\{.*?\})'", text)
    assert body is not None
    headers = dict(each.split(": ", 1) for each in re.findall(r"-H '([^']+)'", text))
    async with httpx.AsyncClient(timeout=30) as client:
        answer = await client.post(f"http://127.0.0.1:{daemon.port}/mcp", content=body[1], headers=headers)
    assert answer.headers["content-type"].startswith("application/json")
    assert len(provider.chats) == 1
    assert "continuation_id: " in answer.json()["result"]["content"][0]["text"]
    example = re.search(r'```json\n(\{"name": "codereview".*?)```', text, re.DOTALL)
    assert example is not None
    call = json.loads(example[1])
    assert arguments_of(load_workflows()[call["name"]])(**call["arguments"])
