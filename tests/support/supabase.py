"""What Supabase has on a Postgres around EXAI's tables: roles, default privileges, publication, and tokens' claims.

As the init scripts of supabase/postgres make it; `REALTIME` stands for the part of Realtime that lives in the database.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from exai.db.driver.pool import OneTrip

API_ROLES: Final = ("anon", "authenticated", "service_role")
APP_ROLE: Final = "exai_app"
KINDS: Final = {
    "anon": "nologin noinherit",
    "authenticated": "nologin noinherit",
    "service_role": "nologin noinherit bypassrls",
    "authenticator": "login noinherit password 'authenticator'",
    APP_ROLE: "login password 'exai_app'",
}
ROLES: Final = (
    *(
        f"do $$ begin create role {role} {kind}; exception when duplicate_object then null; end $$"
        for role, kind in KINDS.items()
    ),
    # Other tests create roles of these names without their attributes.
    "alter role service_role bypassrls",
    "grant anon, authenticated, service_role to authenticator",
)
SURROUNDINGS: Final = (
    "grant usage on schema public to anon, authenticated, service_role",
    *(
        f"alter default privileges in schema public grant all on {kind} to anon, authenticated, service_role"
        for kind in ("tables", "functions", "sequences")
    ),
    "create publication supabase_realtime",
)
REALTIME: Final = (
    "create schema realtime",
    "create table realtime.messages (topic text not null, extension text not null, payload jsonb, event text,"
    " private boolean default false, inserted_at timestamp not null default now(),"
    " id uuid not null default gen_random_uuid())",
    "alter table realtime.messages enable row level security",
    "create function realtime.topic() returns text language sql stable as"
    " $$ select nullif(current_setting('realtime.topic', true), '')::text $$",
    "create function realtime.send(payload jsonb, event text, topic text, private boolean default true) returns void"
    " language plpgsql as $$ begin insert into realtime.messages (payload, event, topic, private, extension)"
    " values (payload, event, topic, private, 'broadcast'); end $$",
    "grant usage on schema realtime to authenticated",
    "grant select on realtime.messages to authenticated",
)


async def make_supabase(connection: OneTrip) -> None:
    """Create the roles of the server, and what the database has before EXAI is installed."""
    for statement in (*ROLES, *SURROUNDINGS):
        await connection.execute(statement)


@asynccontextmanager
async def acting(connection: OneTrip, role: str, **claims: object) -> AsyncIterator[None]:
    """Be `role` with a token's claims for the length of the block, as PostgREST is; what is written is kept."""
    async with connection.transaction():
        await connection.execute("select set_config('request.jwt.claims', $1::text, true)", json.dumps(claims))
        await connection.execute(f"set local role {role}")
        yield
        await connection.execute("reset role")
