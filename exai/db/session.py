"""The settings a session works with, whatever the role or the database sets.

Only a direct connection can be given settings: behind a pooler they would reach some other client's session. There the
functions carry the settings they rely on, the statements name everything with its schema, and transactions ask
for their isolation level where the default is another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import orjson

from exai.db.connections import OneTrip

SETTINGS: Final[Mapping[str, str]] = {
    # A function that waits for a lock and then reads has to see what was committed meanwhile.
    "default_transaction_isolation": "read committed",
    "standard_conforming_strings": "on",
    "TimeZone": "UTC",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "bytea_output": "hex",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "transaction_timeout": "0",
}
"""Those that the server does not know are left out. `search_path` is not among them: triggers that others have put on
the tables may rely on it. The statements and functions name everything with its schema instead."""

SAFE_PATH: Final = "pg_catalog, pg_temp"
"""A function in another schema can match the arguments better than the one that is meant (CVE-2018-1058)."""

SETTLE: Final = """
select (pg_catalog.pg_backend_pid() = $1::int)::bool as is_direct,
       pg_catalog.current_setting('default_transaction_isolation')::text as isolation,
       (select pg_catalog.count(pg_catalog.set_config(s.name, v.value, false))
          from pg_catalog.jsonb_each_text($2::text::jsonb) v(name, value)
          join pg_catalog.pg_settings s on s.name = v.name
         where pg_catalog.pg_backend_pid() = $1::int)::bigint as settings"""
"""A pooler gives its clients made-up backend ids, so only on a direct connection the ids agree."""

WITHIN: Final = """
select pg_catalog.count(pg_catalog.set_config(s.name, v.value, true))::bigint
  from pg_catalog.jsonb_each_text($1::text::jsonb) v(name, value)
  join pg_catalog.pg_settings s on s.name = v.name"""
"""The same for the rest of one transaction, on any connection."""


async def settle(connection: OneTrip, **more: str) -> bool:
    """Apply `SETTINGS` and `more` to a direct connection, in one round trip; a pooler's is left as it is.

    Returns whether its transactions are read committed unless they ask for something else.
    """
    row = await connection.fetchrow(SETTLE, connection.get_server_pid(), encoded(**more))
    assert row is not None  # noqa: S101 - a select without a table always has one row
    return bool(row["is_direct"]) or row["isolation"] == "read committed"


def encoded(**more: str) -> str:
    """Return `SETTINGS` and `more` as the statements above take them."""
    return orjson.dumps({**SETTINGS, **more}).decode()
