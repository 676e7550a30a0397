"""Reads of a conversation through a daemon, idle and beside streaming chats, by clients in processes of their own.

Invariant: daemon, provider, chats and the reader are five processes of which only the daemon is measured, and all rows
belong to the owner of the bench.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from exai.bench.chat.client import CHAT, READ
from exai.bench.chat.pages import OPEN
from exai.bench.chat.provider import HOST, STEADY, ask_provider
from exai.bench.floors.postgres import OWNER
from exai.errors import StartupError
from exai.models import ContinuationId

START_TIMEOUT_S: Final = 60.0
STREAMING_TIMEOUT_S: Final = 60.0
END_TIMEOUT_S: Final = 40.0
POLL_S: Final = 0.05

UNHINDERED: Final = {
    "EXAI_SERVER__OWNER_REQUESTS_PER_S": "1e9",
    "EXAI_SERVER__OWNER_BYTES_PER_S": "1000000000000",
    "EXAI_SERVER__CALL_DEADLINES": '{"*": 600}',
}
"""All clients belong to one owner, and one that calls without a pause exceeds what an owner may send."""


@dataclass(frozen=True, slots=True)
class ReadTimes:
    """Seconds of reads without and beside chats, and the words a second that the provider sent meanwhile."""

    idle: list[float]
    beside: list[float]
    words_s: float


@dataclass(frozen=True, slots=True)
class BenchDaemon:
    """A daemon with one owner; `port` is on `HOST`."""

    port: int
    token: str

    def task(self, kind: str, **facts: Any) -> dict[str, Any]:
        """Return what a client of it is given."""
        return {"kind": kind, "port": self.port, "token": self.token, **facts}


async def read_beside_chats(
    settings: Mapping[str, str], provider_port: int, name: ContinuationId, *, streams: int, reads: int
) -> ReadTimes:
    """Measure reads of a conversation of the bench's owner. Raises `StartupError`."""
    async with open_daemon(settings) as daemon:
        reading = daemon.task(READ, name=name, reads=reads)
        idle = await _read(reading)
        async with _open_client(daemon.task(CHAT, models=STEADY, streams=streams)) as chats:
            await _all_stream(provider_port, streams, chats)
            before, began = await ask_provider(provider_port, "/words"), asyncio.get_running_loop().time()
            beside = await _read(reading)
            after, ended = await ask_provider(provider_port, "/words"), asyncio.get_running_loop().time()
    return ReadTimes(idle, beside, (after["words"] - before["words"]) / (ended - began))


async def read_beside_pages(
    settings: Mapping[str, str], name: ContinuationId, *, pages: Sequence[int], reads: int, rounds: int
) -> dict[int, list[float]]:
    """Measure reads of a conversation beside so many open pages, in turn in every round. Raises `StartupError`."""
    times: dict[int, list[float]] = {number: [] for number in pages}
    async with open_daemon(settings) as daemon:
        reading = daemon.task(READ, name=name, reads=max(reads // rounds, 2))
        for _ in range(rounds):
            for number in pages:
                async with _open_pages(daemon, name, number):
                    times[number] += await _read(reading)
    return times


@asynccontextmanager
async def _open_pages(daemon: BenchDaemon, name: ContinuationId, number: int) -> AsyncIterator[None]:
    if not number:
        yield
        return
    task = daemon.task("pages", name=name, pages=number)
    async with _open_client(task, "exai.bench.chat.pages") as client:
        assert client.stdout is not None  # noqa: S101 - asked for above
        async with asyncio.timeout(STREAMING_TIMEOUT_S):
            if await client.stdout.readline() != OPEN:
                raise StartupError("bench", "a page could not be opened", "See the output above")
        yield
        if client.returncode is not None:
            raise StartupError("bench", "a page was closed", "See the output above")


async def _all_stream(port: int, streams: int, chats: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(STREAMING_TIMEOUT_S):
        while (await ask_provider(port, "/words"))["streams"] < streams:
            if chats.returncode is not None:
                raise StartupError("bench", "a chat did not stream", "Run it with less other work")
            await asyncio.sleep(POLL_S)


async def _read(task: dict[str, Any]) -> list[float]:
    async with _open_client(task) as client:
        output, _ = await client.communicate()
    if not output:
        raise StartupError("bench", "the client that reads has ended", "See the output above")
    seconds: list[float] = json.loads(output)
    return seconds


@asynccontextmanager
async def _open_client(
    task: dict[str, Any], module: str = "exai.bench.chat.client"
) -> AsyncIterator[asyncio.subprocess.Process]:
    async with _open_process(module, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE) as process:
        assert process.stdin is not None  # noqa: S101 - asked for above
        process.stdin.write(json.dumps(task).encode() + b"\n")
        yield process


@asynccontextmanager
async def open_daemon(settings: Mapping[str, str]) -> AsyncIterator[BenchDaemon]:
    """Start `exai serve` with one owner, and wait until it accepts connections."""
    daemon = BenchDaemon(_free_port(), secrets.token_urlsafe(24))
    with tempfile.TemporaryDirectory(prefix="exai-bench-") as data:
        environment = {
            **os.environ,
            **settings,
            **UNHINDERED,
            "EXAI_DATA_DIR": data,
            "EXAI_SERVER__HOST": HOST,
            "EXAI_SERVER__PORT": str(daemon.port),
            "EXAI_SERVER__TOKENS": json.dumps({OWNER: daemon.token}),
        }
        silent = asyncio.subprocess.DEVNULL
        async with _open_process("exai", "serve", env=environment, stdout=silent, stderr=silent) as process:
            await _listening(daemon.port, process)
            yield daemon


@asynccontextmanager
async def _open_process(module: str, *arguments: str, **options: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", module, *arguments, **options)
    try:
        yield process
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        try:
            await asyncio.wait_for(process.wait(), END_TIMEOUT_S)
        except TimeoutError:
            process.kill()
            await process.wait()


async def _listening(port: int, process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(START_TIMEOUT_S):
            while process.returncode is None:
                try:
                    _, writer = await asyncio.open_connection(HOST, port)
                except OSError:
                    await asyncio.sleep(POLL_S)
                    continue
                writer.close()
                return
    raise StartupError("bench", "its daemon did not start", "Start `exai serve` with the same settings")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind((HOST, 0))
        port: int = found.getsockname()[1]
        return port
