"""A Postgres of its own that asks for a password, which the servers of the suite do not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit

import asyncpg

from exai.embedded.launcher import start_embedded

ROLE = "asked"


@asynccontextmanager
async def password_postgres(data_dir: Path) -> AsyncIterator[Callable[[str], str]]:
    """Start it; the result makes the URL for a given password, of which `right` is right."""
    async with start_embedded(data_dir, valkey=False, durable=False) as embedded:
        assert embedded.postgres_url is not None
        connection = await asyncpg.connect(embedded.postgres_url)
        try:
            await connection.execute(f"create role {ROLE} login password 'right'")
            rules = Path(await connection.fetchval("show hba_file"))
            rules.write_text(f"local all {ROLE} scram-sha-256\n{rules.read_text()}")
            await connection.execute("select pg_reload_conf()")
        finally:
            await connection.close()
        parts = urlsplit(embedded.postgres_url)

        def url(password: str) -> str:
            return f"postgresql://{ROLE}:{quote(password)}@{parts.path}?{parts.query}"

        yield url
