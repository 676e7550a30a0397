"""Compares the database's revision with the one this release was written for.

A database may be ahead: migrations run while the previous release is still live. It may not be behind.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Final

from exai.db.driver.address import parse_address
from exai.db.driver.pool import Database, OneTrip, connect
from exai.db.driver.translate import DEPENDENCY, MIGRATE
from exai.errors import SchemaMismatch

CONNECT_LIMIT_S: Final = 5.0

IS_MIGRATED: Final = "select (pg_catalog.to_regclass('exai.alembic_version') is not null)::bool"
REVISION: Final = "select pg_catalog.max(version_num)::text from exai.alembic_version"

_NAME: Final = re.compile(r"^(\d{4})_\w+\.py$")


def scripts_directory() -> Path:
    """Where `env.py` is."""
    here = Path(__file__).resolve().parents[1]
    installed, checkout = here / "alembic", here.parents[1] / "alembic"
    return installed if installed.is_dir() else checkout


def expected_revision() -> str:
    """The newest revision of this installation."""
    return known_revisions()[-1]


@functools.cache
def known_revisions() -> tuple[str, ...]:
    """All revisions of this installation, the oldest first, as they are when a process first asks.

    A newer release that is unpacked beside a running process does not change what the process needs.
    """
    names = (_NAME.match(entry.name) for entry in (scripts_directory() / "versions").iterdir())
    return tuple(sorted(match.group(1) for match in names if match))


async def check_revision(database: Database) -> str:
    """The database's revision, which is ours or a later one.

    Raises:
        SchemaMismatch: it is behind, or was never migrated.
        DatabaseError: it cannot be asked.

    """
    rows = await database.fetch("revision")
    found = str(rows[0]["revision"]) if rows else ""
    if found < expected_revision():
        raise _behind(found)
    return found


async def found_revision(connection: OneTrip) -> str:
    """The revision of a database that may never have been migrated, and then is at an empty one."""
    if not await connection.fetchval(IS_MIGRATED):
        return ""
    return await connection.fetchval(REVISION) or ""


async def revision_at(url: str) -> str:
    """The revision of the database at `url`, empty if it was never migrated.

    Raises:
        DatabaseError: the database cannot be asked.

    """
    connection = await connect(parse_address(url), timeout_s=CONNECT_LIMIT_S)
    try:
        return await found_revision(connection)
    finally:
        connection.terminate()


async def explain_mismatch(url: str, error: SchemaMismatch) -> SchemaMismatch:
    """Return the revision as the reason why a statement does not fit the database at `url`, or `error` if it is not.

    Raises:
        DatabaseError: the database cannot be asked any more.

    """
    found = await revision_at(url)
    return _behind(found) if found < expected_revision() else error


def _behind(found: str) -> SchemaMismatch:
    state = f"at revision {found}" if found else "not migrated"
    return SchemaMismatch(DEPENDENCY, f"the database is {state}, this release needs {expected_revision()}", MIGRATE)
