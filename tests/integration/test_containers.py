"""The container files, as far as they can be checked without a Docker engine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
import yaml

from exai.embedded.valkey import MAX_MEMORY, ValkeyBinary, find_valkey, valkey_url
from exai.settings.load import load_settings
from tests.support.programs import ROOT
from tests.support.waiting import wait_until

DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
REDIS_CONF = ROOT / "docker" / "redis.conf"
STOP_LIMIT_S = 10
EXPECTED = {
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "900 1 300 10 60 10000",
    "maxmemory": str(256 * 1_048_576),
    "maxmemory-policy": "volatile-lru",
    "latency-monitor-threshold": "100",
    "slowlog-log-slower-than": "10000",
    "slowlog-max-len": "256",
}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """compose.yaml as data."""
    return yaml.safe_load((ROOT / "compose.yaml").read_text())


@pytest.fixture
def configured_valkey(tmp_path: Path) -> Iterator[str]:
    """A real server that runs docker/redis.conf as it is; only its place is another."""
    binary = find_valkey()
    assert isinstance(binary, ValkeyBinary), binary
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [binary.path, REDIS_CONF, "--dir", tmp_path, "--port", "0", "--unixsocket", tmp_path / "valkey.sock"],
            stdout=log,
            stderr=log,
            cwd=tmp_path,
        )
    try:
        yield str(tmp_path)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_LIMIT_S) == 0


async def test_real_server_accepts_the_configuration(configured_valkey: str) -> None:
    """Comments behind values and unknown names show only when a server reads the file."""
    socket_dir = Path(configured_valkey)
    await wait_until((socket_dir / "valkey.sock").exists)
    async with redis.asyncio.from_url(valkey_url(socket_dir)) as client:
        said = await client.config_get(*EXPECTED)
    assert MAX_MEMORY == "256mb"
    assert said == EXPECTED


def test_comments_have_lines_of_their_own() -> None:
    """The server takes a comment behind a value for a part of the value."""
    settings = [line for line in REDIS_CONF.read_text().splitlines() if line and not line.startswith("#")]
    assert settings
    assert not [line for line in settings if "#" in line]


def test_only_three_ports_are_published_and_only_to_this_machine(compose: dict[str, Any]) -> None:
    """Neither store is published; Caddy is what the network reaches, where it is chosen."""
    published = {
        name: [port for port in service["ports"] if not port.startswith("127.0.0.1:")]
        for name, service in compose["services"].items()
        if "ports" in service
    }
    assert published == {"exai": [], "grafana": [], "commander": [], "caddy": compose["services"]["caddy"]["ports"]}
    assert compose["networks"]["inside"] == {"internal": True}
    for name in ("postgres", "valkey", "pgbouncer", "prometheus"):
        assert compose["services"][name]["networks"] == ["inside"], name


def test_services_wait_for_what_they_need_and_get_time_to_stop(compose: dict[str, Any]) -> None:
    """Migrations run once, on a database that answers, and before the daemon, which does not wait for its cache."""
    services = compose["services"]
    assert services["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy", "required": False}}
    assert services["exai"]["depends_on"] == {"migrate": {"condition": "service_completed_successfully"}}
    assert services["exai"]["environment"]["EXAI_CACHE__REQUIRED"] == "false"
    for name in ("postgres", "valkey"):
        assert services[name]["healthcheck"]["test"][0] == "CMD"
    for name in ("exai", "postgres", "valkey"):
        assert services[name]["stop_grace_period"] == "30s"


def test_every_container_is_bounded_and_has_few_privileges(compose: dict[str, Any]) -> None:
    """One that is flooded or broken into must not take the host along."""
    allowed = {"CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID", "NET_BIND_SERVICE"}
    for name, service in compose["services"].items():
        assert service["mem_limit"], name
        assert 0 < service["pids_limit"] <= 200, name
        assert service["cap_drop"] == ["ALL"], name
        assert set(service.get("cap_add", ())) <= allowed, name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert service["logging"]["options"] == {"max-size": "10m", "max-file": "3"}, name


def test_profiles_choose_the_database_and_add_what_is_named(compose: dict[str, Any]) -> None:
    """No container of Postgres beside a Supabase project."""
    by_profile: dict[str, set[str]] = {}
    for name, service in compose["services"].items():
        for profile in service["profiles"]:
            by_profile.setdefault(profile, set()).add(name)
    assert by_profile == {
        "local": {"exai", "migrate", "postgres", "valkey"},
        "supabase": {"exai", "migrate", "valkey"},
        "pooler": {"pgbouncer"},
        "caddy": {"caddy"},
        "monitoring": {"prometheus", "grafana"},
        "commander": {"commander"},
    }


def test_data_of_postgres_is_below_the_mount(compose: dict[str, Any]) -> None:
    """From 18 on the image refuses a volume at `data`, and before it puts an unnamed volume there."""
    postgres = compose["services"]["postgres"]
    assert postgres["image"].startswith("postgres:18-")
    assert "postgres:/var/lib/postgresql" in postgres["volumes"]
    assert postgres["environment"]["PGDATA"] == "/var/lib/postgresql/18/docker"


def test_neither_store_is_open_on_the_containers_network(compose: dict[str, Any]) -> None:
    """Valkey asks for a password, and EXAI's role in Postgres is not the superuser that the image makes."""
    services = compose["services"]
    assert services["valkey"]["command"][-2:] == ["--aclfile", "/run/secrets/valkey_users"]
    postgres = services["postgres"]
    assert "POSTGRES_USER" not in postgres["environment"]
    script = (ROOT / "docker" / "postgres-role.sh").read_text()
    assert "./docker/postgres-role.sh:/docker-entrypoint-initdb.d/role.sh:ro" in postgres["volumes"]
    assert "create role exai login password" in script
    assert "superuser" not in re.sub(r"^#.*$", "", script, flags=re.MULTILINE)


def test_no_secret_stands_in_a_container_file(compose: dict[str, Any]) -> None:
    """Each is a file outside the repository, which its container reads."""
    for name, service in compose["services"].items():
        for variable, value in service.get("environment", {}).items():
            if re.search("KEY|TOKEN|PASSWORD|URL", variable):
                assert value.startswith("/run/secrets/"), (name, variable)
    assert all(each["file"].startswith("${SECRETS_DIR:-./secrets}/") for each in compose["secrets"].values())
    assert "/secrets/" in (ROOT / ".gitignore").read_text().splitlines()
    assert not re.search(r"^(ARG|ENV)\b.*(KEY|TOKEN|PASSWORD|SECRET)", DOCKERFILE, re.MULTILINE)


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What docker/secrets.sh makes."""
    directory = tmp_path_factory.mktemp("made") / "secrets"
    make_secrets(directory)
    return directory


def make_secrets(directory: Path, *arguments: str) -> None:
    """Run the script."""
    variables = {"PATH": os.environ["PATH"], "SECRETS_DIR": str(directory)}
    subprocess.run(["sh", ROOT / "docker" / "secrets.sh", *arguments], check=True, env=variables)


def test_script_makes_every_secret_and_keeps_it(secrets: Path, compose: dict[str, Any]) -> None:
    """Twice is once; another address of the database replaces the first."""
    wanted = {Path(each["file"]).name for each in compose["secrets"].values()} - {
        "${DATABASE_SECRET:-EXAI_DATABASE__URL}"
    }
    made = {path.name: path.read_text() for path in secrets.iterdir()}
    assert wanted <= set(made)
    assert secrets.stat().st_mode & 0o777 == 0o700
    make_secrets(secrets)
    assert {path.name: path.read_text() for path in secrets.iterdir()} == made
    make_secrets(secrets, "postgresql://postgres.ref:secret@pooler.example:6543/postgres")
    changed = {path.name for path in secrets.iterdir() if path.read_text() != made[path.name]}
    assert changed == {"EXAI_DATABASE__URL"}
    settings = load_settings({"HOME": "/h", "EXAI_SECRETS_DIR": str(secrets)}, None)
    assert settings.database.url is not None
    assert "pooler.example:6543" in settings.database.url.get_secret_value()
    assert settings.server.token is not None


def test_image_is_not_root_and_takes_locked_versions_only() -> None:
    """A container that is broken into should be worth little."""
    lines = DOCKERFILE.splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users
    assert not users[-1].startswith(("0", "root"))
    installs = [line for line in lines if re.search(r"\bpip\b.* install ", line)]
    assert installs
    assert all("--require-hashes" in line or "--no-index --no-deps" in line for line in installs)
    assert not [line for line in lines if re.match(r"(COPY|ADD) \. ", line)]


def test_image_starts_the_daemon_itself_and_checks_only_that_it_lives() -> None:
    """A shell in between would swallow the signal to stop; a restart does not mend a database that is down."""
    commands = re.findall(r"^\s*(?:ENTRYPOINT|CMD) +(.*)$", DOCKERFILE, re.MULTILINE)
    assert len(commands) == 3
    assert all(command.startswith("[") for command in commands)
    assert "/health/live" in DOCKERFILE
    assert not re.search(r"/health(?!/live)", DOCKERFILE)


@pytest.mark.parametrize("directory", ["docker", "alembic"])
def test_directory_does_not_shadow_the_installed_package(directory: str) -> None:
    """`import docker` from the top of the checkout means the library."""
    assert not (ROOT / directory / "__init__.py").exists()
