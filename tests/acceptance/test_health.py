"""`exai health` asks a real daemon for every part, and opens its WebSocket."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.daemon import ROOT, environment, start_daemon

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
