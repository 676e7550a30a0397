"""Install extensions that are used where they are and not required, in the embedded server."""

from __future__ import annotations

from contextlib import suppress

from asyncpg.exceptions import PostgresError

from exai.db.driver.address import parse_address
from exai.db.driver.pool import connect

CONNECT_TIMEOUT_S = 10.0


async def install_vector(url: str) -> None:
    """Create the extension pgvector, if the server has it and it is not there yet. Raises `DatabaseUnavailable`."""
    connection = await connect(parse_address(url), timeout_s=CONNECT_TIMEOUT_S)
    try:
        # The server may lack it, or another process may create it at the same time. Nothing depends on it.
        with suppress(PostgresError):
            await connection.execute("create extension if not exists vector")
    finally:
        await connection.close()
