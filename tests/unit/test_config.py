"""Settings: their sources, precedence, and errors."""

from __future__ import annotations

import itertools
import re
import typing
from pathlib import Path

import pytest

from exai.errors import ConfigError
from exai.settings.load import OLDER_NAMES, Settings, describe, load_settings, show, variables

HOME = {"HOME": "/home/ada"}
EXAMPLE = Path(__file__).parents[2] / ".env.example"
PASSWORD = "pa55word-in-dsn"
KEY = "sk-0123456789abcdef"
TOKEN = "a-token-that-is-long-enough"
SECRET = "a-secret-that-is-long-enough-for-hs256"
KEYS_URL = "https://ref.supabase.co/auth/v1/.well-known/jwks.json"
ISSUED = {"EXAI_SERVER__JWT__ISSUER": "https://ref.supabase.co/auth/v1"}


def load(**environ: str) -> Settings:
    return load_settings(HOME | environ, None)


def refusal(**environ: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(**environ)
    assert caught.value.exit_status == 2
    return caught.value


def origin_of(settings: Settings, variable: str) -> str:
    return next(line.origin for line in describe(settings) if line.variable == variable)


class TestValues:
    def test_nothing_set_gives_embedded_servers_on_loopback_8079(self) -> None:
        """Design, embedded default: no variable is required."""
        settings = load()
        assert settings.database.url is None
        assert settings.cache.url is None
        assert (settings.server.host, settings.server.port) == ("127.0.0.1", 8079)
        assert settings.tool_timeout_s == 600
        assert settings.env_file is None

    @pytest.mark.parametrize("variable", list(OLDER_NAMES))
    def test_every_older_name_sets_the_same_field(self, variable: str) -> None:
        """Design: configurations of the replaced system keep working."""
        samples = {
            "EXAI_DATABASE__URL": "postgresql://h/d",
            "EXAI_CACHE__URL": "redis://h",
            "EXAI_CACHE__IDLE_HOURS": "3",
            "EXAI_SERVER__HOST": "127.0.0.2",
            "EXAI_SERVER__PORT": "9000",
            "EXAI_PROVIDERS__KIMI__API_KEY": "k",
            "EXAI_PROVIDERS__GLM__API_KEY": "g",
            "EXAI_PROVIDERS__DEEPSEEK__API_KEY": "d",
            "EXAI_PROVIDERS__OPENROUTER__API_KEY": "o",
            "EXAI_PROVIDERS__QWEN__API_KEY": "q",
            "EXAI_LOG__LEVEL": "error",
            "EXAI_TOOL_TIMEOUT_S": "30",
        }
        target = next(each for each in variables() if each.name == variable)
        expected = target.lookup(load(**{variable: samples[variable]}))
        assert expected != target.field.default
        for older in OLDER_NAMES[variable]:
            settings = load(**{older: samples[variable]})
            assert target.lookup(settings) == expected
            assert origin_of(settings, variable) == f"environment, as {older}"

    def test_exai_name_wins_over_older_names_that_disagree(self) -> None:
        """The rule of the settings: the EXAI_ name wins."""
        settings = load(EXAI_DATABASE__URL="postgresql://a/d", DATABASE_URL="postgresql://b/d", SUPABASE_DB_URL="x")
        assert settings.database.url is not None
        assert settings.database.url.get_secret_value() == "postgresql://a/d"

    def test_older_names_that_agree_are_accepted(self) -> None:
        """Only a disagreement is ambiguous."""
        settings = load(KIMI_API_KEY="same", MOONSHOT_API_KEY="same")
        assert settings.providers.kimi.api_key is not None

    def test_empty_and_blank_values_count_as_unset(self) -> None:
        """Compose files pass `${KIMI_API_KEY:-}` for an unset variable."""
        settings = load(KIMI_API_KEY="", DATABASE_URL="  ", EXAI_NO_SUCH_THING="", EXAI_SERVER__PORT="")
        assert settings.providers.kimi.api_key is None
        assert settings.database.url is None
        assert settings.server.port == 8079

    def test_surrounding_white_space_is_dropped(self) -> None:
        """A key pasted with its line break must not break every request."""
        key = load(KIMI_API_KEY=f" {KEY}\n").providers.kimi.api_key
        assert key is not None
        assert key.get_secret_value() == KEY

    @pytest.mark.parametrize("text", ["off", "OFF", "Off"])
    def test_cache_can_be_switched_off(self, text: str) -> None:
        """Design: a disabled part is stated, not guessed."""
        assert load(REDIS_URL=text).cache.url == "off"

    @pytest.mark.parametrize(("text", "level"), [("DEBUG", "debug"), ("Warn", "warning"), ("CRITICAL", "error")])
    def test_log_level_is_accepted_in_any_case(self, text: str, level: str) -> None:
        """LOG_LEVEL is shared with other programs."""
        assert load(LOG_LEVEL=text).log.level == level

    @pytest.mark.parametrize("text", ["a.example, b.example,", '["a.example", "b.example"]'])
    def test_lists_are_comma_separated_or_json(self, text: str) -> None:
        """Both ways of writing a list are common."""
        assert load(EXAI_SERVER__ALLOWED_HOSTS=text).server.allowed_hosts == ("a.example", "b.example")

    def test_endpoints_are_read_from_json(self) -> None:
        """Design, providers: any number of named endpoints."""
        text = '{"ollama": {"base_url": "http://localhost:11434/v1/", "api_key": "k", "models": ["a", "b"]}}'
        endpoint = load(EXAI_PROVIDERS__ENDPOINTS=text).providers.endpoints["ollama"]
        assert endpoint.base_url == "http://localhost:11434/v1"
        assert endpoint.models == ("a", "b")

    def test_endpoints_are_read_field_by_field_over_the_json(self) -> None:
        """One variable each is easier in a compose file than JSON."""
        endpoints = load(
            EXAI_PROVIDERS__ENDPOINTS='{"My.Proxy": {"base_url": "http://a/v1"}, "vllm": {"base_url": "http://b/v1"}}',
            EXAI_PROVIDERS__ENDPOINTS__VLLM__API_KEY="k",
            EXAI_PROVIDERS__ENDPOINTS__VLLM__BASE_URL="http://c/v1",
            EXAI_PROVIDERS__ENDPOINTS__BIG_BOX__BASE_URL="http://d/v1",
            EXAI_PROVIDERS__ENDPOINTS__BIG_BOX__MODELS="x, y",
            EXAI_PROVIDERS__ENDPOINTS__BIG_BOX__CONTEXT_WINDOW="4096",
        ).providers.endpoints
        assert set(endpoints) == {"my.proxy", "vllm", "big_box"}
        assert endpoints["vllm"].base_url == "http://c/v1"
        assert endpoints["vllm"].api_key is not None
        assert (endpoints["big_box"].models, endpoints["big_box"].context_window) == (("x", "y"), 4096)

    def test_origin_of_an_endpoint_is_the_variable_it_was_written_as(self) -> None:
        """A setting in effect can be traced to its source."""
        settings = load(EXAI_PROVIDERS__ENDPOINTS__VLLM__BASE_URL="http://c/v1")
        assert origin_of(settings, "EXAI_PROVIDERS__ENDPOINTS") == (
            "environment, as EXAI_PROVIDERS__ENDPOINTS__VLLM__BASE_URL"
        )

    def test_names_of_the_tests_and_of_container_service_links_are_ignored(self) -> None:
        """A service called `exai` makes the platform set EXAI_PORT and friends for every container."""
        load(
            EXAI_TEST_BACKEND="auto",
            EXAI_PORT="tcp://10.0.0.1:8079",
            EXAI_SERVICE_HOST="10.0.0.1",
            EXAI_SERVICE_PORT_WS="8079",
            EXAI_PORT_8079_TCP_ADDR="10.0.0.1",
        )

    def test_settings_are_frozen(self) -> None:
        """Style: settings are read once."""
        with pytest.raises(ValueError, match="frozen"):
            load().server.port = 1

    def test_settings_do_not_read_the_environment_by_themselves(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A value read behind `load_settings` would escape its checks."""
        monkeypatch.setenv("DATA_DIR", "/elsewhere")
        monkeypatch.setenv("TOOL_TIMEOUT_S", "1")
        assert Settings().tool_timeout_s == 600

    def test_command_line_wins_over_everything(self) -> None:
        """An option has precedence over variables and files."""
        settings = load_settings(HOME | {"EXAI_SERVER__PORT": "1"}, None, {"EXAI_SERVER__PORT": "2"})
        assert settings.server.port == 2
        assert origin_of(settings, "EXAI_SERVER__PORT") == "command line"


class TestDataDir:
    def test_explicit_directory_is_expanded(self) -> None:
        """A .env file has no shell to expand ~."""
        assert load(EXAI_DATA_DIR="~/exai").data_dir == Path("~/exai").expanduser()

    def test_default_follows_the_platform(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """XDG base directories on Linux, Application Support on macOS, LOCALAPPDATA on Windows."""
        monkeypatch.setattr("sys.platform", "linux")
        assert load().data_dir == Path("/home/ada/.local/share/exai")
        assert load(XDG_DATA_HOME="/data").data_dir == Path("/data/exai")
        assert load(XDG_DATA_HOME="relative").data_dir == Path("/home/ada/.local/share/exai")
        monkeypatch.setattr("sys.platform", "darwin")
        assert load().data_dir == Path("/home/ada/Library/Application Support/exai")
        monkeypatch.setattr("sys.platform", "win32")
        assert load(LOCALAPPDATA="/local").data_dir == Path("/local/exai")


class TestEnvFile:
    def test_file_is_read_and_environment_wins(self, tmp_path: Path) -> None:
        """The rule of the settings: the environment wins over the file."""
        file = tmp_path / ".env"
        file.write_text("# comment\nexport EXAI_SERVER__PORT=9000\nKIMI_API_KEY='quoted'\nOTHER=ignored\n")
        settings = load_settings(HOME | {"KIMI_API_KEY": "from-environment"}, file)
        assert settings.env_file == file
        assert settings.server.port == 9000
        assert settings.providers.kimi.api_key is not None
        assert settings.providers.kimi.api_key.get_secret_value() == "from-environment"
        assert origin_of(settings, "EXAI_SERVER__PORT") == str(file)

    def test_empty_variable_does_not_hide_the_files_value(self, tmp_path: Path) -> None:
        """Empty counts as unset everywhere."""
        file = tmp_path / ".env"
        file.write_text("EXAI_SERVER__PORT=9000")
        assert load_settings(HOME | {"EXAI_SERVER__PORT": ""}, file).server.port == 9000

    def test_values_are_taken_literally(self, tmp_path: Path) -> None:
        """A password may hold `${`."""
        file = tmp_path / ".env"
        file.write_text("DATABASE_URL=postgresql://u:a${HOME}b@h/d\n")
        url = load_settings(HOME, file).database.url
        assert url is not None
        assert url.get_secret_value() == "postgresql://u:a${HOME}b@h/d"

    def test_missing_file_is_no_error(self, tmp_path: Path) -> None:
        """A .env file is optional."""
        assert load_settings(HOME, tmp_path / ".env").env_file is None

    def test_unknown_name_in_the_file_is_refused(self, tmp_path: Path) -> None:
        """Style: unknown EXAI_ variables are errors in every source."""
        file = tmp_path / ".env"
        file.write_text("EXAI_SERVER__PROT=9000")
        with pytest.raises(ConfigError, match=r"EXAI_SERVER__PROT: is not a known setting. .* EXAI_SERVER__PORT"):
            load_settings(HOME, file)

    def test_line_that_is_not_an_assignment_is_refused_by_number(self, tmp_path: Path) -> None:
        """A line that is skipped in silence is a setting that has no effect."""
        file = tmp_path / ".env"
        file.write_text("A=1\n\n\nEXAI_SERVER__PORT: 9000\n")
        with pytest.raises(ConfigError, match=r"\.env, line 4: is not of the form NAME=value"):
            load_settings(HOME, file)

    def test_file_that_is_not_text_is_refused(self, tmp_path: Path) -> None:
        """The cause is named, not a decoding traceback."""
        file = tmp_path / ".env"
        file.write_bytes(b"A=\xff\xfe")
        with pytest.raises(ConfigError, match="is not UTF-8 text"):
            load_settings(HOME, file)

    def test_directory_in_its_place_is_refused(self, tmp_path: Path) -> None:
        """Docker creates a directory for a bind mount that is missing."""
        (tmp_path / ".env").mkdir()
        with pytest.raises(ConfigError, match="cannot be read"):
            load_settings(HOME, tmp_path / ".env")

    def test_huge_file_is_refused(self, tmp_path: Path) -> None:
        """Every read has a limit."""
        (tmp_path / ".env").write_bytes(b"#" * 1_048_577)
        with pytest.raises(ConfigError, match="is larger than"):
            load_settings(HOME, tmp_path / ".env")


REFUSALS = [
    ({"EXAI_DATABSE__URL": "x"}, "EXAI_DATABSE__URL", "is not a known setting", "EXAI_DATABASE__URL"),
    ({"EXAI_PORT": "9000"}, "EXAI_PORT", "is not a known setting", "EXAI_SERVER__PORT"),
    ({"exai_server__port": "9000"}, "exai_server__port", "is not a known setting", "EXAI_SERVER__PORT"),
    ({"EXAI_SERVER__PORT": "http"}, "EXAI_SERVER__PORT", "is not a whole number", "default 8079"),
    ({"EXAI_WS_PORT": "70000"}, "EXAI_WS_PORT", "is too large", "65535 or less"),
    # Less would leave no room for a part of a longer answer.
    ({"EXAI_SERVER__REPLY_MAX_BYTES": "8191"}, "EXAI_SERVER__REPLY_MAX_BYTES", "is too small", "8192 or more"),
    ({"EXAI_DATABASE__POOL_SIZE": "0"}, "EXAI_DATABASE__POOL_SIZE", "is too small", "1 or more"),
    ({"CONVERSATION_TIMEOUT_HOURS": "0"}, "CONVERSATION_TIMEOUT_HOURS", "is too small", "above 0"),
    ({"WORKFLOW_TOOL_TIMEOUT_SECS": "soon"}, "WORKFLOW_TOOL_TIMEOUT_SECS", "is not a number", "default 600"),
    ({"EXAI_CACHE__MAX_STALENESS_S": "inf"}, "EXAI_CACHE__MAX_STALENESS_S", "is not a finite number", "default 2"),
    (
        {"EXAI_CACHE__RECONCILE_INTERVAL_S": "2"},
        "EXAI_CACHE__RECONCILE_INTERVAL_S",
        "is not below EXAI_CACHE__MAX_STALENESS_S",
        "quarter of EXAI_CACHE__MAX_STALENESS_S",
    ),
    ({"LOG_LEVEL": "loud"}, "LOG_LEVEL", "is none of the known values", "'debug', 'info', 'warning' or 'error'"),
    ({"DATABASE_URL": "https://abc.supabase.co"}, "DATABASE_URL", "is a web address", "Connect"),
    ({"SUPABASE_DB_URL": "mysql://h/d"}, "SUPABASE_DB_URL", "has the scheme mysql://", "postgresql://"),
    ({"EXAI_DATABASE__URL": "localhost"}, "EXAI_DATABASE__URL", "has no scheme", "postgresql://"),
    (
        {"EXAI_PROVIDERS__ENDPOINTS__VLLM__BASE_URL": "h:8000"},
        "EXAI_PROVIDERS__ENDPOINTS__VLLM__BASE_URL",
        "has no scheme",
        "https://host/v1",
    ),
    (
        {"EXAI_PROVIDERS__ENDPOINTS__VLLM__API_KEY": "k"},
        "EXAI_PROVIDERS__ENDPOINTS",
        "vllm.base_url is missing",
        "Add it",
    ),
    (
        {"EXAI_PROVIDERS__ENDPOINTS__VLLM__URL": "http://h"},
        "EXAI_PROVIDERS__ENDPOINTS__VLLM__URL",
        "is not a known setting",
        "EXAI_PROVIDERS__ENDPOINTS",
    ),
    (
        {"EXAI_PROVIDERS__ENDPOINTS": '{"vllm": 1}', "EXAI_PROVIDERS__ENDPOINTS__VLLM__API_KEY": "k"},
        "EXAI_PROVIDERS__ENDPOINTS",
        "vllm is not a JSON object",
        "base_url",
    ),
    ({"DATABASE_URL": "postgres://u:[YOUR-PASSWORD]@h/d"}, "DATABASE_URL", "placeholder", "percent-encoded"),
    ({"DATABASE_URL": "postgres://u:p#w@h/d"}, "DATABASE_URL", "cannot be read as an address", "# is %23"),
    ({"DATABASE_URL": "postgres://u:1/2@h/d"}, "DATABASE_URL", "cannot be read as an address", "/ is %2F"),
    ({"DATABASE_URL": "postgres://u:p@[h/d"}, "DATABASE_URL", "cannot be read as an address", "Percent-encode"),
    ({"EXAI_DATABASE__MIGRATION_URL": "postgres://h/d"}, "EXAI_DATABASE__MIGRATION_URL", "the database itself", "too"),
    ({"REDIS_URL": "http://h"}, "REDIS_URL", "known are redis://, rediss://, unix://", "`off`"),
    (
        {"EXAI_PROVIDERS__KIMI__BASE_URL": "api.moonshot.ai"},
        "EXAI_PROVIDERS__KIMI__BASE_URL",
        "has no scheme",
        "https:",
    ),
    ({"EXAI_PROVIDERS__GLM__BASE_URL": "https:///v1"}, "EXAI_PROVIDERS__GLM__BASE_URL", "has no host", "https://host"),
    ({"EXAI_PROVIDERS__GLM__BASE_URL": "https://u:p@h/v1"}, "EXAI_PROVIDERS__GLM__BASE_URL", "password", "api_key"),
    ({"EXAI_PROVIDERS__GLM__BASE_URL": "https://h/v1?k=1"}, "EXAI_PROVIDERS__GLM__BASE_URL", "query", "base address"),
    ({"MOONSHOT_API_KEY": "two words"}, "MOONSHOT_API_KEY", "cannot be sent in a header", "Copy it again"),
    ({"EXAI_SERVER__TOKEN": "short"}, "EXAI_SERVER__TOKEN", "is shorter than 16 characters", "token_urlsafe"),
    ({"EXAI_SERVER__HOST": "0.0.0.0"}, "EXAI_SERVER__HOST", "no authentication is configured", "EXAI_SERVER__TOKEN"),
    ({"EXAI_WS_HOST": "exai.example"}, "EXAI_WS_HOST", "no authentication is configured", "EXAI_SERVER__TOKEN"),
    ({"EXAI_SERVER__TOKENS": '{"a": "short"}'}, "EXAI_SERVER__TOKENS", "a is shorter than 16", "token_urlsafe"),
    ({"EXAI_SERVER__TOKENS": f'{{" a": "{TOKEN}"}}'}, "EXAI_SERVER__TOKENS", "cannot be an owner's name", "printable"),
    ({"EXAI_SERVER__TOKENS": "{a"}, "EXAI_SERVER__TOKENS", "is not JSON (line", '{"alice": "'),
    ({"EXAI_SERVER__TOKENS": "[1]"}, "EXAI_SERVER__TOKENS", "is not a JSON object", '{"alice": "'),
    (
        {"EXAI_SERVER__TOKENS": f'{{"a": "{TOKEN}", "b": "{TOKEN}"}}'},
        "EXAI_SERVER__TOKENS",
        "b has the same token as a",
        "one of its own",
    ),
    (
        {"EXAI_SERVER__TOKENS": f'{{"a": "{TOKEN}"}}', "EXAI_SERVER__TOKEN": TOKEN},
        "EXAI_SERVER__TOKENS",
        "a has the same token as EXAI_SERVER__TOKEN",
        "one of its own",
    ),
    ({"EXAI_SERVER__JWT__SECRET": "s" * 31, **ISSUED}, "EXAI_SERVER__JWT__SECRET", "shorter than 32", "whole"),
    ({"EXAI_SERVER__JWT__SECRET": f"eyJ{'a' * 30}.b.c", **ISSUED}, "EXAI_SERVER__JWT__SECRET", "itself a", "JWT Keys"),
    ({"EXAI_SERVER__JWT__SECRET": SECRET}, "EXAI_SERVER__JWT__ISSUER", "is missing", "/auth/v1"),
    (
        {"EXAI_SERVER__JWT__SECRET": SECRET, **ISSUED, "EXAI_SERVER__JWT__PUBLISHABLE_KEY": "sb_secret_x"},
        "EXAI_SERVER__JWT__PUBLISHABLE_KEY",
        "secret key",
        "publishable",
    ),
    (
        {"EXAI_SERVER__JWT__PUBLISHABLE_KEY": "sb_publishable_x"},
        "EXAI_SERVER__JWT__PUBLISHABLE_KEY",
        "needs an issuer",
        "/auth/v1",
    ),
    (ISSUED, "EXAI_SERVER__JWT__ISSUER", "nothing to verify its tokens with", "JWKS_URL"),
    (
        {"EXAI_SERVER__JWT__SECRET": SECRET, "EXAI_SERVER__JWT__JWKS_URL": KEYS_URL, **ISSUED},
        "EXAI_SERVER__JWT__SECRET and EXAI_SERVER__JWT__JWKS_URL",
        "are both set",
        "Keep JWKS_URL",
    ),
    (
        {"EXAI_SERVER__JWT__JWKS_URL": "http://h/jwks.json", **ISSUED},
        "EXAI_SERVER__JWT__JWKS_URL",
        "is not https",
        "https://",
    ),
    ({"EXAI_SERVER__JWT__JWKS_URL": "file:///k", **ISSUED}, "EXAI_SERVER__JWT__JWKS_URL", "scheme file", "https://"),
    ({"EXAI_SERVER__HOST": "localhost:80"}, "EXAI_SERVER__HOST", "is not a host name", "without scheme or port"),
    ({"EXAI_URL": "http://127.0.0.1:8079/"}, "EXAI_URL", "is a web address", "ws://127.0.0.1:8079/"),
    ({"EXAI_URL": "localhost:8079"}, "EXAI_URL", "has no scheme", "ws://"),
    ({"EXAI_SERVER__ALLOWED_HOSTS": "[1]"}, "EXAI_SERVER__ALLOWED_HOSTS", "is not text", "quotes"),
    ({"EXAI_SERVER__ALLOWED_HOSTS": "[a"}, "EXAI_SERVER__ALLOWED_HOSTS", "is not JSON (line 1, column 2)", '"one"'),
    ({"EXAI_PROVIDERS__ENDPOINTS": "{a"}, "EXAI_PROVIDERS__ENDPOINTS", "is not JSON (line 1, column 2)", "base_url"),
    ({"EXAI_PROVIDERS__ENDPOINTS": "[1]"}, "EXAI_PROVIDERS__ENDPOINTS", "is not a JSON object", '{"name": {"base_url"'),
    ({"EXAI_PROVIDERS__ENDPOINTS": '{"a": 1}'}, "EXAI_PROVIDERS__ENDPOINTS", "a is not a JSON object", '{"base_url"'),
    ({"EXAI_PROVIDERS__ENDPOINTS": '{"a": {}}'}, "EXAI_PROVIDERS__ENDPOINTS", "a.base_url is missing", "Add it"),
    (
        {"EXAI_PROVIDERS__ENDPOINTS": '{"a": {"base_url": "http://h", "modles": []}}'},
        "EXAI_PROVIDERS__ENDPOINTS",
        "a.modles is not a known field",
        "base_url, api_key, models",
    ),
    (
        {"EXAI_PROVIDERS__ENDPOINTS": '{"a": {"base_url": "http://h", "models": "x"}}'},
        "EXAI_PROVIDERS__ENDPOINTS",
        "a.models is not a list",
        '["one", "two"]',
    ),
    (
        {"EXAI_PROVIDERS__ENDPOINTS": '{"kimi": {"base_url": "http://h"}}'},
        "EXAI_PROVIDERS__ENDPOINTS",
        "kimi is the name of a provider that EXAI describes",
        "EXAI_PROVIDERS__KIMI__API_KEY",
    ),
    (
        {"KIMI_API_KEY": "a", "MOONSHOT_API_KEY": "b"},
        "KIMI_API_KEY and MOONSHOT_API_KEY",
        "hold different values",
        "EXAI_PROVIDERS__KIMI__API_KEY",
    ),
]


class TestRefusals:
    @pytest.mark.parametrize(("environ", "setting", "problem", "cure"), REFUSALS)
    def test_refusal_names_the_variable_as_written_its_problem_and_the_cure(
        self, environ: dict[str, str], setting: str, problem: str, cure: str
    ) -> None:
        """Each line is one documented message."""
        error = refusal(**environ)
        assert error.setting == setting
        assert problem in error.problem
        assert cure in error.cure
        assert error.also == ()

    def test_several_problems_are_reported_together(self) -> None:
        """Curing one setting per start is no way to treat a person."""
        lines = str(refusal(EXAI_WS_PORT="x", EXAI_FOO="1", KIMI_API_KEY="a b", LOG_LEVEL="loud")).splitlines()
        assert [line.split(":")[0] for line in lines] == ["EXAI_FOO", "EXAI_WS_PORT", "KIMI_API_KEY", "LOG_LEVEL"]

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "[::1]", "localhost"])
    def test_loopback_needs_no_token(self, host: str) -> None:
        """Single user on one machine is the default."""
        assert load(EXAI_SERVER__HOST=host).server.host == host.strip("[]")

    @pytest.mark.parametrize(
        "guard",
        [
            {"EXAI_SERVER__TOKEN": TOKEN},
            {"EXAI_SERVER__TOKENS": f'{{"alice": "{TOKEN}"}}'},
            {"EXAI_SERVER__JWT__SECRET": SECRET, **ISSUED},
            {"EXAI_SERVER__JWT__JWKS_URL": KEYS_URL, **ISSUED},
        ],
    )
    def test_other_machines_are_served_with_any_authentication(self, guard: dict[str, str]) -> None:
        """Facts on security: refuse a non-loopback address without authentication."""
        assert load(EXAI_SERVER__HOST="0.0.0.0", **guard).server.host == "0.0.0.0"

    @pytest.mark.parametrize(
        "url",
        [
            "postgresql://u:p%40w@h:5432/d?sslmode=require",
            "postgres://h1:5432,h2:5433/d",
            "postgresql:///exai?host=/run/user/1000/exai",
            "postgresql://u@[::1]:5432/d",
            "POSTGRES://h/d",
            "postgresql+asyncpg://h/d",
        ],
    )
    def test_addresses_a_client_can_use_are_accepted(self, url: str) -> None:
        """Every form libpq documents."""
        assert load(DATABASE_URL=url).database.url is not None


class TestSecrets:
    SECRETS = {
        "DATABASE_URL": f"postgresql://u:{PASSWORD}@h/d?sslpassword={PASSWORD}",
        "EXAI_DATABASE__MIGRATION_URL": f"postgresql://u:{PASSWORD}@h/d",
        "REDIS_URL": f"rediss://:{PASSWORD}@h:6379/0",
        "KIMI_API_KEY": KEY,
        "ZAI_API_KEY": KEY,
        "EXAI_SERVER__TOKEN": KEY,
        "EXAI_SERVER__TOKENS": f'{{"alice": "{KEY}-of-alice"}}',
        "EXAI_SERVER__JWT__SECRET": f"{KEY}{KEY}{KEY}",
        "EXAI_SERVER__JWT__ISSUER": "https://ref.supabase.co/auth/v1",
        "EXAI_TOKEN": KEY,
        "EXAI_PROVIDERS__ENDPOINTS": f'{{"a": {{"base_url": "http://h/v1", "api_key": "{KEY}"}}}}',
    }

    def test_no_rendering_of_the_settings_holds_a_secret(self) -> None:
        """Facts on security: keys and DSN passwords are never shown."""
        settings = load(**self.SECRETS)
        for text in (repr(settings), str(settings), repr(describe(settings)), repr(settings._reading)):
            assert PASSWORD not in text
            assert KEY not in text
        shown = {line.variable: line.value for line in describe(settings)}
        assert shown["EXAI_DATABASE__URL"] == "postgresql://u:***@h/d?sslpassword=***"
        assert shown["EXAI_CACHE__URL"] == "rediss://:***@h:6379/0"
        assert shown["EXAI_PROVIDERS__KIMI__API_KEY"] == "***"

    @pytest.mark.parametrize("scheme", ["mysql", "http", "postgres+x", "", "postgres"])
    def test_no_refusal_holds_the_password(self, scheme: str) -> None:
        """The parser's own messages quote the value."""
        error = refusal(DATABASE_URL=f"{scheme}://u:{PASSWORD}#/{PASSWORD}@h:port/d", KIMI_API_KEY=f"{KEY} {KEY}")
        assert PASSWORD not in f"{error!s}{error!r}"
        assert KEY not in f"{error!s}{error!r}"
        assert error.__cause__ is None


class TestDescription:
    LISTS_AND_MAPS = {
        "EXAI_RETENTION__OWNERS": '{"anna": 30.0, "bert": 0.0}',
        "EXAI_SERVER__TOKENS": f'{{"alice": "{TOKEN}"}}',
        "EXAI_SERVER__ALLOWED_HOSTS": "a.example,b.example",
        "EXAI_SERVER__ALLOWED_ORIGINS": "https://a.example,https://b.example",
        "EXAI_SERVER__CALL_DEADLINES": '{"codex": 120.0, "*": 30.5}',
        "EXAI_PROVIDERS__ENDPOINTS": '{"a": {"base_url": "http://h/v1", "models": ["m"]}}',
        "EXAI_PROVIDERS__FALLBACK": "kimi-k3,glm-5.3",
        "EXAI_PROVIDERS__PANEL": "kimi-k3,glm-5.3",
        "EXAI_FILES__ROOTS": "/srv/a,/srv/b c",
        "EXAI_SERVER__JWT__SIGN_IN_WITH": "github,google",
    }

    def test_every_list_and_map_is_shown_as_it_is_written(self) -> None:
        """`exai config` and `exai doctor` show each of them, for every kind of items."""
        kinds = {each.name for each in variables() if typing.get_origin(each.field.annotation) in (tuple, dict)}
        assert kinds == set(self.LISTS_AND_MAPS)
        shown = {line.variable: line.value for line in describe(load(**self.LISTS_AND_MAPS))}
        for name, written in self.LISTS_AND_MAPS.items():
            assert shown[name] == written.replace(TOKEN, "***"), name


class TestEmbeddedServers:
    @pytest.mark.parametrize(
        ("environ", "servers"),
        [
            ({}, (True, True)),
            ({"EXAI_CACHE__URL": "off"}, (True, False)),
            ({"EXAI_CACHE__URL": "redis://h"}, (True, False)),
            ({"EXAI_CACHE__URL": "Embedded"}, (True, True)),
            ({"DATABASE_URL": "postgresql://h/d"}, (False, False)),
            ({"DATABASE_URL": "postgresql://h/d", "EXAI_CACHE__URL": "embedded"}, (False, True)),
        ],
    )
    def test_own_servers_are_those_without_an_address(
        self, environ: dict[str, str], servers: tuple[bool, bool]
    ) -> None:
        """Beside a given database no cache is started unasked."""
        assert load(**environ).embedded_servers == servers

    def test_cache_beside_a_given_database_is_that_databases_own(self) -> None:
        """The entries of two databases have the same keys."""
        cache = {"EXAI_CACHE__URL": "embedded", "EXAI_DATA_DIR": "/data"}
        one = load(DATABASE_URL="postgresql://u:a@h/d", **cache).embedded_dir
        assert one.parent == Path("/data")
        assert load(DATABASE_URL="postgresql://u:b@h/d", **cache).embedded_dir == one
        assert load(DATABASE_URL="postgresql://u:a@h/other", **cache).embedded_dir != one
        assert load(**cache).embedded_dir == Path("/data")


class TestExample:
    def test_example_lists_every_variable_with_its_default_and_an_explanation(self) -> None:
        """.env.example is the reference; it is exact or it is worse than nothing."""
        lines = EXAMPLE.read_text().splitlines()
        listed = {}
        for above, line in itertools.pairwise(lines):
            if match := re.fullmatch(r"# ([A-Z][A-Z0-9_]*)=(.*)", line):
                assert match[1] not in listed
                assert re.fullmatch(r"# (?!EXAI_\w+=)\S.{10,}", above), f"{match[1]} has no explanation"
                for older in OLDER_NAMES.get(match[1], ()):
                    assert older in above, f"the explanation of {match[1]} leaves out {older}"
                listed[match[1]] = match[2]
        defaults = {each.name: "" if each.field.default_factory else show(each.field.default) for each in variables()}
        assert listed == defaults

    def test_example_with_every_line_active_is_the_default_configuration(self, tmp_path: Path) -> None:
        """Copying the whole file and removing every # must change nothing."""
        file = tmp_path / ".env"
        file.write_text(re.sub(r"(?m)^# (EXAI_\w+=)", r"\1", EXAMPLE.read_text()))
        assert load_settings(HOME, file).model_dump() == load().model_dump()
