"""Apply EXAI's session settings, overriding those of the role and the database.

Settings are applied to direct connections only: behind a pooler they would change the session of another client. There
functions carry the settings they rely on, statements qualify every name with its schema, and transactions set their
isolation level if the default is not read committed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import orjson

from exai.db.driver.connections import OneTrip

SETTINGS: Final[Mapping[str, str]] = {
    # A function that reads after waiting for a lock must see rows committed during the wait.
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
"""Settings unknown to the server are skipped. `search_path` is not set, because users' triggers on the tables may rely
on it; statements and functions qualify every name with its schema instead."""

SAFE_PATH: Final = "pg_catalog, pg_temp"
"""A function in another schema can match the arguments better than the one that is meant (CVE-2018-1058)."""

SETTLE: Final = """
select (pg_catalog.pg_backend_pid() = $1::int)::bool as is_direct,
       pg_catalog.current_setting('default_transaction_isolation')::text as isolation,
       (select pg_catalog.count(pg_catalog.set_config(s.name, v.value, false))
          from pg_catalog.jsonb_each_text($2::text::jsonb) v(name, value)
          join pg_catalog.pg_settings s on s.name = v.name
         where pg_catalog.pg_backend_pid() = $1::int)::bigint as settings"""
"""A pooler reports made-up backend ids to its clients, so the ids agree on a direct connection only."""

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
