"""An S3 server of its own process: moto's, which `make test` installs. Tests that need it are skipped without it."""

from __future__ import annotations

import asyncio
import atexit
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from exai.settings.load import S3Settings

ROOT = Path(__file__).resolve().parents[2]
STARTED = re.compile(r"Running on (http://\S+)")
START_LIMIT_S = 60.0


def _program() -> str:
    """Return the server's program, or skip the test."""
    found = ROOT / ".venv" / "s3" / "bin" / "moto_server"
    program = str(found) if found.is_file() else shutil.which("moto_server", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("no S3 server: `make .venv/s3/done` installs moto's")
    if find_spec("obstore") is None:
        pytest.skip("no S3 client: the extra `s3` is not installed")
    return program


@cache
def s3_server() -> str:
    """Run the server until this process ends, and return its address; each test has a bucket of its own."""
    log = tempfile.NamedTemporaryFile(prefix="exai-s3-")
    process = subprocess.Popen([_program(), "-H", "127.0.0.1", "-p", "0"], stdout=subprocess.DEVNULL, stderr=log)

    def end() -> None:
        process.kill()
        process.wait()
        log.close()

    atexit.register(end)
    deadline = time.monotonic() + START_LIMIT_S
    while not (found := STARTED.search(Path(log.name).read_text())):
        assert process.poll() is None, "the S3 server ended"
        assert time.monotonic() < deadline, "the S3 server did not start"
        time.sleep(0.02)
    return found[1]


class HoldingProxy:
    """Stands before an HTTP server and forwards each request on a connection of its own.

    `stop_at` names one by its number, counted from 1: it is held when it has arrived whole, or with True when the
    server has answered it, and never goes on. `held` is set then.
    """

    def __init__(self, server_url: str) -> None:
        parts = urlsplit(server_url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self.stop_at: tuple[int, bool] | None = None
        self.asked = 0
        self.held = asyncio.Event()
        self.url = ""

    def stop(self, step: int, *, is_done: bool) -> None:
        """Hold the request with this number from now on."""
        self.asked, self.stop_at = 0, (step, is_done)
        self.held.clear()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[HoldingProxy]:
        """Listen while the block runs."""
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20) as server:
            self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            yield self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            found = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
            body = await reader.readexactly(int(found[1])) if found else b""
            self.asked += 1
            number = self.asked
            await self._hold(reader, number, is_done=False)
            answer = await self._forwarded(head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1) + body)
            await self._hold(reader, number, is_done=True)
            writer.write(answer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _hold(self, reader: asyncio.StreamReader, number: int, *, is_done: bool) -> None:
        if self.stop_at == (number, is_done):
            self.held.set()
            # Ends with the client.
            await reader.read()
            raise ConnectionAbortedError

    async def _forwarded(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        writer.write(request)
        await writer.drain()
        answer = await reader.read()
        writer.close()
        return answer


@asynccontextmanager
async def s3_bucket() -> AsyncIterator[S3Settings]:
    """Make a new bucket, and yield the settings for it."""
    _program()
    url = await asyncio.to_thread(s3_server)
    name = f"exai-{uuid.uuid4().hex[:12]}"
    async with httpx.AsyncClient() as client:
        (await client.put(f"{url}/{name}")).raise_for_status()
    yield S3Settings.model_validate(
        {"bucket": name, "endpoint": url, "access_key_id": "test", "secret_access_key": "secret-of-the-test"}
    )
