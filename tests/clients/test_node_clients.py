"""Claude Code, Codex and Gemini CLI, as their makers publish them, go through a conversation of two turns."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.clients.model_server import DONE, QUESTIONS, ModelServer
from tests.clients.programs import MODULES, address, claude, run
from tests.support.daemon import Daemon, start_daemon
from tests.support.provider_server import ProviderServer, kimi_answer

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(not MODULES.exists(), reason="Claude Code, Codex and Gemini CLI need Node and npm"),
]


def assert_went_on(model: ModelServer, printed: str) -> None:
    """The model asked twice, the second time in the same conversation, and its client showed the answer."""
    assert model.said[-1:] == [DONE], (printed, model.said, model.seen, [path for path, _ in model.asked])
    assert DONE in printed, printed
    assert len(model.seen) == len(QUESTIONS)
    assert f"1 messages. You said: {QUESTIONS[0]}" in model.seen[0]
    assert f"3 messages. You said: {QUESTIONS[1]}" in model.seen[1]


@pytest.mark.parametrize("kind", ["http", "ws"])
async def test_claude_code_goes_on(daemon: Daemon, model: ModelServer, tmp_path: Path, kind: str) -> None:
    """Over both transports, for which it uses different eras of the protocol."""
    command, environment = claude(daemon, model, tmp_path, "Go on.", kind)
    assert_went_on(model, await run(command, tmp_path, environment))


async def test_claude_code_goes_from_a_failure_to_its_commit(
    provider: ProviderServer, model: ModelServer, postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    """Debug, chat, codereview and precommit on one conversation and a real repository."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "stats.py").write_text("def mean(values):\n    return sum(values) / len(values)\n")
    for command in ("init -q", "add .", "-c user.name=t -c user.email=t@example.invalid commit -qm Begin"):
        subprocess.run(["git", *command.split()], cwd=project, check=True)
    (project / "stats.py").write_text("def mean(values):\n    return sum(values) / (len(values) or 1)\n")
    model.calls = [
        ("debug", {"prompt": "mean([]) fails.", "ask_model": False}),
        ("debug", {"prompt": "Why?", "files": [str(project / "stats.py")]}),
        ("chat", {"prompt": "What should it return?"}),
        ("codereview", {"prompt": "Is it right?", "files": [str(project / "stats.py")]}),
        ("precommit", {"prompt": "May it go?"}),
    ]
    answer = "Yes.\n\n```findings\nlow: 0 hides missing data (stats.py:2)\n```\n\nVERDICT: pass"
    provider.script(*[kimi_answer(answer)] * 4)
    settings = {
        "EXAI_DATA_DIR": str(tmp_path / "data"),
        "EXAI_DATABASE__URL": postgres_url,
        "EXAI_CACHE__URL": redis_url,
        "EXAI_FILES__ROOTS": str(project),
        "KIMI_API_KEY": "sk-test",
        "EXAI_PROVIDERS__KIMI__BASE_URL": provider.base_url,
    }
    home = tmp_path / "home"
    home.mkdir()
    with start_daemon(settings) as daemon:
        command, environment = claude(daemon, model, home, "Go on.")
        printed = await run(command, home, environment)
    assert model.said[-1:] == [DONE], (printed, model.said, model.seen)
    assert len(model.seen) == len(model.calls)
    assert "Step 1 of debug recorded" in model.seen[0]
    for shown in model.seen[3:]:
        assert "verdict" in shown
        assert "pass" in shown
    assert "len(values) or 1" in json.dumps(provider.chats[-1].body["messages"])


async def test_all_words_of_a_command_reach_the_model_of_claude_code(
    daemon: Daemon, model: ModelServer, tmp_path: Path
) -> None:
    """It passes the first word as the argument and shows its model the whole command."""
    command, environment = claude(daemon, model, tmp_path, "/mcp__exai__ask what is the capital of France")
    await run(command, tmp_path, environment)
    asked = [json.dumps(body["messages"]) for path, body in model.asked if "/messages" in path and "messages" in body]
    assert any("what is the capital of France" in each for each in asked), asked[:1]
    assert any("EXAI to ask the following" in each for each in asked), asked[:1]


async def test_codex_goes_on(daemon: Daemon, model: ModelServer, tmp_path: Path) -> None:
    """Over HTTP, with its model's API of responses."""
    config = f"""
model = "m"
model_provider = "loopback"
approval_policy = "never"
sandbox_mode = "danger-full-access"
[model_providers.loopback]
name = "loopback"
base_url = "{model.url}/v1"
wire_api = "responses"
[mcp_servers.exai]
url = "{address(daemon)}"
"""
    (tmp_path / "config.toml").write_text(config)
    (program,) = MODULES.glob("@openai/codex-*/vendor/*/bin/codex")
    command = [str(program), "exec", "--skip-git-repo-check", "Go on."]
    assert_went_on(model, await run(command, tmp_path, {"CODEX_HOME": str(tmp_path)}))


async def test_gemini_cli_goes_on(daemon: Daemon, model: ModelServer, tmp_path: Path) -> None:
    """Over HTTP; it shows its model the texts only."""
    (tmp_path / ".gemini").mkdir()
    settings = {
        "mcpServers": {"exai": {"httpUrl": address(daemon), "trust": True}},
        "security": {"auth": {"selectedType": "gemini-api-key"}},
        "privacy": {"usageStatisticsEnabled": False},
    }
    (tmp_path / ".gemini" / "settings.json").write_text(json.dumps(settings))
    program = MODULES / "@google" / "gemini-cli" / "bundle" / "gemini.js"
    environment = {"GEMINI_API_KEY": "none", "GOOGLE_GEMINI_BASE_URL": model.url, "GEMINI_CLI_TRUST_WORKSPACE": "true"}
    command = ["node", str(program), "--yolo", "--model", "gemini-2.5-flash", "-p", "Go on."]
    assert_went_on(model, await run(command, tmp_path, environment))
