"""An S3 server of its own process: moto's, which `make test` installs. Tests that need it are skipped without it."""

from __future__ import annotations

import asyncio
import shutil
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from exai.settings.load import S3Settings

ROOT = Path(__file__).resolve().parents[2]
STARTED = b"Running on http://"


def _program() -> str:
    """Return the server's program, or skip the test."""
    found = ROOT / ".venv" / "s3" / "bin" / "moto_server"
    program = str(found) if found.is_file() else shutil.which("moto_server", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("no S3 server: `make .venv/s3/done` installs moto's")
    if find_spec("obstore") is None:
        pytest.skip("no S3 client: the extra `s3` is not installed")
    return program


@asynccontextmanager
async def s3_server() -> AsyncIterator[str]:
    """Run the server and yield its address."""
    program = _program()
    process = await asyncio.create_subprocess_exec(
        program, "-H", "127.0.0.1", "-p", "0", stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        while STARTED not in (line := await process.stderr.readline()):
            assert line, "the S3 server ended"
        reading = asyncio.create_task(_drain(process.stderr))
        yield line.partition(b"Running on ")[2].strip().decode()
        reading.cancel()
    finally:
        process.kill()
        await process.wait()


async def _drain(stream: asyncio.StreamReader) -> None:
    while await stream.read(65_536):
        pass


@asynccontextmanager
async def s3_bucket() -> AsyncIterator[S3Settings]:
    """Run the server with a new bucket, and yield the settings for it."""
    async with s3_server() as url:
        name = f"exai-{uuid.uuid4().hex[:12]}"
        async with httpx.AsyncClient() as client:
            (await client.put(f"{url}/{name}")).raise_for_status()
        yield S3Settings.model_validate(
            {"bucket": name, "endpoint": url, "access_key_id": "test", "secret_access_key": "secret-of-the-test"}
        )
