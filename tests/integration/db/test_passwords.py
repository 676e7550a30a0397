"""A pooler that refuses a password just after it was changed, and one that goes on refusing it."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from exai.db.driver.address import parse_address
from exai.db.driver.passwords import PasswordRetry
from exai.db.driver.pool import connect, open_pool
from exai.errors import DatabaseUnavailable
from exai.settings.load import DatabaseSettings
from tests.support.counters import Counters
from tests.support.pg_proxy import through

pytestmark = pytest.mark.direct

FIELDS = b"SFATAL\0C28P01\0Mpassword authentication failed\0\0"
REFUSAL = b"E" + struct.pack("!I", len(FIELDS) + 4) + FIELDS
SSL_REQUEST = 80877103


class Refusing:
    """Between a client and Postgres: refuses the first `refusals` connections."""

    def __init__(self, url: str, refusals: int) -> None:
        self.asked = 0
        self._refusals, self._address = refusals, parse_address(url)
        self._upstream = url

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            size = struct.unpack("!I", await reader.readexactly(4))[0]
            body = await reader.readexactly(size - 4)
            if struct.unpack("!I", body[:4])[0] == SSL_REQUEST:
                writer.write(b"N")
                size = struct.unpack("!I", await reader.readexactly(4))[0]
                body = await reader.readexactly(size - 4)
            self.asked += 1
            if self.asked <= self._refusals:
                writer.write(REFUSAL)
                await writer.drain()
                return
            [(host, port)] = self._address.hosts
            there, back = (
                await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
                if host.startswith("/")
                else await asyncio.open_connection(host, port)
            )
            back.write(struct.pack("!I", size) + body)
            try:
                await asyncio.gather(pump(reader, back), pump(there, writer))
            finally:
                back.close()
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


@asynccontextmanager
async def refusing(url: str, refusals: int) -> AsyncIterator[tuple[str, Refusing]]:
    server = Refusing(url, refusals)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    try:
        yield through(url, listening.sockets[0].getsockname()[1]), server
    finally:
        listening.close()


async def test_a_refused_password_is_tried_once_more(postgres_url: str) -> None:
    """Supavisor has the old one for a moment."""
    async with refusing(postgres_url, 1) as (url, server):
        connection = await connect(parse_address(url), timeout_s=5)
        assert await connection.fetchval("select 1") == 1
        connection.terminate()
    assert server.asked == 2


async def test_a_wrong_password_is_not_tried_again_and_again(postgres_url: str) -> None:
    """A pooler locks out a client that does that."""
    async with refusing(postgres_url, 1_000) as (url, server):
        with pytest.raises(DatabaseUnavailable, match="28P01"):
            await connect(parse_address(url), timeout_s=5)
        assert server.asked == 2
        with pytest.raises(DatabaseUnavailable, match="28P01"):
            async with open_pool(DatabaseSettings(pool_size=6), recorder=Counters(), url=url):
                pass
        assert server.asked <= 2 + 6 + 1


async def test_a_pool_opens_when_the_pooler_knows_the_password(postgres_url: str) -> None:
    """All of its first connections were refused."""
    async with (
        refusing(postgres_url, 3) as (url, server),
        open_pool(DatabaseSettings(pool_size=3), recorder=Counters(), url=url) as database,
    ):
        assert (await database.fetch("ping"))[0]["one"] == 1
        assert server.asked == 6


async def test_silence_after_the_second_refusal_ends(postgres_url: str) -> None:
    """The password may be corrected on the server's side."""
    now = 0.0
    async with refusing(postgres_url, 2) as (url, server):
        retry = PasswordRetry(lambda: now)

        async def attempt() -> object:
            import asyncpg

            return await asyncpg.connect(url)

        for _ in range(3):
            with pytest.raises(Exception, match="password"):
                await retry.open(attempt)  # type: ignore[arg-type]
        assert server.asked == 2
        now = 61.0
        connection = await retry.open(attempt)  # type: ignore[arg-type]
        connection.terminate()
