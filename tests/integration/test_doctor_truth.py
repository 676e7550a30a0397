"""`exai doctor` and `exai health` for a failing daemon and failing embedded servers."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from exai.cli import main as cli
from exai.cli.doctor import examine
from exai.embedded.ownership import ServerRecord
from exai.monitoring.metrics import MetricsRecorder
from exai.settings.load import load_settings
from tests.integration.test_doctor import by_part, http_server


def test_health_without_details_is_not_reported_as_bad(capsys: pytest.CaptureFixture[str]) -> None:
    """A daemon shows details to authorized clients only."""
    with http_server(200, {"service": "exai", "status": "ok"}) as (address, _):
        assert cli.main(["health", "--url", f"http://{address}"]) == 0
    out = capsys.readouterr().out
    assert f"EXAI at http://{address}/health: ok" in out
    assert "None" not in out
    assert "not ready" not in out
    assert "EXAI_TOKEN" in out


async def test_daemon_that_is_down_is_a_failure(tmp_path: Path) -> None:
    """A port that is held well is not all there is to say."""
    with http_server(503, {"service": "exai", "version": "9", "status": "down"}) as (address, _):
        port = address.rpartition(":")[2]
        settings = load_settings({"EXAI_DATA_DIR": str(tmp_path), "EXAI_SERVER__PORT": port}, None)
        found = by_part(await examine(settings, MetricsRecorder()))["port"]
    assert (found.state, "exai health" in found.cure) == ("fail", True)


async def test_embedded_servers_that_have_just_gone_are_not_said_to_be_off(tmp_path: Path) -> None:
    """Their program was killed; another one that uses them starts them again."""
    gone = ServerRecord(
        42, str(tmp_path), durable=True, ready=True, postgres_version="18.6", sockets=(f"{tmp_path}/no",)
    )
    (tmp_path / "running.json").write_text(json.dumps(asdict(gone)))
    settings = load_settings({"EXAI_DATA_DIR": str(tmp_path), "EXAI_SERVER__PORT": "0"}, None)
    found = by_part(await examine(settings, MetricsRecorder()))
    assert found["postgres"].state == found["redis"].state == "warn"
    assert "process 42" in found["postgres"].detail
