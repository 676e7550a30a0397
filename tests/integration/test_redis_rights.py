"""docker/users.acl on a real server: EXAI has every command that it sends, and nothing else."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from exai.cache.redis import scripts
from tests.support.client import call, connect
from tests.support.commands import run_exai_as_text
from tests.support.daemon import start_daemon
from tests.support.programs import ROOT
from tests.support.provider_process import provider_process
from tests.support.valkey import Valkey

LUA = Path(scripts.__file__).with_name("lua")


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The users and passwords that docker/secrets.sh makes."""
    directory = tmp_path_factory.mktemp("secrets")
    variables = {"PATH": os.environ["PATH"], "SECRETS_DIR": str(directory)}
    subprocess.run(["sh", ROOT / "docker" / "secrets.sh"], check=True, env=variables)
    return directory


@pytest.fixture(scope="module")
def server(secrets: Path) -> Iterator[Valkey]:
    with Valkey(aclfile=str(secrets / "valkey_users")) as running:
        yield running


def client(server: Valkey, secrets: Path, user: str, file: str) -> redis.Redis:
    return redis.Redis(port=server.port, username=user, password=(secrets / file).read_text().strip(), protocol=2)


def granted() -> set[str]:
    line = next(
        line for line in (ROOT / "docker" / "users.acl").read_text().splitlines() if line.startswith("user exai ")
    )
    return set(re.findall(r"\+(\S+)", line))


def test_every_command_of_the_scripts_is_granted() -> None:
    """Those that a test does not reach, too."""
    used = {
        name.lower() for path in LUA.glob("*.lua") for name in re.findall(r"redis\.p?call\('(\w+)'", path.read_text())
    }
    assert used
    assert used <= granted()
    assert granted() <= used | {"select", "ping", "time", "info", "role", "eval", "evalsha", "del"}


async def test_daemon_needs_no_other_right(server: Valkey, secrets: Path, postgres_url: str, tmp_path: Path) -> None:
    """Chats, cached reads, kept answers, reconciliation and the examination; the server lists what it refused."""
    password = (secrets / "valkey_password").read_text().strip()
    with provider_process() as provider:
        settings = {
            "EXAI_DATA_DIR": str(tmp_path),
            "EXAI_DATABASE__URL": postgres_url,
            "EXAI_CACHE__URL": f"redis://exai:{password}@127.0.0.1:{server.port}/0",
            "KIMI_API_KEY": "sk-test",
            "EXAI_PROVIDERS__KIMI__BASE_URL": provider.base_url,
        }
        with start_daemon(settings) as daemon:
            async with connect(daemon.url) as session:
                answer = await call(session, "chat", prompt="one", cache="use")
                await call(session, "chat", prompt="one", cache="use")
                for _ in range(2):
                    await call(session, "conversation_get", continuation_id=answer["continuation_id"])
                await call(session, "conversation_delete", continuation_id=answer["continuation_id"])
            doctor = await asyncio.to_thread(run_exai_as_text, "doctor", settings=settings, cwd=tmp_path)
    assert " fail " not in doctor.stdout
    with client(server, secrets, "admin", "valkey_admin_password") as admin:
        refused = [entry for entry in admin.acl_log() if entry["object"] not in ("config|get", "client|setinfo")]
        assert refused == []
        assert int(admin.info("commandstats")["cmdstat_evalsha"]["calls"]) > 4


@pytest.mark.parametrize(
    "command",
    ["FLUSHALL", "KEYS *", "SCAN 0", "CONFIG GET *", "SHUTDOWN", "DEBUG JMAP", "ACL LIST", "MONITOR", "CLIENT LIST",
     "SUBSCRIBE x", "SAVE", "REPLICAOF a 1", "SCRIPT FLUSH", "FUNCTION LIST", "MODULE LIST", "GET other", "DEL other",
     "SET exai:a 1 EX 5 GETX", "MIGRATE h 1 k 0 5", "XADD exai:a * f v", "PUBLISH x y"],
)  # fmt: skip
def test_nothing_else_is_allowed(server: Valkey, secrets: Path, command: str) -> None:
    """Neither other commands nor other programs' keys."""
    with client(server, secrets, "exai", "valkey_password") as session, pytest.raises(redis.RedisError):
        session.execute_command(*command.split())


def test_without_a_password_there_is_only_ping(server: Valkey) -> None:
    """The health check of the container sends nothing else."""
    assert server.do("PING") in (True, b"PONG")
    for command in (("GET", "exai:a"), ("INFO",), ("EVAL", "return 1", "0"), ("ACL", "WHOAMI"), ("TIME",)):
        with pytest.raises(redis.RedisError):
            server.do(*command)
