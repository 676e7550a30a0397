"""The remains of a program with embedded servers, for every way in which a program can end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from pathlib import Path

import asyncpg
import pytest
import redis.asyncio

from exai.embedded.launcher import start_embedded
from exai.embedded.ownership import works_in
from exai.embedded.postgres import PostgresBinaries
from tests.integration.embedded.test_start import answer, execute, socket_dir_of
from tests.support.programs import descendants, gone, is_alive, program
from tests.support.waiting import wait_until

ENOUGH_ROWS = 20


async def write_until_cut_off(postgres_url: str, acknowledged: list[int], enough: asyncio.Event) -> None:
    """One row a transaction; a number is noted only after its commit was acknowledged."""
    connection = await asyncpg.connect(postgres_url)
    try:
        await connection.execute("create table if not exists written (n int)")
        for n in range(1_000_000):
            await connection.execute("insert into written values ($1)", n)
            acknowledged.append(n)
            if n == ENOUGH_ROWS:
                enough.set()
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError):
        # The last but one is what the driver says when the goodbye arrived between two statements.
        connection.terminate()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize("in_thread", [False, True], ids=["by death signal", "by supervisor"])
async def test_nothing_is_left_and_nothing_is_lost_after(
    data_dir: Path, binaries: PostgresBinaries, number: signal.Signals, in_thread: bool
) -> None:
    """Promise: an acknowledged write survives the end of the daemon. Where no signal can be had, a supervisor helps."""
    plan = {"data_dir": str(data_dir), "pg_bin": str(binaries.bin_dir)}
    acknowledged: list[int] = []
    enough = asyncio.Event()
    with program(plan | {"in_thread": in_thread}) as run:
        writing = asyncio.create_task(write_until_cut_off(run.said["postgres_url"], acknowledged, enough))
        await asyncio.wait_for(enough.wait(), 5)
        async with redis.asyncio.from_url(run.said["valkey_url"]) as client:
            await client.set("kept", "1")
        run.family |= descendants(run.process.pid)
        run.process.send_signal(number)
        if in_thread and number is signal.SIGINT:
            # Python's main thread waits for the other one; a second interrupt would be needed.
            run.process.stdin.close()
        await gone(run)
        await asyncio.wait_for(writing, 5)

    with program(plan) as run:
        assert "error" not in run.said
        rows = await answer(run.said["postgres_url"], "select array_agg(n) from written")
        assert set(acknowledged) <= set(rows)
        async with redis.asyncio.from_url(run.said["valkey_url"]) as client:
            assert await client.get("kept") == b"1"


async def test_forced_stop_leaves_no_process(data_dir: Path, binaries: PostgresBinaries) -> None:
    """A postmaster that does not react, as on a machine that is too busy, is killed; its backends must not live on."""
    async with start_embedded(data_dir, valkey=False, pg_bin=binaries.bin_dir) as embedded:
        connection = await asyncpg.connect(embedded.postgres_url)
        family = descendants(os.getpid())
        cluster = embedded.data_dir / f"postgres-{binaries.major}"
        servers = [pid for pid in family if works_in(pid, cluster)]
        assert len(servers) > 1
        postmaster = int((cluster / "postmaster.pid").read_text().split("\n", 1)[0])
        for pid in servers:
            os.kill(pid, signal.SIGSTOP)
        os.kill(postmaster, signal.SIGKILL)
        connection.terminate()
    assert not [pid for pid in servers if is_alive(pid)]


async def test_program_killed_while_making_the_database_starts_again(
    data_dir: Path, binaries: PostgresBinaries
) -> None:
    """Half a database is never taken for one."""
    plan = {"data_dir": str(data_dir), "pg_bin": str(binaries.bin_dir), "valkey": False}
    half_made = data_dir / f"postgres-{binaries.major}.new" / "PG_VERSION"

    def kill_when_half_made(pid: int) -> None:
        asyncio.run(wait_until(half_made.exists, limit_s=30))
        os.kill(pid, signal.SIGKILL)

    with program(plan, wait=False) as run:
        killer = threading.Thread(target=kill_when_half_made, args=(run.process.pid,))
        killer.start()
        run.listen()
        killer.join()
        assert "error" in run.said
    with program(plan) as run:
        assert "error" not in run.said
        assert not half_made.parent.exists()


async def test_killed_postmaster_is_started_again_with_its_data(data_dir: Path, binaries: PostgresBinaries) -> None:
    """Promise: an acknowledged write survives kill -9 of Postgres, and the daemon continues."""
    reports: list[str] = []
    async with start_embedded(data_dir, valkey=False, pg_bin=binaries.bin_dir, report=reports.append) as embedded:
        await execute(embedded.postgres_url, "create table kept (n int)", "insert into kept values (7)")
        pid = postmaster_of(data_dir)
        os.kill(pid, signal.SIGKILL)
        await wait_until(lambda: bool(reports))
        await wait_until(lambda: postmaster_of(data_dir) not in {pid, 0})
        await wait_until_answering(embedded.postgres_url)
        assert await answer(embedded.postgres_url, "select n from kept") == 7
        assert "Postgres died" in reports[0]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="orphans are found in /proc")
async def test_backend_that_stands_still_does_not_keep_a_killed_postgres_from_starting(
    data_dir: Path, binaries: PostgresBinaries
) -> None:
    """It never notices that its server is gone, and holds the shared memory that the next one needs."""
    async with start_embedded(data_dir, valkey=False, pg_bin=binaries.bin_dir) as embedded:
        await execute(embedded.postgres_url, "create table kept (n int)", "insert into kept values (7)")
        connection = await asyncpg.connect(embedded.postgres_url)
        frozen = int(await connection.fetchval("select pg_backend_pid()"))
        pid = postmaster_of(data_dir)
        os.kill(frozen, signal.SIGSTOP)
        os.kill(pid, signal.SIGKILL)
        connection.terminate()
        await wait_until(lambda: postmaster_of(data_dir) not in {pid, 0})
        await wait_until_answering(embedded.postgres_url)
        assert await answer(embedded.postgres_url, "select n from kept") == 7


async def test_killed_valkey_is_started_again(data_dir: Path) -> None:
    """The cache comes back by itself."""
    reports: list[str] = []
    async with start_embedded(data_dir, postgres=False, report=reports.append) as embedded:
        async with redis.asyncio.from_url(embedded.valkey_url) as client:
            pid = (await client.info("server"))["process_id"]
            os.kill(pid, signal.SIGKILL)
            await wait_until(lambda: bool(reports))

            async def is_back() -> bool:
                try:
                    return bool((await client.info("server"))["process_id"] != pid)
                except redis.ConnectionError:
                    return False

            while not await asyncio.wait_for(is_back(), 5):
                await asyncio.sleep(0.01)


async def test_pid_file_of_a_killed_server_does_not_hinder(data_dir: Path, binaries: PostgresBinaries) -> None:
    """After a restart of a container the noted process id often belongs to another program, here to this one."""
    async with start_embedded(data_dir, valkey=False, pg_bin=binaries.bin_dir) as embedded:
        await execute(embedded.postgres_url, "create table kept (n int)", "insert into kept values (7)")
        lines = pid_file_of(data_dir).read_text().splitlines()
        os.kill(postmaster_of(data_dir), signal.SIGKILL)
        sockets = socket_dir_of(embedded.postgres_url)
    pid_file_of(data_dir, binaries).write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")
    assert not sockets.exists()
    async with start_embedded(data_dir, valkey=False, pg_bin=binaries.bin_dir) as embedded:
        assert await answer(embedded.postgres_url, "select n from kept") == 7


def pid_file_of(data_dir: Path, binaries: PostgresBinaries | None = None) -> Path:
    """Where the postmaster describes itself."""
    if binaries is not None:
        return data_dir / f"postgres-{binaries.major}" / "postmaster.pid"
    return next(data_dir.glob("postgres-*/postmaster.pid"))


def postmaster_of(data_dir: Path) -> int:
    """Its process id, 0 while it has none."""
    try:
        return int(pid_file_of(data_dir).read_text().split("\n", 1)[0])
    except (StopIteration, ValueError, FileNotFoundError):
        return 0


async def wait_until_answering(postgres_url: str) -> None:
    """A server that recovers refuses connections for a moment."""
    async with asyncio.timeout(5):
        while True:
            try:
                await answer(postgres_url, "select 1")
            except (asyncpg.CannotConnectNowError, OSError):
                await asyncio.sleep(0.01)
            else:
                return
