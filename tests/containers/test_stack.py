"""compose.yaml on a real engine: a conversation survives what happens to containers."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect as open_socket

from tests.containers.conftest import PROFILES, PROJECT, ROOT, Stack
from tests.support.client import call, connect
from tests.support.mcp_server import handshake, request

pytestmark = pytest.mark.heavy

LIMIT_S = 90
KILL_SERVER = """
import os, signal
for pid in filter(str.isdecimal, os.listdir('/proc')):
    command = open(f'/proc/{pid}/cmdline', 'rb').read()
    if b'/opt/exai/bin/exai\\0serve' in command and int(pid) != 1:
        os.kill(int(pid), signal.SIGKILL)
"""
RUINED = "for f in /data/appendonlydir/*.rdb /data/dump.rdb; do printf REDIS9999 >$f; done"


async def ask(stack: Stack, prompt: str, continuation_id: str | None = None) -> dict[str, object]:
    """One chat turn over a new connection."""
    more = {"continuation_id": continuation_id} if continuation_id else {}
    async with connect(stack.url) as session:
        return await call(session, "chat", prompt=prompt, **more)


async def stored(stack: Stack, continuation_id: object) -> list[str]:
    """The questions and answers of a conversation."""
    async with connect(stack.url) as session:
        page = await call(session, "conversation_get", continuation_id=continuation_id)
    return [message["content"] for message in page["messages"]]


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait for a state of a container, which the engine does not announce."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.3)


def health(stack: Stack, service: str = "exai") -> str:
    """Return what the engine says of a container's health."""
    return str(stack.inspect(service)["State"]["Health"]["Status"])


def test_every_container_is_bounded(stack: Stack) -> None:
    """As the engine applies it, not as the file says it."""
    for service in ("exai", "postgres", "valkey"):
        host = stack.inspect(service)["HostConfig"]
        assert 0 < host["Memory"] <= 2 << 30, service
        assert 0 < host["PidsLimit"] <= 200, service
        assert host["CapDrop"] == ["ALL"], service
        assert "no-new-privileges:true" in host["SecurityOpt"], service
        assert host["LogConfig"]["Config"] == {"max-file": "3", "max-size": "10m"}, service
    assert stack.inspect("exai")["HostConfig"]["ReadonlyRootfs"]
    assert stack.inspect("migrate")["State"]["ExitCode"] == 0


def test_secrets_are_not_in_the_environment(stack: Stack) -> None:
    """`docker inspect` and every child process show it."""
    values = [stack.secret(name) for name in ("EXAI_SERVER__TOKEN", "postgres_password", "valkey_password")]
    for service in ("exai", "postgres", "valkey", "migrate"):
        described = json.dumps(stack.inspect(service))
        assert not [value for value in values if value in described], service


def test_doctor_is_content_inside(stack: Stack) -> None:
    """The user of Redis may do everything that EXAI needs, and its examination too."""
    found = stack.compose("exec", "-T", "exai", "exai", "doctor")
    assert " fail " not in found
    assert "Postgres 18" in found


async def test_conversation_survives_a_restart_and_a_killed_process(stack: Stack) -> None:
    """The engine starts a killed daemon again; what was answered is there."""
    first = await ask(stack, "one")
    name = str(first["continuation_id"])
    stack.compose("restart", "exai")
    wait_for(lambda: health(stack) == "healthy")
    await ask(stack, "two", name)
    restarts = stack.inspect("exai")["RestartCount"]
    stack.python("exai", KILL_SERVER)
    wait_for(lambda: stack.inspect("exai")["RestartCount"] > restarts and health(stack) == "healthy")
    await ask(stack, "three", name)
    messages = await stored(stack, name)
    assert messages[::2] == ["one", "two", "three"]
    assert len(messages) == 6


async def test_daemon_stops_in_order(stack: Stack) -> None:
    """SIGTERM reaches it, and it exits by itself."""
    stack.compose("stop", "exai")
    assert stack.inspect("exai")["State"]["ExitCode"] == 0
    stack.up("exai")


async def test_dead_cache_is_a_slower_daemon(stack: Stack) -> None:
    """Postgres holds everything."""
    name = str((await ask(stack, "with a cache"))["continuation_id"])
    stack.compose("kill", "valkey")
    await ask(stack, "without", name)
    stack.up("valkey")
    assert (await stored(stack, name))[::2] == ["with a cache", "without"]


@pytest.fixture
def without_cache(stack: Stack) -> Iterator[Stack]:
    """The stack whose cache has a volume that its server cannot load."""
    stack.compose("exec", "-T", "valkey", "sh", "-c", RUINED)
    stack.compose("down", "--timeout", "5")
    yield stack
    stack.compose("rm", "--stop", "--force", "--volumes", "valkey")
    stack.engine.must("volume", "rm", f"{PROJECT}_valkey")
    stack.up()


async def test_cache_that_cannot_start_does_not_keep_the_daemon_down(without_cache: Stack) -> None:
    """As after a change of its version; the daemon starts beside it."""
    without_cache.compose("up", "--no-build", "--detach")
    wait_for(lambda: health(without_cache) == "healthy")
    wait_for(lambda: without_cache.inspect("valkey")["RestartCount"] > 0)
    answer = await ask(without_cache, "the cache is away")
    assert (await stored(without_cache, answer["continuation_id"]))[0] == "the cache is away"


def save_or_restore(stack: Stack, backups: Path, *arguments: str) -> str:
    """Run docker/backup-redis.sh on the stack; returns the last word that it printed."""
    named = {
        "COMPOSE_FILE": f"{ROOT}/compose.yaml:{ROOT}/tests/containers/stand-ins.yaml",
        "COMPOSE_PROJECT_NAME": PROJECT,
        "COMPOSE_PROFILES": "local",
        "SECRETS_DIR": str(stack.secrets_dir),
        "BACKUP_DIR": str(backups),
    }
    command = ["sh", str(ROOT / "docker" / "backup-redis.sh"), *arguments]
    variables = {**os.environ, **stack.engine.variables, **named}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=variables, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


async def test_cache_is_saved_and_restored(stack: Stack, tmp_path: Path) -> None:
    """While the daemon runs: it serves from Postgres meanwhile."""
    name = str((await ask(stack, "kept in the cache"))["continuation_id"])
    # A reader stores what it has read.
    await stored(stack, name)
    file = save_or_restore(stack, tmp_path)
    assert b"kept in the cache" in Path(file).read_bytes()
    stack.compose("rm", "--stop", "--force", "--volumes", "valkey")
    stack.engine.must("volume", "rm", f"{PROJECT}_valkey")
    stack.up("valkey")
    assert save_or_restore(stack, tmp_path, "restore", file) == file
    assert b"kept in the cache" in Path(save_or_restore(stack, tmp_path)).read_bytes()
    await ask(stack, "after it", name)
    assert (await stored(stack, name))[::2] == ["kept in the cache", "after it"]


async def test_daemon_works_through_the_pooler(stack: Stack) -> None:
    """PgBouncer in transaction mode, with the file of its users."""
    stack.variables["DATABASE_SECRET"] = "pooler_url"
    try:
        stack.up(profiles=("local", "pooler"))
        answer = await ask(stack, "through the pooler")
        assert (await stored(stack, answer["continuation_id"]))[0] == "through the pooler"
        assert "pgbouncer:6432" in stack.compose("exec", "-T", "exai", "exai", "config")
    finally:
        del stack.variables["DATABASE_SECRET"]
        stack.compose("rm", "--stop", "--force", "pgbouncer", profiles=("pooler",))
        stack.up()


async def test_caddy_passes_sockets_and_streams_but_no_metrics(stack: Stack) -> None:
    """TLS by a certificate of its own for localhost."""
    stack.up("caddy", profiles=("local", "caddy"))
    address = stack.address("caddy", 443).replace("127.0.0.1", "localhost")
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    token = {"Authorization": f"Bearer {stack.secret('EXAI_SERVER__TOKEN')}"}
    # Under the name of the certificate; the port that is published here is not the one of the name.
    token["Host"] = "localhost"
    async with httpx.AsyncClient(verify=trusting, base_url=f"https://{address}", headers=token, timeout=30) as client:
        for path in ("/metrics", "/health", "/health/live"):
            assert (await client.get(path)).status_code == 404
        assert (await client.get("/")).headers["strict-transport-security"]
        asked = {"name": "chat", "arguments": {"prompt": "streamed"}, "_meta": {"progressToken": 1}}
        wanted = {"Accept": "application/json, text/event-stream"}
        async with client.stream("POST", "/mcp", json=request(3, "tools/call", asked), headers=wanted) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            lines = [line async for line in answer.aiter_lines() if line.startswith("data:")]
    assert "continuation_id" in lines[-1]
    uri = f"wss://{address}/?token={stack.secret('EXAI_SERVER__TOKEN')}"
    async with open_socket(uri, ssl=trusting, subprotocols=["mcp"], additional_headers={}) as socket:
        await socket.send(json.dumps(handshake()))
        assert "serverInfo" in json.loads(await socket.recv())["result"]


def test_prometheus_scrapes_the_daemon_with_its_token(stack: Stack) -> None:
    """The profile's own configuration, token and rules."""
    stack.up("prometheus", profiles=("local", "monitoring"))
    scraped = (
        "import json, urllib.request as r;"
        "q = 'http://prometheus:9090/api/v1/query?query=up';"
        "print([each['value'][1] for each in json.load(r.urlopen(q))['data']['result']])"
    )
    wait_for(lambda: stack.python("exai", scraped) == "['1']")


def test_profiles_have_the_services_they_promise(stack: Stack) -> None:
    """As compose resolves them."""
    assert set(stack.compose("config", "--services").split()) >= {"exai", "migrate", "postgres", "valkey"}
    assert "postgres" not in stack.compose("config", "--services", profiles=("supabase",)).split()
    assert {"caddy", "pgbouncer", "prometheus", "grafana"} <= set(
        stack.compose("config", "--services", profiles=PROFILES).split()
    )
