"""One program owns the servers of a data directory; what a second one meets."""

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

from exai.embedded.launcher import start_embedded
from exai.embedded.ownership import Running, claim, locked, outlast_leftovers, try_lock
from exai.embedded.postgres import PostgresBinaries
from exai.embedded.process import Launch, ServerProcess
from exai.errors import StartupError
from tests.integration.embedded.test_start import answer, execute
from tests.support.programs import gone, parent_ids, program
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
    """What the killed one left, a file and perhaps a socket directory, is nobody's any more."""
    plan = {"data_dir": str(data_dir), "pg_bin": str(binaries.bin_dir), "durable": False}
    with program(plan) as first:
        first.end(signal.SIGKILL)
        with program(plan) as second:
            assert second.said["notes"] == []
            assert second.said["postgres_url"] != first.said["postgres_url"]
            assert await answer(second.said["postgres_url"], "select 1") == 1
        await gone(first)
        assert not Path(first.said["valkey_url"].removeprefix("unix://").split("?")[0]).parent.exists()


async def test_owner_without_postgres_is_named_to_who_needs_one(data_dir: Path, binaries: PostgresBinaries) -> None:
    """Two servers must never share their data, so the second program is told whom to stop."""
    async with start_embedded(data_dir, postgres=False):
        with program({"data_dir": str(data_dir), "pg_bin": str(binaries.bin_dir)}) as second:
            assert f"process {os.getpid()}" in second.said["error"]
        with program({"data_dir": str(data_dir), "postgres": False}) as second:
            async with redis.asyncio.from_url(second.said["valkey_url"]) as client:
                assert await client.ping()


async def test_owner_that_does_not_answer_is_named(tmp_path: Path) -> None:
    """It may be starting, so it is waited for, but not for ever."""
    running = Running(os.getpid(), str(tmp_path), durable=True, ready=True, sockets=(str(tmp_path / "no.sock"),))
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


async def test_only_what_holds_the_lock_of_the_servers_is_ended(tmp_path: Path) -> None:
    """A shell or an editor may work in the data directory, too, and so may we.

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
    """Where the kernel cannot tie them together, a server may be left; its data has one master all the same."""
    plan = {"data_dir": str(data_dir), "pg_bin": str(binaries.bin_dir), "valkey": False, "in_thread": True}
    with program(plan) as first:
        await execute(first.said["postgres_url"], "create table kept ()")
        postmaster = int(next(data_dir.glob("postgres-*/postmaster.pid")).read_text().split()[0])
        os.kill(parent_ids()[postmaster], signal.SIGKILL)
        first.end(signal.SIGKILL)
        os.kill(postmaster, 0)
        with program(plan) as second:
            assert await answer(second.said["postgres_url"], "select to_regclass('kept') is not null") is True
