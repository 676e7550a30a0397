"""Migrating in tests: step by step, down again, as the command line does it; and databases of the older system."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from alembic import command
from alembic.script import ScriptDirectory

from exai.db.driver.address import parse_address
from exai.db.driver.pool import OneTrip, connect
from exai.db.migrations.migrate import migration_config

ROLE_PASSWORD: Final = "of-a-role"


def revisions() -> list[str]:
    """All of them, oldest first."""
    scripts = ScriptDirectory.from_config(migration_config())
    return [script.revision for script in reversed(list(scripts.walk_revisions()))]


def named(name: str) -> str:
    """The revision whose file is called `NNNN_NAME.py`."""
    scripts = ScriptDirectory.from_config(migration_config())
    (found,) = (each.revision for each in scripts.walk_revisions() if Path(each.path).stem.split("_", 1)[1] == name)
    return found


def before(name: str) -> str:
    """The revision that the one of this name follows."""
    known = revisions()
    return known[known.index(named(name)) - 1]


async def downgrade(url: str, revision: str) -> None:
    config = migration_config()
    config.attributes["url"] = url
    await asyncio.to_thread(command.downgrade, config, revision)


@asynccontextmanager
async def session(url: str) -> AsyncIterator[OneTrip]:
    connection = await connect(parse_address(url), timeout_s=5)
    try:
        yield connection
    finally:
        await connection.close()


async def run(url: str, *statements: str) -> None:
    async with session(url) as connection:
        for statement in statements:
            await connection.execute(statement)


def create_role(role: str) -> tuple[str, str]:
    """Return the statements that create a role whose address is `as_role`, if it does not exist."""
    return (
        f"do $$ begin create role {role}; exception when duplicate_object then null; end $$",
        f"alter role {role} login password '{ROLE_PASSWORD}'",
    )


def as_role(url: str, role: str) -> str:
    """The same database as a role of `create_role`, also on a server that asks for passwords."""
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{role}:{ROLE_PASSWORD}@{place}"))


async def value(url: str, query: str, *args: object) -> Any:
    async with session(url) as connection:
        return await connection.fetchval(query, *args)
