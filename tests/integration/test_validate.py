"""`exai validate` on a live database: promises pass on a sound one, fail on a broken one, and no row is left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from exai.cli import main as cli
from exai.db.validate import CHECKS, validate
from exai.models import Finding
from exai.monitoring.metrics import MetricsRecorder
from exai.settings.load import DatabaseSettings
from tests.support.migrations import run, session

TABLES = """
select array_agg(c.oid::regclass::text order by 1) from pg_class c
 where c.relkind = 'r' and c.relnamespace in ('public'::regnamespace, 'exai'::regnamespace, 'monitoring'::regnamespace)
"""


async def counts(url: str) -> dict[str, int]:
    async with session(url) as connection:
        return {
            name: await connection.fetchval(f"select count(*) from {name}")
            for name in await connection.fetchval(TABLES)
        }


async def checked(url: str) -> dict[str, Finding]:
    findings = await validate(DatabaseSettings.model_validate({"url": url}), url, MetricsRecorder())
    return {finding.part: finding for finding in findings}


async def test_a_sound_database_passes_and_keeps_no_row(postgres_url: str) -> None:
    """In every table, also behind a pooler."""
    before = await counts(postgres_url)
    found = await checked(postgres_url)
    assert {name: each.detail for name, each in found.items() if each.state != "ok"} == {}
    assert list(found) == [*(name for name, _ in CHECKS), "nothing is left"]
    assert await counts(postgres_url) == before


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        ("delete from exai.alembic_version", "schema"),
        ("drop function exai.append_v1 cascade", "append"),
        ("drop function exai.finish_turn_v1 cascade", "chat turn"),
        ("drop function exai.search_v1 cascade", "search"),
        ("drop function exai.put_files_v1 cascade", "files"),
        ("drop function exai.put_checkpoint_v1 cascade", "checkpoints"),
        ("drop function public.cleanup_orphaned_files cascade", "orphaned files"),
        ("drop trigger exai_roll_up on monitoring.metrics_raw", "metrics"),
        ("drop function monitoring.get_recent_metrics cascade", "metrics"),
    ],
)
async def test_a_broken_promise_is_named_and_the_others_are_still_checked(
    postgres_url: str, broken: str, promise: str
) -> None:
    """A failure inside the transaction ends one check, not the run."""
    try:
        await run(postgres_url, broken)
    except Exception as error:
        pytest.fail(f"this cannot be broken so: {error}")
    found = await checked(postgres_url)
    assert found[promise].state == "fail"
    assert found["partitions"].state == "ok"
    assert found["nothing is left"].state == "ok"


def test_the_command_prints_a_line_for_each_promise(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """PASS or FAIL, and the exit status: 0, 1, or 3 if there is no database."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EXAI_DATABASE__URL", postgres_url)
    assert cli.main(["validate"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(CHECKS) + 1
    assert all(line.startswith("PASS  ") for line in lines)
    assert cli.main(["validate", "--format", "json"]) == 0
    assert {each["state"] for each in json.loads(capsys.readouterr().out)} == {"ok"}
    monkeypatch.setenv("EXAI_DATABASE__URL", "postgresql://u:p@127.0.0.1:1/d")
    assert cli.main(["validate"]) == 3
    assert "u:p" not in capsys.readouterr().err
