"""The container files, as far as they can be checked without a Docker engine."""

from __future__ import annotations

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
from tests.support.programs import ROOT
from tests.support.waiting import wait_until

DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
REDIS_CONF = ROOT / "docker" / "redis.conf"
STOP_LIMIT_S = 10


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
        said = await client.config_get("appendonly", "appendfsync", "save", "maxmemory", "maxmemory-policy")
    assert MAX_MEMORY == "256mb"
    assert said == {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "3600 1 300 100 60 10000",
        "maxmemory": str(256 * 1_048_576),
        "maxmemory-policy": "volatile-lru",
    }


def test_comments_have_lines_of_their_own() -> None:
    """The server takes a comment behind a value for a part of the value."""
    settings = [line for line in REDIS_CONF.read_text().splitlines() if line and not line.startswith("#")]
    assert settings
    assert not [line for line in settings if "#" in line]


def test_only_the_one_port_is_published_and_only_to_this_machine(compose: dict[str, Any]) -> None:
    """Postgres and Valkey are not published."""
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert published == {"exai": ["127.0.0.1:8079:8079"]}
    assert compose["networks"]["inside"] == {"internal": True}
    assert all(compose["services"][name]["networks"] == ["inside"] for name in ("postgres", "valkey"))


def test_services_wait_for_what_they_need_and_get_time_to_stop(compose: dict[str, Any]) -> None:
    """Migrations run once, on a database that answers, and before the daemon."""
    services = compose["services"]
    assert services["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert services["exai"]["depends_on"] == {
        "migrate": {"condition": "service_completed_successfully"},
        "valkey": {"condition": "service_healthy"},
    }
    for name in ("postgres", "valkey"):
        assert services[name]["healthcheck"]["test"][0] == "CMD"
    for name in ("exai", "postgres", "valkey"):
        assert services[name]["stop_grace_period"] == "30s"


def test_every_container_is_bounded_and_has_few_privileges(compose: dict[str, Any]) -> None:
    """One that is flooded or broken into must not take the host along."""
    for name, service in compose["services"].items():
        assert service["mem_limit"], name
        assert 0 < service["pids_limit"] <= 200, name
        assert service["cap_drop"] == ["ALL"], name
        assert set(service.get("cap_add", ())) <= {"CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"}, name
        assert "no-new-privileges:true" in service["security_opt"], name


def test_neither_store_is_open_on_the_containers_network(compose: dict[str, Any]) -> None:
    """Valkey asks for a password, and EXAI's role in Postgres is not the superuser that the image makes."""
    services = compose["services"]
    assert "--requirepass" in services["valkey"]["command"]
    assert services["exai"]["environment"]["EXAI_CACHE__URL"].startswith("redis://:${VALKEY_PASSWORD")
    postgres = services["postgres"]
    assert "POSTGRES_USER" not in postgres["environment"]
    script = (ROOT / "docker" / "postgres-role.sh").read_text()
    assert "./docker/postgres-role.sh:/docker-entrypoint-initdb.d/role.sh:ro" in postgres["volumes"]
    assert "create role exai login password" in script
    assert "superuser" not in re.sub(r"^#.*$", "", script, flags=re.MULTILINE)


def test_no_secret_stands_in_a_container_file(compose: dict[str, Any]) -> None:
    """Each comes from the environment, and there are no defaults."""
    secrets = {
        f"{service}.{name}": value
        for service, described in compose["services"].items()
        for name, value in described.get("environment", {}).items()
        if re.search("KEY|TOKEN|PASSWORD|DATABASE__URL", name)
    }
    assert {name.split(".")[0] for name in secrets} == {"exai", "migrate", "postgres"}
    assert all(re.search(r"\$\{[A-Z_]+:\?[^}]+\}", value) for value in secrets.values())
    assert not re.search(r"^(ARG|ENV)\b.*(KEY|TOKEN|PASSWORD|SECRET)", DOCKERFILE, re.MULTILINE)


def test_image_is_not_root_and_takes_locked_versions_only() -> None:
    """A container that is broken into should be worth little."""
    lines = DOCKERFILE.splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users
    assert not users[-1].startswith(("0", "root"))
    installs = [line for line in lines if "pip install" in line]
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
