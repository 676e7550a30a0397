"""The `exai` command: its output, and its exit statuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import structlog

from exai import __version__
from exai.cli import main as cli
from exai.errors import (
    ConfigError,
    DatabaseUnavailable,
    ExaiError,
    InvalidArgument,
    NotConfigured,
    SchemaMismatch,
    StartupError,
)
from exai.mcp.transport.listener import program_name
from exai.program import Started
from exai.settings.load import load_settings

COMMANDS = ("serve", "connect", "migrate", "health", "config", "doctor", "chat", "search", "show", "version")
KEY = "sk-0123456789abcdef"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A directory without a .env file and an environment without a setting."""
    for name in list(os.environ):
        if name.startswith("EXAI_") or name.endswith(("API_KEY", "DATABASE_URL", "REDIS_URL", "DB_URL", "LOG_LEVEL")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    structlog.reset_defaults()


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output, standard error."""
    status = cli.main(list(arguments))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def assert_one_message(error: str) -> None:
    """One sentence that begins with the program's name, and no traceback."""
    assert error.startswith("exai: ")
    assert error.count("exai: ") == 1
    assert "Traceback" not in error


class TestUsage:
    def test_help_lists_every_command_and_exit_status(self, capsys: pytest.CaptureFixture[str]) -> None:
        """The exit statuses are an interface; --help documents them."""
        with pytest.raises(SystemExit) as left:
            cli.main(["--help"])
        text = capsys.readouterr().out
        assert left.value.code == 0
        for command in COMMANDS:
            assert f"\n    {command} " in text
        for status in ("  0 ", "  1 ", "  2 ", "  3 ", "  4 ", "  130 "):
            assert status in text

    @pytest.mark.parametrize("arguments", [[], ["nonsense"], ["health", "--format", "xml"], ["serve", "--nonsense"]])
    def test_wrong_usage_exits_with_2(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        """Misconfigured includes wrong arguments."""
        with pytest.raises(SystemExit) as left:
            cli.main(arguments)
        assert left.value.code == 2
        assert "usage: exai" in capsys.readouterr().err

    def test_no_command_shows_the_help(self, capsys: pytest.CaptureFixture[str]) -> None:
        """A user without arguments sees the commands."""
        with pytest.raises(SystemExit):
            cli.main([])
        text = capsys.readouterr().err
        assert all(f"\n    {command} " in text for command in COMMANDS)

    def test_version_is_one_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Scripts read it, by either of the usual spellings."""
        assert run(capsys, "version") == (0, f"exai {__version__}\n", "")
        with pytest.raises(SystemExit) as left:
            cli.main(["--version"])
        assert (left.value.code, capsys.readouterr().out) == (0, f"exai {__version__}\n")


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (ConfigError("A", "is wrong", "Correct it"), 2),
            (NotConfigured("a provider", "Set A"), 2),
            (StartupError("port 1", "is taken", "Take another"), 3),
            (DatabaseUnavailable("postgres", "refused", "Start it"), 3),
            (SchemaMismatch("postgres", "behind", "Migrate"), 4),
            (InvalidArgument("prompt", "is empty", "Write one"), 1),
        ],
    )
    def test_own_errors_are_one_sentence_and_their_status(
        self, error: ExaiError, status: int, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Also out of the group that a failing task makes of them, and from behind a library's own error."""
        wrapped = RuntimeError("Alembic's word for it")
        wrapped.__cause__ = error
        for raised in (error, wrapped, ExceptionGroup("tasks", [ExceptionGroup("more", [error])])):
            assert cli._report(raised) == status
            assert capsys.readouterr().err == f"exai: {error}\n"

    def test_defect_shows_its_traceback_without_secrets(self, capsys: pytest.CaptureFixture[str]) -> None:
        """A report needs the lines, but not the password."""
        try:
            raise RuntimeError("postgresql://u:pa55word@h/d")
        except RuntimeError as error:
            status = cli._report(error)
        text = capsys.readouterr().err
        assert status == 1
        assert "Traceback" in text
        assert "pa55word" not in text
        assert text.splitlines()[-1].startswith("exai: this is a defect")

    @pytest.mark.parametrize("command", ["serve", "migrate", "health", "config", "chat"])
    def test_wrong_setting_ends_every_command_with_2(
        self, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Nothing starts on a configuration that is half understood."""
        monkeypatch.setenv("EXAI_SERVER__PROT", "1")
        status, out, error = run(capsys, command)
        assert (status, out) == (2, "")
        assert_one_message(error)
        assert error == "exai: EXAI_SERVER__PROT: is not a known setting. The nearest known one is EXAI_SERVER__PORT\n"

    def test_several_wrong_settings_are_all_reported(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """One start, all problems."""
        monkeypatch.setenv("EXAI_SERVER__PORT", "x")
        monkeypatch.setenv("LOG_LEVEL", "loud")
        status, _, error = run(capsys, "config")
        assert status == 2
        assert [line.split(":")[-2].split()[-1] for line in error.splitlines()] == ["EXAI_SERVER__PORT", "LOG_LEVEL"]

    @pytest.mark.parametrize("count", ["0", "-1", "65"])
    def test_impossible_number_of_workers_is_2(self, count: str, capsys: pytest.CaptureFixture[str]) -> None:
        """A wrong argument, like a wrong setting, is cured by writing another one."""
        status, _, error = run(capsys, "serve", "--workers", count)
        assert (status, error) == (2, f"exai: --workers: {count} is not a number of workers. Give 1 to 64\n")

    def test_setting_given_as_an_option_is_named_by_its_variable(self, capsys: pytest.CaptureFixture[str]) -> None:
        """--help names the variable of each option."""
        status, _, error = run(capsys, "serve", "--port", "http")
        assert (status, error.split(":")[1].strip()) == (2, "EXAI_SERVER__PORT")

    def test_non_loopback_address_without_a_token_is_refused(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Facts on security: refuse to start on a non-loopback address without authentication."""
        status, _, error = run(capsys, "serve", "--host", "0.0.0.0")
        assert status == 2
        assert "EXAI_SERVER__TOKEN" in error


class TestConfig:
    def test_every_setting_is_shown_with_its_origin_and_without_secrets(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        """Design: the settings in effect can be printed, redacted."""
        (tmp_path / ".env").write_text(f"KIMI_API_KEY={KEY}\nEXAI_SERVER__PORT=9000\n")
        monkeypatch.setenv("DATABASE_URL", "postgresql://u:pa55word@h/d")
        status, out, error = run(capsys, "config")
        lines = out.splitlines()
        assert (status, error) == (0, "")
        assert lines[0] == "# .env was read"
        shown = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines[1:]}
        assert shown["EXAI_DATABASE__URL"] == "postgresql://u:***@h/d  # environment, as DATABASE_URL"
        assert shown["EXAI_PROVIDERS__KIMI__API_KEY"] == "***  # .env, as KIMI_API_KEY"
        assert shown["EXAI_SERVER__PORT"] == "9000  # .env"
        assert shown["EXAI_SERVER__HOST"] == "127.0.0.1"
        assert "pa55word" not in out
        assert KEY not in out

    def test_json_has_the_same_facts(self, capsys: pytest.CaptureFixture[str]) -> None:
        """For programs."""
        status, out, _ = run(capsys, "config", "--format", "json")
        shown = json.loads(out)
        assert (status, shown["env_file"]) == (0, None)
        assert {"variable": "EXAI_SERVER__PORT", "value": "8079", "origin": "default"} in shown["settings"]


class TestConfigCheck:
    def test_valid_settings_are_0_without_any_server(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """For a container's or a service's start: nothing is connected to."""
        monkeypatch.setenv("EXAI_DATABASE__URL", "postgresql://u:p@nowhere.invalid/d")
        monkeypatch.setenv("EXAI_CACHE__URL", "redis://nowhere.invalid")
        monkeypatch.setenv("KIMI_API_KEY", KEY)
        assert run(capsys, "config", "--check") == (0, "the settings are valid\n", "")

    @pytest.mark.parametrize(
        ("variable", "value"),
        [
            ("EXAI_SERVER__PORT", "http"),
            ("EXAI_DATABASE__MIGRATION_URL", "postgresql://u:p@h:99999/d"),
            ("EXAI_CACHE__URL", "redis://h/0?unknown=1"),
            ("EXAI_PROVIDERS__DEFAULT_MODEL", "no-such-model"),
            ("EXAI_PROVIDERS__MODELS_FILE", "/nowhere/models.toml"),
            ("EXAI_FILES__ROOTS", "/proc"),
            ("EXAI_ANSWERS__EMBEDDING_MODEL", "without-a-provider"),
        ],
    )
    def test_what_a_daemon_would_refuse_is_2_with_its_name(
        self, variable: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Also what only a part of it reads."""
        monkeypatch.setenv("EXAI_DATABASE__URL", "postgresql://u:p@h/d")
        monkeypatch.setenv("KIMI_API_KEY", KEY)
        monkeypatch.setenv(variable, value)
        status, out, error = run(capsys, "config", "--check")
        assert (status, out) == (2, "")
        assert_one_message(error)
        assert variable in error


class TestEnvFile:
    @pytest.mark.parametrize("command", ["migrate", "health"])
    def test_file_that_was_read_is_named(
        self, command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        """A `.env` in the working directory may be a project's; standard output stays a result."""
        (tmp_path / ".env").write_text("EXAI_SERVER__PORT=1\n")
        _, out, error = run(capsys, command)
        assert error.splitlines()[0] == f"(settings were read from {tmp_path / '.env'})"
        assert ".env" not in out

    @pytest.mark.parametrize("before", [True, False])
    def test_option_names_another_file(
        self, before: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        """Before or behind the command; the file in the working directory is not read then."""
        monkeypatch.setenv("EXAI_ENV_FILE", "overruled")
        (tmp_path / ".env").write_text("EXAI_SERVER__PORT=1\n")
        (tmp_path / "other").write_text("EXAI_SERVER__PORT=2\n")
        option = ("--env-file", "other")
        status, out, _ = run(capsys, *((*option, "config") if before else ("config", *option)))
        assert status == 0
        shown = {line.split()[0]: line.split(maxsplit=1)[1] for line in out.splitlines()[1:]}
        assert shown["EXAI_SERVER__PORT"] == f"2  # {tmp_path / 'other'}"

    def test_missing_file_is_2(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        """For every command, the bridge too."""
        monkeypatch.setenv("EXAI_ENV_FILE", "overruled")
        for command in ("config", "connect"):
            status, _, error = run(capsys, command, "--env-file", "nowhere")
            assert status == 2
            assert str(tmp_path / "nowhere") in error


class TestMigrate:
    def test_without_an_address_it_says_who_migrates(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        """The embedded database is migrated by `exai serve` itself."""
        status, out, _ = run(capsys, "migrate")
        assert status == 0
        assert "EXAI_DATABASE__URL" in out
        assert "migrated by `exai serve`" in out
        assert str(tmp_path) in out

    def test_unreachable_database_is_3(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Unreachable is not misconfigured."""
        monkeypatch.setenv("EXAI_DATABASE__URL", "postgresql://u:pa55word@127.0.0.1:1/d")
        status, _, error = run(capsys, "migrate")
        assert status == 3
        assert_one_message(error)
        assert "pa55word" not in error


class TestConnect:
    @pytest.mark.parametrize("url", ["localhost:8079", "ftp://h/", "ws://h:port/"])
    def test_unusable_address_is_2(self, url: str, capsys: pytest.CaptureFixture[str]) -> None:
        """An editor shows the message of a command that ends at once."""
        status, out, error = run(capsys, "connect", "--url", url)
        assert (status, out) == (2, "")
        assert_one_message(error)

    def test_unusable_port_is_2(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        """The address comes from the server's own variables unless EXAI_URL is set."""
        monkeypatch.setenv("EXAI_WS_PORT", "many")
        assert run(capsys, "connect")[0] == 2

    def test_nothing_heavy_is_imported(self) -> None:
        """Facts on the bridge: start-up under 0.2 s, which one settings library alone would use up."""
        code = (
            "import sys; from exai.cli.main import main; status = main(['connect', '--url', 'ws://127.0.0.1:1/']); "
            "heavy = {'pydantic', 'pydantic_settings', 'structlog', 'starlette', 'uvicorn', 'asyncpg', 'sqlalchemy',"
            " 'prometheus_client', 'httpx', 'redis'}; print(status, sorted(heavy & set(sys.modules)))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert (done.stdout, done.stderr) == ("0 []\n", "")


def test_unknown_command_is_refused_with_the_commands_of_users(capsys: pytest.CaptureFixture[str]) -> None:
    """`worker` is started by a parent process only."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["conect"])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert "connect" in error
    assert "worker" not in error


def test_holder_of_a_port_is_named_by_its_module(tmp_path: Path) -> None:
    """`python` alone would not show that EXAI runs."""
    (tmp_path / "comm").write_text("python\n")
    (tmp_path / "cmdline").write_bytes(b".venv/bin/python\0-m\0exai\0serve\0")
    assert program_name(tmp_path) == "exai serve"
    (tmp_path / "cmdline").write_bytes(b"nginx: master\0")
    (tmp_path / "comm").write_text("nginx\n")
    assert program_name(tmp_path) == "nginx"


class TestBanner:
    def started(self, **more: object) -> Started:
        facts: dict[str, object] = {
            "host": "127.0.0.1",
            "port": 8079,
            "database": "embedded Postgres 18.6 in /data",
            "cache": "embedded Valkey 9.1.2 in /data",
            "files": "/data/files",
            "providers": ("kimi",),
        }
        return Started(**(facts | more))  # type: ignore[arg-type]

    def test_banner_says_what_runs_where_and_what_to_paste(self) -> None:
        """Promise 9: one command to an answered call."""
        text = cli.banner(load_settings({"HOME": "/h"}, None), self.started(notes=("Valkey is not to be had",)))
        for fact in ("ws://127.0.0.1:8079/", "embedded Postgres 18.6 in /data", "kimi", "Valkey is not to be had"):
            assert fact in text
        snippets = [json.loads(line) for line in text.splitlines() if line.strip().startswith("{")]
        assert "claude mcp add --transport http exai http://127.0.0.1:8079/mcp\n" in text
        assert snippets == [
            {"mcpServers": {"exai": {"type": "http", "url": "http://127.0.0.1:8079/mcp"}}},
            {"mcpServers": {"exai": {"type": "ws", "url": "ws://127.0.0.1:8079/"}}},
            {"mcpServers": {"exai": {"command": snippets[2]["mcpServers"]["exai"]["command"], "args": ["connect"]}}},
        ]

    def test_pasted_command_starts_this_program_from_any_path(self) -> None:
        """The client that starts it does not use this environment."""
        text = cli.banner(load_settings({"HOME": "/h"}, None), self.started())
        command = json.loads(text.splitlines()[-1])["mcpServers"]["exai"]["command"]
        done = subprocess.run([command, "version"], check=True, capture_output=True, text=True, env={}, cwd="/")
        assert done.stdout == f"exai {__version__}\n"

    def test_without_a_provider_it_names_the_variables_to_set(self) -> None:
        """Design: a disabled part is shown as off, with its cure."""
        text = cli.banner(load_settings({"HOME": "/h"}, None), self.started(providers=()))
        for name in ("KIMI_API_KEY", "GLM_API_KEY", "EXAI_PROVIDERS__ENDPOINTS__OLLAMA__BASE_URL"):
            assert name in text

    def test_snippets_follow_address_and_token(self) -> None:
        """A pasted snippet works; the token itself is never printed."""
        token = "a-token-that-is-long-enough"
        settings = load_settings({"HOME": "/h", "EXAI_SERVER__HOST": "0.0.0.0", "EXAI_SERVER__TOKEN": token}, None)
        text = cli.banner(settings, self.started(host="0.0.0.0", port=9000))
        http, ws, stdio = [json.loads(line)["mcpServers"]["exai"] for line in text.splitlines() if "mcpServers" in line]
        assert http == {"type": "http", "url": "http://127.0.0.1:9000/mcp", "headers": ws["headers"]}
        assert 'mcp --header "Authorization: Bearer YOUR-TOKEN"' in text
        assert ws["url"] == "ws://127.0.0.1:9000/"
        assert ws["headers"] == {"Authorization": "Bearer YOUR-TOKEN"}
        assert stdio["env"]["EXAI_URL"] == "ws://127.0.0.1:9000/"
        assert "EXAI_TOKEN" in stdio["env"]
        assert token not in text
