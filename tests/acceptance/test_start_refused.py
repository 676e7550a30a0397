"""Every obstacle to a start is one clear message and a documented exit status, never a traceback."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from exai.db.migrations.migrate import upgrade
from exai.db.migrations.revision import expected_revision
from tests.support.commands import run_exai_as_text
from tests.support.daemon import ROOT, environment, start_daemon
from tests.support.migrations import revisions
from tests.support.password_postgres import password_postgres

CLOSED = "127.0.0.1:1"


def run_serve(settings: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `exai serve`, which must end by itself."""
    return run_exai_as_text("serve", *arguments, settings=settings, cwd=Path(tempfile.gettempdir()))


def assert_refused(done: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    """Assert one message on standard error with the problem and its cure."""
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("exai: ")]) == 1, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


def test_unknown_variable_is_refused_with_the_nearest_name() -> None:
    """A misspelled limit that is silently ignored is worse than a refusal."""
    assert_refused(run_serve({"EXAI_DATABSE__URL": "x"}), 2, "EXAI_DATABSE__URL", "EXAI_DATABASE__URL")


def test_unreachable_postgres_is_an_error_and_never_a_fallback(tmp_path: Path) -> None:
    """An address that was given is used or is an error."""
    settings = {"EXAI_DATABASE__URL": f"postgresql://exai@{CLOSED}/exai", "EXAI_DATA_DIR": str(tmp_path)}
    assert_refused(run_serve(settings), 3, CLOSED)
    assert list(tmp_path.iterdir()) == []
    migrated = run_exai_as_text("migrate", settings=settings, cwd=tmp_path)
    assert_refused(migrated, 3, CLOSED, "EXAI_DATABASE__URL")


def test_unreachable_redis_is_an_error(postgres_url: str, tmp_path: Path) -> None:
    """A cache that was configured and cannot be reached at start is a mistake to be seen, not a slow service."""
    settings = {
        "EXAI_DATABASE__URL": postgres_url,
        "EXAI_CACHE__URL": f"redis://{CLOSED}/0",
        "EXAI_DATA_DIR": str(tmp_path),
    }
    assert_refused(run_serve(settings), 3, CLOSED, "EXAI_CACHE__URL")


def test_redis_that_is_not_required_keeps_no_daemon_down(postgres_url: str, tmp_path: Path) -> None:
    """A container whose cache cannot load its volume serves from Postgres, and health says so."""
    away = {"EXAI_CACHE__URL": f"unix://{tmp_path}/absent.sock", "EXAI_CACHE__REQUIRED": "false"}
    with start_daemon({"EXAI_DATABASE__URL": postgres_url, "EXAI_DATA_DIR": str(tmp_path), **away}) as daemon:
        assert "cache_away" in daemon.output
        status, body = daemon.get("/health")
        assert status == 200
        assert body["components"]["cache"]["state"] == "down"
        assert daemon.get("/health/ready")[0] == 200


def test_patient_start_says_what_it_waits_for_and_can_be_stopped(tmp_path: Path) -> None:
    """SIGTERM ends the wait; nothing is refused before the limit."""
    settings = {
        "EXAI_DATABASE__URL": f"postgresql://exai@{CLOSED}/exai",
        "EXAI_DATA_DIR": str(tmp_path),
        "EXAI_START_WAIT_S": "60",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "exai", "serve"]
    with subprocess.Popen(
        command, env=environment(settings), cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        process.terminate()
        rest = process.stderr.read()
    assert "waiting_for_server" in said
    assert CLOSED in said
    assert (process.returncode, "Traceback" in rest) == (0, False), rest


def test_database_without_the_schema_names_the_command_that_makes_it(empty_postgres_url: str, tmp_path: Path) -> None:
    """A given database is only checked; upgrading it is its owner's decision."""
    settings = {"EXAI_DATABASE__URL": empty_postgres_url, "EXAI_CACHE__URL": "off", "EXAI_DATA_DIR": str(tmp_path)}
    assert_refused(run_serve(settings), 4, "not migrated", expected_revision(), "exai migrate")


async def test_database_of_an_older_release_is_refused_with_its_revision(
    empty_postgres_url: str, tmp_path: Path
) -> None:
    """The statements of this release fail on it first; what its owner can act on is how far behind it is."""
    await upgrade(empty_postgres_url, revisions()[-2])
    settings = {"EXAI_DATABASE__URL": empty_postgres_url, "EXAI_CACHE__URL": "off", "EXAI_DATA_DIR": str(tmp_path)}
    done = await asyncio.to_thread(run_serve, settings)
    assert_refused(done, 4, f"at revision {revisions()[-2]}", expected_revision(), "exai migrate")


def test_taken_port_is_named_with_the_variable_that_changes_it(
    postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    """The usual cause is a second daemon."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = str(holder.getsockname()[1])
        settings = {
            "EXAI_DATABASE__URL": postgres_url,
            "EXAI_CACHE__URL": redis_url,
            "EXAI_DATA_DIR": str(tmp_path),
            "EXAI_SERVER__PORT": port,
        }
        assert_refused(run_serve(settings), 3, port, "EXAI_SERVER__PORT")


def test_unwritable_data_directory_is_named(tmp_path: Path) -> None:
    """Nothing is kept anywhere else instead."""
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    assert_refused(run_serve({"EXAI_DATA_DIR": str(blocked / "data")}), 3, str(blocked), "EXAI_DATA_DIR")


def test_bad_provider_key_is_named_before_anything_starts(tmp_path: Path) -> None:
    """A key with a line break or a space came from a bad paste."""
    settings = {"KIMI_API_KEY": "sk-one two", "EXAI_DATA_DIR": str(tmp_path)}
    done = run_serve(settings)
    assert_refused(done, 2, "KIMI_API_KEY")
    assert "sk-one two" not in done.stderr


async def test_wrong_password_is_distinguished_from_an_unreachable_server(tmp_path: Path) -> None:
    """The cure differs: the password, not the network."""
    async with password_postgres(tmp_path / "server") as url:
        settings = {"EXAI_DATABASE__URL": url("wrong"), "EXAI_CACHE__URL": "off", "EXAI_DATA_DIR": str(tmp_path)}
        refused = await asyncio.to_thread(run_serve, settings)
        migrated = await asyncio.to_thread(run_serve, {**settings, "EXAI_DATABASE__URL": url("right")})
    assert_refused(refused, 3, "password")
    assert "wrong@" not in refused.stderr
    assert_refused(migrated, 4, "exai migrate")
