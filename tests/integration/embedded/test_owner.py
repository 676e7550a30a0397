"""One program owns the servers of a data directory, and a second one uses them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest
import redis.asyncio

from exai.db.driver.pool import open_pool
from exai.db.migrations.migrate import upgrade
from exai.embedded.launcher import start_embedded
from exai.embedded.ownership import ServerRecord, accepts, claim, locked, outlast_leftovers, read_running, try_lock
from exai.embedded.postgres import PostgresBinaries
from exai.embedded.process import Launch, ServerProcess
from exai.errors import StartupError
from exai.monitoring.metrics import MetricsRecorder
from exai.settings.load import DatabaseSettings
from tests.integration.embedded.test_start import answer, execute, socket_dir_of
from tests.support.programs import Program, descendants, gone, parent_ids, program
from tests.support.waiting import wait_until


async def test_second_program_uses_the_servers_of_the_first(data_dir: Path, binaries: PostgresBinaries) -> None:
    """A command beside the daemon works on the same data."""
    plan = {"data_dir": str(data_dir), "pg_bin": str(binaries.bin_dir), "durable": False}
    with program(plan) as first, program(plan) as second:
        assert second.said["postgres_url"] == first.said["postgres_url"]
        assert second.said["valkey_url"] == first.said["valkey_url"]
        assert second.said["postgres_version"] == binaries.version
        assert f"process {first.process.pid}" in second.said["notes"][0]
        await execute(second.said["postgres_url"], "create table shared ()")
        assert second.end() == 0
        assert await answer(first.said["postgres_url"], "select to_regclass('shared') is not null") is True


async def test_next_program_owns_the_servers_when_the_first_was_killed(
    data_dir: Path, binaries: PostgresBinaries
) -> None:
    """The files and the socket directory of the killed program are taken over or removed."""
    plan = {"data_dir": str(data_dir), "pg_bin": str(binaries.bin_dir), "durable": False}
    with program(plan) as first:
        first.end(signal.SIGKILL)
        with program(plan) as second:
            assert second.said["notes"] == []
            assert second.said["postgres_url"] != first.said["postgres_url"]
            assert await answer(second.said["postgres_url"], "select 1") == 1
        await gone(first)
        assert not Path(first.said["valkey_url"].removeprefix("unix://").split("?")[0]).parent.exists()


async def test_owner_without_postgres_is_named_to_a_program_that_needs_one(
    data_dir: Path, binaries: PostgresBinaries
) -> None:
    """Two servers must not share data, so the error names the process to stop."""
    async with start_embedded(data_dir, postgres=False):
        with program({"data_dir": str(data_dir), "pg_bin": str(binaries.bin_dir)}) as second:
            assert f"process {os.getpid()}" in second.said["error"]
        with program({"data_dir": str(data_dir), "postgres": False}) as second:
            async with redis.asyncio.from_url(second.said["valkey_url"]) as client:
                assert await client.ping()


async def test_owner_that_does_not_answer_is_named(tmp_path: Path) -> None:
    """It may be starting, so it is waited for, but not for ever."""
    running = ServerRecord(os.getpid(), str(tmp_path), durable=True, ready=True, sockets=(str(tmp_path / "no.sock"),))
    (tmp_path / "running.json").write_text(json.dumps(asdict(running)))
    with locked(tmp_path / "owner.lock") as first, locked(tmp_path / "owner.lock") as second:
        assert try_lock(first)
        with locked(tmp_path / "servers.lock") as servers:
            with pytest.raises(StartupError, match=f"process {os.getpid()} holds it.*EXAI_DATA_DIR"):
                await claim(tmp_path, second, servers, limit_s=0.05)


async def test_lock_without_a_name_is_said_to_be_another_process(tmp_path: Path) -> None:
    """The file that names the owner can be gone, the lock cannot."""
    with locked(tmp_path / "owner.lock") as first, locked(tmp_path / "owner.lock") as second:
        assert try_lock(first)
        with (
            locked(tmp_path / "servers.lock") as servers,
            pytest.raises(StartupError, match="another process holds it"),
        ):
            await claim(tmp_path, second, servers, limit_s=0.05)


async def test_only_the_process_that_holds_the_lock_of_the_servers_is_ended(tmp_path: Path) -> None:
    """A shell or an editor may have its working directory in the data directory, as may this process.

    Servers hear the signal also where a script runs the program in the background, which it then is to ignore.
    """
    command = (shutil.which("sleep") or "sleep", "60")
    ignored = signal.signal(signal.SIGQUIT, signal.SIG_IGN)
    try:
        with locked(tmp_path / "servers.lock") as held:
            assert try_lock(held)
            server = ServerProcess(Launch(command, tmp_path, tmp_path / "log", signal.SIGTERM, held_fds=(held,)))
        bystander = subprocess.Popen(command, cwd=tmp_path)
    finally:
        signal.signal(signal.SIGQUIT, ignored)
    try:
        await wait_until(lambda: "sleep" in Path(f"/proc/{server.pid}/comm").read_text())
        with locked(tmp_path / "servers.lock") as lock:
            await outlast_leftovers(tmp_path, lock, limit_s=0.5)
        assert await server.wait(5) == -signal.SIGQUIT
        assert bystander.poll() is None
    finally:
        server.kill()
        bystander.kill()
        bystander.wait(5)


async def test_servers_that_outlive_their_program_are_ended(data_dir: Path, binaries: PostgresBinaries) -> None:
    """A kernel without parent-death signals may leave a server; its data still has one owner."""
    plan = {"data_dir": str(data_dir), "pg_bin": str(binaries.bin_dir), "valkey": False, "in_thread": True}
    with program(plan) as first:
        await execute(first.said["postgres_url"], "create table kept ()")
        postmaster = int(next(data_dir.glob("postgres-*/postmaster.pid")).read_text().split()[0])
        os.kill(parent_ids()[postmaster], signal.SIGKILL)
        first.end(signal.SIGKILL)
        os.kill(postmaster, 0)
        with program(plan) as second:
            assert await answer(second.said["postgres_url"], "select to_regclass('kept') is not null") is True


@pytest.mark.parametrize("number", [signal.SIGKILL, None])
async def test_guest_runs_the_servers_when_their_owner_is_gone(
    number: signal.Signals | None, data_dir: Path, binaries: PostgresBinaries
) -> None:
    """A daemon beside `exai chat` continues at the known addresses when the chat ends or is killed."""
    plan = {"data_dir": str(data_dir), "pg_bin": str(binaries.bin_dir)}
    with program(plan) as owner, program(plan) as first, program(plan) as second:
        await execute(owner.said["postgres_url"], "create table kept ()")
        owner.end(number)
        url = first.said["postgres_url"]
        await served_by(data_dir, first, second)
        assert await answer(url, "select to_regclass('kept') is not null") is True
        async with redis.asyncio.from_url(second.said["valkey_url"]) as client:
            assert await client.ping()
        heir, other = (first, second) if read_running(data_dir).pid == first.process.pid else (second, first)
        # Whose end is followed by another succession, to the last guest.
        assert heir.end() == 0
        await served_by(data_dir, other)
        assert await answer(url, "select to_regclass('kept') is not null") is True
        other.family = descendants(other.process.pid)
        assert other.end() == 0
        await gone(other)
    assert not Path(owner.said["valkey_url"].removeprefix("unix://").split("?")[0]).parent.exists()


async def test_guest_follows_the_next_owner(data_dir: Path, binaries: PostgresBinaries) -> None:
    """A program that starts meanwhile becomes the owner; earlier ones use its servers."""
    plan = {"data_dir": str(data_dir), "pg_bin": str(binaries.bin_dir)}
    with program(plan) as owner, program(plan) as guest:
        os.kill(guest.process.pid, signal.SIGSTOP)
        owner.end(signal.SIGKILL)
        with program(plan) as following:
            assert following.said["postgres_url"] != owner.said["postgres_url"]
            os.kill(guest.process.pid, signal.SIGCONT)
            await wait_until(lambda: accepts(str(socket_dir_of(guest.said["postgres_url"]) / ".s.PGSQL.5432")))
            assert await answer(guest.said["postgres_url"], "select 1") == 1
            following.end(signal.SIGKILL)
            await served_by(data_dir, guest)
            assert await answer(guest.said["postgres_url"], "select 1") == 1
        assert guest.end() == 0
        assert not socket_dir_of(guest.said["postgres_url"]).exists()


async def served_by(data_dir: Path, *programs: Program) -> None:
    """Wait until one of them runs the servers."""

    def is_served() -> bool:
        running = read_running(data_dir)
        return running is not None and running.pid in {each.process.pid for each in programs} and running.answers()

    await wait_until(is_served, lambda: f"no process took over: {read_running(data_dir)}", 30)


LIBPQ = {
    "PGSSLMODE": "verify-full",
    "PGSSLROOTCERT": "/nonexistent",
    "PGSSLNEGOTIATION": "direct",
    "PGHOST": "192.0.2.1",
    "PGPORT": "1",
    "PGUSER": "nobody",
    "PGPASSWORD": "x",
    "PGDATABASE": "nothing",
    "PGSERVICE": "none",
    "PGSERVICEFILE": "/nonexistent",
    "PGPASSFILE": "/",
    "PGOPTIONS": "-c nonsense=1",
    "PGTARGETSESSIONATTRS": "standby",
    "PGGSSLIB": "nonsense",
    "PGKRBSRVNAME": "nonsense",
    "PGDATA": "/nonexistent",
    "PGCLIENTENCODING": "LATIN1",
    "PGTZ": "nonsense",
}


async def test_variables_of_libpq_are_about_other_servers(
    data_dir: Path, binaries: PostgresBinaries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With any variables for psql the embedded server is started and reached."""
    for name, value in LIBPQ.items():
        monkeypatch.setenv(name, value)
    async with start_embedded(data_dir, valkey=False, durable=False, pg_bin=binaries.bin_dir) as embedded:
        assert embedded.postgres_url is not None
        assert await answer(embedded.postgres_url, "select current_user || current_database()") == "exaipostgres"
        await upgrade(embedded.postgres_url)
        async with open_pool(DatabaseSettings(), recorder=MetricsRecorder(), url=embedded.postgres_url) as database:
            assert await database.obstacle() is None
