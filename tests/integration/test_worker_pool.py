"""The worker pool replaces and stops workers; a small program stands in for them."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from exai.background import open_background
from exai.daemon.workers import WorkerPool
from exai.settings.load import load_settings

WAIT_S = 5.0
WORKER = """
import json, pathlib, signal, socket, sys, time
control = socket.socket(fileno=int(sys.argv[sys.argv.index("--control") + 1]))
gate = pathlib.Path(sys.argv[1])
while not gate.exists():
    time.sleep(0.005)
if gate.read_text() == "refuse":
    sys.exit(1)
facts = dict.fromkeys(("host", "database", "cache", "files"), "")
control.send(json.dumps({**facts, "port": 1, "providers": [], "notes": []}).encode() + b"\\n")
signal.pause() if gate.read_text() == "deaf" else control.recv(1)
"""


class Rig:
    """Two workers; those that start later wait for the gate."""

    def __init__(self, pool: WorkerPool, gate: Path) -> None:
        self.pool, self.gate = pool, gate
        self.first = next(iter(pool._workers))
        self.watches = set(pool._watches)

    async def first_dies_while_its_successor_starts(self) -> asyncio.Task[None]:
        """Return the task of the replacement, which continues when the gate exists again."""
        self.gate.unlink()
        roll = asyncio.create_task(self.pool.roll())
        async with asyncio.timeout(WAIT_S):
            while len(self.pool._workers) < 3:
                await asyncio.sleep(0)
            self.first.signal(signal.SIGKILL)
            await self.first.wait()
        return roll


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with opened(tmp_path / "gate") as made:
        yield made


@asynccontextmanager
async def opened(gate: Path, says: str = "") -> AsyncIterator[Rig]:
    gate.write_text(says)
    async with opened_pool(gate) as pool:
        async with asyncio.timeout(WAIT_S):
            started, _ = await pool.start(2)
        assert started is not None
        yield Rig(pool, gate)


@asynccontextmanager
async def opened_pool(gate: Path, program: str = WORKER) -> AsyncIterator[WorkerPool]:
    async with open_background() as background:
        pool = WorkerPool(load_settings({}), (), {}, (sys.executable, "-c", program, str(gate)), background=background)
        try:
            yield pool
        finally:
            await pool.stop()


async def test_a_worker_that_is_killed_before_its_replacement_message_has_ended(
    tmp_path: Path,
) -> None:
    """Unread data makes the end of its control socket a reset connection."""
    async with opened(tmp_path / "gate", "deaf") as rig:
        rig.first.retire()
        rig.first.signal(signal.SIGKILL)
        async with asyncio.timeout(WAIT_S):
            await rig.first.wait()


async def test_a_worker_that_dies_while_its_successor_starts_is_replaced_once(rig: Rig) -> None:
    """Both who replaces all and who watches over the dead one would else start another."""
    roll = await rig.first_dies_while_its_successor_starts()
    rig.gate.touch()
    async with asyncio.timeout(WAIT_S):
        await roll
        await asyncio.wait(rig.watches)
    assert len(rig.pool._workers) == 2
    assert rig.first not in rig.pool._workers


async def test_a_worker_that_dies_beside_a_successor_that_cannot_start_is_started_again(rig: Rig) -> None:
    """The new configuration is wrong; the number of workers is restored when it is corrected."""
    roll = await rig.first_dies_while_its_successor_starts()
    rig.gate.with_suffix(".new").write_text("refuse")
    rig.gate.with_suffix(".new").rename(rig.gate)
    async with asyncio.timeout(WAIT_S):
        await roll
        rig.gate.write_text("")
        while len(rig.pool._workers) < 2:
            await asyncio.sleep(0.005)


async def test_a_stop_while_workers_are_replaced_is_no_error(rig: Rig) -> None:
    """The successor ends because it is told to, not because it could not start."""
    rig.gate.unlink()
    with capture_logs() as lines:
        roll = asyncio.create_task(rig.pool.roll())
        async with asyncio.timeout(WAIT_S):
            while len(rig.pool._workers) < 3:
                await asyncio.sleep(0)
            await rig.pool.stop()
            await roll
    assert [line for line in lines if line["log_level"] == "error"] == []


async def test_later_worker_that_cannot_start_is_tried_again_and_the_first_serves(tmp_path: Path) -> None:
    """Postgres or Redis may be away for the moment in which it starts."""
    gate = tmp_path / "gate"
    gate.write_text("")
    # The first one that finds the gate shuts it to the next.
    program = WORKER.replace(
        "control.send(", 'gate.with_suffix(".shut").exists() or gate.write_text("refuse")\ncontrol.send('
    )
    async with opened_pool(gate, program) as pool, asyncio.timeout(3 * WAIT_S):
        started, status = await pool.start(2)
        assert started is not None
        assert status == 0
        gate.with_suffix(".shut").touch()
        gate.write_text("")
        while len(running := [each for each in pool._workers if each.process.poll() is None]) < 2:
            await asyncio.sleep(0.005)
        assert all([await each.wait_started() for each in running])


async def test_settings_that_let_no_worker_start_end_it(tmp_path: Path) -> None:
    """The first worker decides whether they are right."""
    gate = tmp_path / "gate"
    gate.write_text("refuse")
    async with opened_pool(gate) as pool:
        assert await pool.start(2) == (None, 1)
