"""Implements `exai migrate`."""

from __future__ import annotations

import argparse
import sys
from typing import Final

from exai.backends import not_reached
from exai.cli.command import OK, read_settings, run
from exai.db.diagnose import may_create
from exai.db.migrations.revision import expected_revision, known_revisions, revision_at
from exai.errors import DatabaseUnavailable
from exai.program import program
from exai.settings.load import Settings

PENDING: Final = 4
"""The exit status of `--check` if the database is not at the revision of this release."""


def migrate(options: argparse.Namespace) -> int:
    """Migrate the configured database, or with `--check` only say what would be done."""
    settings = read_settings()
    url = settings.database.migration_url or settings.database.url
    if url is None:
        print(
            "No database address is configured (EXAI_DATABASE__URL, SUPABASE_DB_URL or DATABASE_URL).\n"
            f"The embedded Postgres in {settings.data_dir} is migrated by `{program()} serve` whenever it starts."
        )
        return OK
    try:
        return run(_check(url.get_secret_value()) if options.check else _upgrade(url.get_secret_value()))
    except DatabaseUnavailable as error:
        raise not_reached(url.get_secret_value(), _setting(settings), error) from error


def _setting(settings: Settings) -> str:
    return "EXAI_DATABASE__MIGRATION_URL" if settings.database.migration_url else "EXAI_DATABASE__URL"


async def _upgrade(url: str) -> int:
    from exai.db.migrations.migrate import upgrade

    await upgrade(url)
    print(f"the database is at revision {expected_revision()}")
    for finding in await may_create(url):
        print(f"warning: {finding.detail}. {finding.cure}", file=sys.stderr)
    return OK


async def _check(url: str) -> int:
    found = await revision_at(url)
    pending = [revision for revision in known_revisions() if revision > found]
    if not pending:
        print(f"the database is at revision {found}, no migration is pending")
        return OK
    state = f"at revision {found}" if found else "not migrated"
    print(f"the database is {state}, {len(pending)} migrations are pending: {', '.join(pending)}")
    return PENDING
