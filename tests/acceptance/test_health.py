"""`exai health` asks a real daemon for every part, and opens its WebSocket."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.support.daemon import ROOT, environment, start_daemon
from tests.support.stateless import stateless

TOKEN = "a-token-that-is-long-enough"


def health(port: int, token: str, directory: Path, *arguments: str) -> tuple[int, dict[str, object]]:
    done = subprocess.run(
        [sys.executable, "-m", "exai", "health", "--format", "json", "--url", f"127.0.0.1:{port}", *arguments],
        env=environment({"PYTHONPATH": str(ROOT), "EXAI_TOKEN": token}),
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, json.loads(done.stdout or "{}")


@pytest.mark.parametrize("store", ["postgres", "directory"])
def test_every_part_of_a_daemon_is_asked(postgres_url: str, redis_url: str, tmp_path: Path, store: str) -> None:
    """Database, schema, cache, storage, providers and the WebSocket, each with its time."""
    settings = {
        "EXAI_DATA_DIR": str(tmp_path),
        "EXAI_DATABASE__URL": postgres_url,
        "EXAI_CACHE__URL": redis_url,
        "EXAI_FILES__STORE": store,
        "EXAI_SERVER__TOKEN": TOKEN,
        "KIMI_API_KEY": "sk-test",
    }
    with start_daemon(settings) as daemon:
        status, report = health(daemon.port, TOKEN, tmp_path)
        refused, _ = health(daemon.port, "another token of some length", tmp_path)
    assert (status, report["status"]) == (0, "healthy"), report
    checks = report["checks"]
    assert isinstance(checks, dict)
    for name in ("database", "schema", "cache", "storage", "kimi", "websocket"):
        assert checks[name]["status"] == "healthy", (name, checks[name])
        assert checks[name]["response_time_ms"] >= 0
    assert checks["glm"]["status"] == "off"
    assert "MiB used" in checks["cache"]["detail"]

    # Any client of this machine may read the state; the WebSocket is not opened.
    assert refused == 0


SECRET = "a-secret-of-an-issuer-that-is-long-enough"
OWNERS = {name: f"token-of-{name}-0123456789" for name in ("alice", "bob")}
OPEN: dict[str, str] = {}
ALONE = {"EXAI_SERVER__TOKENS": json.dumps({"alice": OWNERS["alice"]})}
SEVERAL = {"EXAI_SERVER__TOKENS": json.dumps(OWNERS)}
ONE_AND_A_NAMED_ONE = {"EXAI_SERVER__TOKEN": OWNERS["alice"], "EXAI_SERVER__TOKENS": json.dumps({"bob": OWNERS["bob"]})}
SIGNED = {
    "EXAI_SERVER__TOKENS": json.dumps({"alice": OWNERS["alice"]}),
    "EXAI_SERVER__JWT__SECRET": SECRET,
    "EXAI_SERVER__JWT__ISSUER": "https://issuer.example",
}


@pytest.mark.parametrize(
    ("owners", "token", "is_told"),
    [
        (OPEN, None, True),
        (ALONE, OWNERS["alice"], True),
        (SEVERAL, OWNERS["alice"], False),
        (SEVERAL, OWNERS["bob"], False),
        (ONE_AND_A_NAMED_ONE, OWNERS["alice"], False),
        (SIGNED, OWNERS["alice"], False),
    ],
    ids=["no owners", "one owner", "several", "another of several", "one beside a named one", "signed tokens"],
)
async def test_the_tool_shows_details_to_the_only_owner(
    owners: dict[str, str], token: str | None, is_told: bool, postgres_url: str, tmp_path: Path
) -> None:
    """They name hosts and quote errors. A tool does not know from which machine it is called; GET /health does."""
    settings = {
        **owners,
        "EXAI_DATABASE__URL": postgres_url,
        "EXAI_CACHE__URL": "redis://cache.invalid:1",
        "EXAI_CACHE__REQUIRED": "false",
        "EXAI_DATA_DIR": str(tmp_path),
    }
    with start_daemon(settings) as daemon:
        async with stateless(f"http://127.0.0.1:{daemon.port}", token=token) as client:
            told = await client.call("status")
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{daemon.port}") as local:
            near = (await local.get("/health")).text
            far = (await local.get("/health", headers={"x-forwarded-for": "10.0.0.6"})).text
    shown = told["structuredContent"]
    assert shown["components"].keys() >= {"database", "cache"}
    assert shown["components"]["cache"]["state"] == "down"
    details = [each["detail"] for each in shown["components"].values() if each["detail"]]
    assert bool(details) is is_told
    assert ("cache.invalid" in json.dumps(told)) is is_told
    assert "cache.invalid" in near
    assert ("cache.invalid" in far) is (owners is OPEN)
