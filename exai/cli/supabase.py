"""Implements `exai supabase`: the rights of Supabase's roles on EXAI's tables, and its Realtime."""

from __future__ import annotations

import argparse

from exai.cli.command import OK, read_settings, run
from exai.db.supabase import grant
from exai.errors import ConfigError


def supabase(options: argparse.Namespace) -> int:
    """Grant, and print what was granted."""
    settings = read_settings(errors_only=True)
    url = settings.database.migration_url or settings.database.url
    if url is None:
        raise ConfigError("EXAI_DATABASE__URL", "is not set", "Set it to the address of the Supabase project")
    granted = run(
        grant(
            url.get_secret_value(),
            anonymous=settings.server.jwt.allow_anonymous,
            adopted=options.adopted,
            realtime=not options.no_realtime,
        )
    )
    print(f"granted    {', '.join(granted.roles) or 'no role of Supabase exists here, nor exai_app'}")
    print(f"realtime   {', '.join(granted.realtime) or 'off'}")
    return OK
