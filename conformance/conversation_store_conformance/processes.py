"""Writers in processes of their own, to kill and to run side by side."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from conversation_store_conformance.world import NotApplicable, Violation, World

START_LIMIT_S = 60.0
LIMIT_S = 60.0


@asynccontextmanager
async def _writer(
    world: World, name: str, writer: str, batches: int, size: int
) -> AsyncIterator[asyncio.subprocess.Process]:
    if world.spec is None:
        raise NotApplicable("the store's opener cannot be imported by another process: give it as MODULE:NAME")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "conversation_store_conformance.writer",
        json.dumps([world.spec, world.place, name, writer, batches, size]),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def writers(world: World, name: str, *, count: int, batches: int, size: int) -> None:
    """Run writers at the same time to their end."""

    async def write(number: int) -> None:
        async with _writer(world, name, str(number), batches, size) as process:
            await _acknowledged(process, "ready")
            ready.append(number)
            if len(ready) == count:
                go.set()
            await go.wait()
            _begin(process)
            for _ in range(batches):
                await _acknowledged(process)

    ready: list[int] = []
    go = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(write(number))


async def killed_writer(world: World, name: str, *, size: int, after: int) -> list[str]:
    """Kill a writer that has acknowledged `after` batches and writes on; return the acknowledged texts."""
    async with _writer(world, name, f"w{world.random.getrandbits(32)}", 1_000_000, size) as process:
        await _acknowledged(process, "ready")
        _begin(process)
        texts: list[str] = []
        for _ in range(after):
            texts += json.loads(await _acknowledged(process))
        # Somewhere within one of the next appends.
        await asyncio.sleep(world.random.random() / 100)
        process.kill()
        while line := await process.stdout.readline() if process.stdout else b"":
            if line.endswith(b"\n"):
                texts += json.loads(line)
        return texts


def _begin(process: asyncio.subprocess.Process) -> None:
    assert process.stdin is not None
    process.stdin.write(b"\n")


async def _acknowledged(process: asyncio.subprocess.Process, wanted: str = "") -> str:
    assert process.stdout is not None
    async with asyncio.timeout(START_LIMIT_S if wanted else LIMIT_S):
        line = (await process.stdout.readline()).decode().strip()
    if not line or (wanted and line != wanted):
        error = (await process.stderr.read()).decode()[-2_000:] if process.stderr else ""
        raise Violation(f"a writer in a process of its own failed: {error.strip() or line}")
    return line
