"""Many conversations, stored with one statement."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import asyncpg


async def insert_conversations(url: str, named: Iterable[tuple[str, Mapping[str, Any]]], owner: str = "local") -> None:
    """Store conversations without messages by name and metadata, each made a millisecond after the one before it."""
    names, metadata = zip(*((name, json.dumps(facts)) for name, facts in named), strict=True)
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(
            "insert into public.conversations (owner, continuation_id, metadata, created_at, updated_at)"
            " select $1, n, m::jsonb, t, t from (select n, m, now() - interval '1 day' + o * interval '1 ms' as t"
            " from unnest($2::text[], $3::text[]) with ordinality x(n, m, o)) made",
            owner,
            list(names),
            list(metadata),
        )
    finally:
        await connection.close()
