"""Compares the database's revision with the one this release was written for.

A database may be ahead: migrations run while the previous release is still live. It may not be behind.
"""

from __future__ import annotations

import re
from typing import Final

from exai.db.migrate import scripts_directory
from exai.db.pool import Database
from exai.db.translate import DEPENDENCY, MIGRATE
from exai.errors import SchemaMismatch

_NAME: Final = re.compile(r"^(\d{4})_\w+\.py$")


def expected_revision() -> str:
    """The newest revision of this installation."""
    names = (_NAME.match(entry.name) for entry in (scripts_directory() / "versions").iterdir())
    return max(match.group(1) for match in names if match)


async def check_revision(database: Database) -> str:
    """The database's revision, which is ours or a later one.

    Raises:
        SchemaMismatch: it is behind, or was never migrated.
        DatabaseError: it cannot be asked.

    """
    rows = await database.fetch("revision")
    found = str(rows[0]["revision"]) if rows else ""
    expected = expected_revision()
    if found < expected:
        state = f"at revision {found}" if found else "not migrated"
        raise SchemaMismatch(DEPENDENCY, f"the database is {state}, this release needs {expected}", MIGRATE)
    return found
