"""A cache that accepts its first connections later than the time limit of a command."""

from __future__ import annotations

import asyncio
from pathlib import Path

from pydantic import SecretStr

from exai.app import open_app
from exai.settings.load import CacheSettings, DatabaseSettings, Settings
from tests.integration.conversations.conftest import redis_address


async def test_start_waits_for_a_slow_first_connection(postgres_url: str, redis_url: str, tmp_path: Path) -> None:
    """Two connections are accepted and never answered; the application starts with the third."""
    silent = 0
    writers: list[asyncio.StreamWriter] = []
    address = redis_address(redis_url)
    pumps: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal silent
        writers.append(writer)
        if silent < 2:
            silent += 1
            return
        if isinstance(address, str):
            upstream = await asyncio.open_unix_connection(address)
        else:
            upstream = await asyncio.open_connection(*address)
        writers.append(upstream[1])
        for ends in ((reader, upstream[1]), (upstream[0], writer)):
            task = asyncio.create_task(pump(*ends))
            pumps.add(task)
            task.add_done_callback(pumps.discard)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    settings = Settings(
        database=DatabaseSettings(url=SecretStr(postgres_url), pool_size=2),
        cache=CacheSettings(url=SecretStr(f"redis://127.0.0.1:{port}/0")),
        data_dir=tmp_path,
    )
    async with server:
        async with open_app(settings) as app:
            assert (await app.cache.status()).state != "down"
        assert silent == 2
        # Since Python 3.12 a server waits for its connections.
        for writer in writers:
            writer.close()
    await asyncio.gather(*pumps)
