"""A program that does what lines on its standard input ask for: one JSON line in, one out.

Invariant: only the standard library is imported, so that a program runs in the environment of what it measures.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
START_LIMIT_S = 120.0
ANSWER_LIMIT_S = 600.0


class WorkerProcess:
    """The program, as seen by the process that started it; `first` is the line that it begins with."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.first: Any = None

    async def ask(self, **asked: Any) -> Any:
        """Send one line and return the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked).encode() + b"\n")
        return await self.answer(ANSWER_LIMIT_S)

    async def answer(self, limit_s: float) -> Any:
        """Read one line."""
        assert self._process.stdout is not None
        async with asyncio.timeout(limit_s):
            line = await self._process.stdout.readline()
        if not line:
            raise SystemExit("the process with the other stores ended; its traceback is above")
        return json.loads(line)


@asynccontextmanager
async def open_worker(python: str, program: Sequence[str], plan: Any) -> AsyncIterator[WorkerProcess]:
    """Start a program with its plan as the last argument, wait for its first line, and end it with its input."""
    process = await asyncio.create_subprocess_exec(
        *(python, *program, json.dumps(plan)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    try:
        worker = WorkerProcess(process)
        worker.first = await worker.answer(START_LIMIT_S)
        yield worker
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(START_LIMIT_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def serve(worker: Any, first: Any) -> None:
    """Say the first line, and call the methods that lines name as `do`, until the input ends."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    say(first)
    while line := await reader.readline():
        asked = json.loads(line)
        say(await getattr(worker, asked.pop("do"))(**asked))


def say(answer: Any) -> None:
    """Write one line."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
