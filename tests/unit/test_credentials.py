"""No key, token or password goes to an address that a project's `.env` chose."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from exai.errors import ConfigError
from exai.settings import environment
from exai.settings.credentials import ACCESS as ACCESS_SETTINGS
from exai.settings.credentials import check_daemon_token
from exai.settings.environment import checkout_env_file, read_environment
from exai.settings.load import load_settings, variables

KEY = "sk-0123456789abcdef"
TOKEN = "0123456789abcdef"
EVIL = "http://evil.example/v1"


@pytest.fixture(autouse=True)
def project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The working directory of an untrusted project; the environment has no setting."""
    for name in list(os.environ):
        if name.startswith(("EXAI_", "PG")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(project: Path, *lines: str) -> Path:
    file = project / ".env"
    file.write_text("\n".join(lines))
    return file


LEAKS = [
    ({"KIMI_API_KEY": KEY}, f"EXAI_PROVIDERS__KIMI__BASE_URL={EVIL}"),
    ({"EXAI_PROVIDERS__GLM__API_KEY": KEY}, f"EXAI_PROVIDERS__GLM__BASE_URL={EVIL}"),
    ({"EXAI_PROVIDERS__ENDPOINTS__MY__API_KEY": KEY}, f"EXAI_PROVIDERS__ENDPOINTS__MY__BASE_URL={EVIL}"),
    ({"EXAI_PROVIDERS__ENDPOINTS__MY__API_KEY": KEY}, f'EXAI_PROVIDERS__ENDPOINTS={{"my":{{"base_url":"{EVIL}"}}}}'),
    (
        {"EXAI_PROVIDERS__ENDPOINTS": f'{{"my":{{"base_url":"http://h/v1","api_key":"{KEY}"}}}}'},
        f"EXAI_PROVIDERS__ENDPOINTS__MY__BASE_URL={EVIL}",
    ),
]


@pytest.mark.parametrize(("environ", "line"), LEAKS)
def test_key_of_the_environment_is_not_for_an_address_of_a_found_file(
    environ: dict[str, str], line: str, project: Path
) -> None:
    """The file is named in the error, and so is the way to say that it is trusted."""
    write(project, line)
    with pytest.raises(ConfigError, match=r"is set in \.env, and would receive .*--env-file") as caught:
        load_settings({"HOME": "/h", **environ})
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(("environ", "line"), LEAKS)
def test_named_file_may_choose_addresses(environ: dict[str, str], line: str, project: Path) -> None:
    """Naming it is the decision of its user; EXAI_ENV_FILE is one way of that."""
    file = write(project, line)
    load_settings({"HOME": "/h", "EXAI_ENV_FILE": str(file), **environ})
    load_settings({"HOME": "/h", **environ}, file)


def test_key_and_address_of_one_file_belong_together(project: Path) -> None:
    """A project may use its own key at its own address."""
    write(project, f"KIMI_API_KEY={KEY}", f"EXAI_PROVIDERS__KIMI__BASE_URL={EVIL}")
    assert load_settings({"HOME": "/h"}).providers.kimi.base_url == EVIL


def test_key_of_a_found_file_may_go_where_the_environment_says(project: Path) -> None:
    """The environment is the user's own."""
    write(project, f"KIMI_API_KEY={KEY}")
    assert load_settings({"HOME": "/h", "EXAI_PROVIDERS__KIMI__BASE_URL": "http://h/v1"}).providers.kimi.api_key


@pytest.mark.parametrize("line", ["EXAI_SERVER__HOST=evil.example", "EXAI_SERVER__PORT=1", "EXAI_WS_PORT=1"])
@pytest.mark.parametrize("secret", ["EXAI_TOKEN", "EXAI_SERVER__TOKEN"])
def test_token_is_not_for_a_daemon_that_a_found_file_names(line: str, secret: str, project: Path) -> None:
    """`exai health` and `exai doctor` ask the daemon of the settings."""
    write(project, line)
    reading = read_environment({secret: TOKEN})
    with pytest.raises(ConfigError, match="would receive"):
        check_daemon_token(reading, secret)


@pytest.mark.parametrize("name", ["DATABASE_URL", "EXAI_DATABASE__MIGRATION_URL"])
def test_password_of_libpq_is_not_for_a_database_of_a_found_file(
    name: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver would send PGPASSWORD to any server that asks."""
    write(project, "DATABASE_URL=postgresql://u@evil.example/d", f"{name}=postgresql://u@evil.example/d")
    monkeypatch.setenv("PGPASSWORD", "secret")
    with pytest.raises(ConfigError, match="would receive PGPASSWORD"):
        load_settings({"HOME": "/h"})
    write(project, "DATABASE_URL=postgresql://u:own@evil.example/d")
    load_settings({"HOME": "/h"})


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://u:@evil.example/d",
        "postgresql://u@evil.example/d?application_name=password=",
        "postgresql://u@evil.example/d?password=",
        "postgresql://u@evil.example/d?sslpassword=own",
        "postgresql://u@evil.example/password=own",
        "postgresql://evil.example:1/d",
    ],
)
def test_address_without_a_password_is_not_taken_for_one_with(
    address: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver's reading of the address decides."""
    write(project, f"DATABASE_URL={address}")
    monkeypatch.setenv("PGPASSWORD", "secret")
    with pytest.raises(ConfigError, match="would receive PGPASSWORD"):
        load_settings({"HOME": "/h"})


@pytest.mark.parametrize(
    "own", ["postgresql://u:own@h/d", "postgresql://u@h/d?password=own", "postgresql://h/d?user=u&password=own"]
)
def test_password_in_the_address_is_seen(own: str, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is borrowed then."""
    write(project, f"DATABASE_URL={own}")
    monkeypatch.setenv("PGPASSWORD", "secret")
    load_settings({"HOME": "/h"})


def test_passwords_of_libpqs_files_are_not_for_a_database_of_a_found_file(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service lends its password to any host; a password file does by an entry for every host."""
    write(project, "DATABASE_URL=postgresql://u@evil.example/d?service=prod")
    with pytest.raises(ConfigError, match="would receive the password of the service prod"):
        load_settings({"HOME": "/h"})
    write(project, "DATABASE_URL=postgresql://u@evil.example/d")
    passwords = project / "passwords"
    monkeypatch.setenv("PGPASSFILE", str(passwords))
    passwords.write_text("db.example:5432:*:u:secret\n")
    load_settings({"HOME": "/h"})
    passwords.write_text("# all\n*:*:*:u:secret\n")
    with pytest.raises(ConfigError, match=r"would receive a password that .*passwords has for every host"):
        load_settings({"HOME": "/h"})


def test_embedded_servers_do_not_run_on_data_that_a_found_file_chose(project: Path) -> None:
    """A cluster of a project could have commands executed; without embedded servers there is none."""
    file = write(project, "EXAI_DATA_DIR=./data")
    for embedded in ({}, {"DATABASE_URL": "postgresql://u:p@h/d", "EXAI_CACHE__URL": "embedded"}):
        with pytest.raises(ConfigError, match=r"EXAI_DATA_DIR: is set in \.env and names data.*--env-file"):
            load_settings({"HOME": "/h", **embedded})
    load_settings({"HOME": "/h", "DATABASE_URL": "postgresql://u:p@h/d"})
    load_settings({"HOME": "/h", "EXAI_ENV_FILE": str(file)})
    assert load_settings({"HOME": "/h", "EXAI_DATA_DIR": "/mine"}).data_dir == Path("/mine")


ISSUER = "https://evil.example/auth"
ACCESS = [
    ({}, "EXAI_FILES__ROOTS=/home", "EXAI_FILES__ROOTS"),
    ({}, f"EXAI_SERVER__ALLOWED_ORIGINS={EVIL}", "EXAI_SERVER__ALLOWED_ORIGINS"),
    ({}, "EXAI_SERVER__ALLOWED_HOSTS=evil.example", "EXAI_SERVER__ALLOWED_HOSTS"),
    ({}, f'EXAI_SERVER__TOKENS={{"alice":"{TOKEN}"}}', "EXAI_SERVER__TOKENS"),
    ({}, f"EXAI_SERVER__METRICS_TOKEN={TOKEN}", "EXAI_SERVER__METRICS_TOKEN"),
    ({}, f"EXAI_SERVER__JWT__SECRET={TOKEN * 2}\nEXAI_SERVER__JWT__ISSUER={ISSUER}", "EXAI_SERVER__JWT__SECRET"),
    ({}, f"EXAI_SERVER__JWT__JWKS_URL={ISSUER}\nEXAI_SERVER__JWT__ISSUER={ISSUER}", "EXAI_SERVER__JWT__JWKS_URL"),
    ({}, f"EXAI_SERVER__HOST=0.0.0.0\nEXAI_SERVER__TOKEN={TOKEN}", "EXAI_SERVER__HOST"),
    ({}, f"EXAI_WS_HOST=::\nEXAI_SERVER__TOKEN={TOKEN}", "EXAI_WS_HOST"),
    ({"EXAI_SERVER__HOST": "0.0.0.0"}, f"EXAI_SERVER__TOKEN={TOKEN}", "EXAI_SERVER__TOKEN"),
    ({"EXAI_SERVER__TOKENS": '{"bob":"bobs-token-0123456"}'}, f"EXAI_SERVER__TOKEN={TOKEN}", "EXAI_SERVER__TOKEN"),
    (
        {"EXAI_SERVER__JWT__SECRET": TOKEN * 2, "EXAI_SERVER__JWT__ISSUER": "https://h/auth"},
        "EXAI_SERVER__JWT__ALLOW_ANONYMOUS=true",
        "EXAI_SERVER__JWT__ALLOW_ANONYMOUS",
    ),
    (
        {"EXAI_SERVER__JWT__SECRET": TOKEN * 2, "EXAI_SERVER__JWT__ISSUER": "https://h/auth"},
        "EXAI_SERVER__JWT__AUDIENCE=other",
        "EXAI_SERVER__JWT__AUDIENCE",
    ),
    (
        {"EXAI_FILES__ROOTS": "/h", "DATABASE_URL": "postgresql://u:p@h/d"},
        "EXAI_DATA_DIR=./data",
        "EXAI_DATA_DIR",
    ),
    ({}, "REDIS_URL=redis://evil.example", "REDIS_URL"),
    ({"DATABASE_URL": "postgresql://u:p@h/d"}, "EXAI_CACHE__URL=redis://:own@evil.example", "EXAI_CACHE__URL"),
]


@pytest.mark.parametrize(("environ", "line", "name"), ACCESS)
def test_found_file_does_not_widen_what_is_read_or_who_connects(
    environ: dict[str, str], line: str, name: str, project: Path
) -> None:
    """The error names the variable, the file and the cure; the named file and the environment may set everything."""
    file = write(project, *line.split("\n"))
    with pytest.raises(ConfigError, match=rf"{name}: is set in \.env and .*--env-file.*in the environment") as caught:
        load_settings({"HOME": "/h", **environ})
    assert TOKEN not in str(caught.value)
    assert "own@" not in str(caught.value)
    load_settings({"HOME": "/h", **environ}, file)
    load_settings({"HOME": "/h", "EXAI_ENV_FILE": str(file), **environ})
    write(project, "")
    load_settings({"HOME": "/h", **environ, **dict(each.split("=", 1) for each in line.split("\n"))})


@pytest.mark.parametrize(
    "lines",
    [
        [f"EXAI_SERVER__TOKEN={TOKEN}", "EXAI_SERVER__HOST=::1"],
        ["DATABASE_URL=postgresql://u:p@h/d", "REDIS_URL=redis://h"],
        ["DATABASE_URL=postgresql://u:p@h/d", "EXAI_DATA_DIR=./data"],
        ["EXAI_CACHE__URL=off"],
    ],
)
def test_found_file_may_narrow_access_and_bring_stores_of_its_own(lines: list[str], project: Path) -> None:
    """A token on a loopback address keeps callers out; a project's own database may have the project's cache."""
    write(project, *lines)
    load_settings({"HOME": "/h"})


def test_every_setting_that_decides_about_access_is_covered() -> None:
    """A new field of the JWT section or of a store, or a new list of allowed values, is trusted only explicitly."""
    names = {each.name for each in variables()}
    endings = ("__ROOTS", "__TOKENS", "__METRICS_TOKEN", "STORE__KEYS")
    parts = ("__JWT__", "ALLOW", "EXAI_FILES__STORE", "EXAI_FILES__SUPABASE__", "EXAI_FILES__S3__", "REQUESTS__ENABLED")
    deciding = {name for name in names if any(part in name for part in parts) or name.endswith(endings)}
    assert deciding == set(ACCESS_SETTINGS)


def test_programs_are_not_taken_from_a_found_file(project: Path) -> None:
    """EXAI_PG_BIN selects the program that is started."""
    write(project, "EXAI_PG_BIN=./bin")
    with pytest.raises(ConfigError, match=r"EXAI_PG_BIN.*programs"):
        load_settings({"HOME": "/h"})


def test_named_file_that_is_missing_is_an_error(project: Path) -> None:
    """A typing mistake must not mean the defaults; an unnamed file is optional."""
    with pytest.raises(ConfigError, match=r"EXAI_ENV_FILE.*nowhere.*does not exist"):
        read_environment({"EXAI_ENV_FILE": str(project / "nowhere")})
    assert read_environment({}).env_file is None


def test_file_cannot_name_another_file(project: Path) -> None:
    """It would be ignored, which is worse than refused."""
    write(project, "EXAI_ENV_FILE=other")
    with pytest.raises(ConfigError, match=r"cannot be set in a \.env file"):
        read_environment({})


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """A directory as a container platform mounts it."""
    directory = tmp_path / "secrets"
    directory.mkdir()
    (directory / "EXAI_SERVER__TOKEN").write_text("a-token-from-a-file\n")
    (directory / "KIMI_API_KEY").write_text("sk-file")
    (directory / "EMPTY_API_KEY").write_text("\n")
    (directory / "valkey_users").write_text("user default on")
    (directory / "..data").mkdir()
    return directory


def test_secrets_are_read_from_files_named_for_variables(secrets: Path, project: Path) -> None:
    """Docker, Kubernetes and systemd provide them so; other files and directories beside them are left."""
    write(project, "KIMI_API_KEY=sk-env-file\nEXAI_LOG__LEVEL=error")
    reading = read_environment({"EXAI_SECRETS_DIR": str(secrets), "EXAI_SERVER__TOKEN": "a-token-of-the-environment"})
    token, key = reading.find("EXAI_SERVER__TOKEN"), reading.find("EXAI_PROVIDERS__KIMI__API_KEY")
    assert token is not None
    assert token.text == "a-token-of-the-environment"
    assert key is not None
    assert (key.text, key.origin, key.is_found) == ("sk-file", str(secrets / "KIMI_API_KEY"), False)
    assert set(reading.values) == {"EXAI_SERVER__TOKEN", "KIMI_API_KEY", "EXAI_LOG__LEVEL", "EXAI_SECRETS_DIR"}
    load_settings({"HOME": "/h", "EXAI_SECRETS_DIR": str(secrets)})


def test_secret_with_an_unknown_name_is_an_error(secrets: Path) -> None:
    """As for a variable: a misspelled one would be ignored."""
    (secrets / "EXAI_SERVER__TOKENN").write_text("x")
    with pytest.raises(ConfigError, match=r"EXAI_SERVER__TOKENN.*EXAI_SERVER__TOKEN"):
        load_settings({"HOME": "/h", "EXAI_SECRETS_DIR": str(secrets)}, None)


@pytest.mark.parametrize(
    ("content", "problem"), [(b"\xff", "UTF-8"), (b"x" * 65_537, "larger"), (None, "cannot be read")]
)
def test_secret_that_cannot_be_used_is_named(secrets: Path, content: bytes | None, problem: str) -> None:
    """Never the default instead, and never the content in the message."""
    path = secrets / "GLM_API_KEY"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"GLM_API_KEY.*{problem}"):
        read_environment({"EXAI_SECRETS_DIR": str(secrets)}, None)


def test_directory_of_secrets_must_exist_and_is_not_chosen_by_a_file(project: Path) -> None:
    """A typing mistake must not mean no secrets, and a project must not choose the credentials."""
    with pytest.raises(ConfigError, match=r"EXAI_SECRETS_DIR.*nowhere"):
        read_environment({"EXAI_SECRETS_DIR": str(project / "nowhere")}, None)
    write(project, "EXAI_SECRETS_DIR=.")
    with pytest.raises(ConfigError, match=r"EXAI_SECRETS_DIR.*cannot be set in a \.env file"):
        read_environment({})


def test_bridge_reads_the_checkouts_file_or_a_named_one(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never that of the working directory, which is an editor's project."""
    found = write(project, "EXAI_URL=ws://evil.example/")
    assert read_environment({}, "checkout").find("EXAI_URL") is None
    assert read_environment({"EXAI_ENV_FILE": str(found)}, "checkout").find("EXAI_URL") is not None
    own = checkout_env_file()
    assert own is not None
    assert own.parent == Path(__file__).parents[2]
    monkeypatch.setattr(
        environment, "__file__", str(project / "site-packages" / "exai" / "settings" / "environment.py")
    )
    assert checkout_env_file() is None, "an installed package has no checkout, in any directory"


def test_checkouts_own_file_is_trusted_in_its_directory(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make run` reads it; its user wrote it."""
    write(project, f"EXAI_PROVIDERS__KIMI__BASE_URL={EVIL}")
    (project / "exai").mkdir()
    for name in ("pyproject.toml", "alembic.ini"):
        (project / name).touch()
    monkeypatch.setattr(environment, "__file__", str(project / "exai" / "settings" / "environment.py"))
    assert load_settings({"HOME": "/h", "KIMI_API_KEY": KEY}).providers.kimi.base_url == EVIL
