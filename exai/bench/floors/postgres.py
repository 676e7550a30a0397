"""Minimal Postgres statements for the same rows: the lower bounds of `exai bench`.

Invariant: nothing stands between the caller and the driver: statements described once, in the driver's own
pool of connections like the service's, so that they too cost one round trip behind any pooler; plain rows out.
Everything made here belongs to the owner `OWNER` or lives in the schema `exai_bench`, and both are gone after
`remove_all`.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import asyncpg

from exai.db.driver.address import parse_address
from exai.db.driver.connections import Descriptions, OneTrip
from exai.db.driver.translate import judge
from exai.models import ContinuationId, FileId, Owner

OWNER: Final = Owner("exai-bench")
LIMIT_S: Final = 60.0
CONNECT_LIMIT_S: Final = 10.0

SET_UP: Final = """
create schema exai_bench;
create table exai_bench.messages (like public.messages including all);
create table exai_bench.conversation_files (like public.conversation_files including all);
"""
ANALYZE: Final = "analyze public.conversations, public.messages, public.turns, public.files"

REMOVE_SCHEMA: Final = "drop schema if exists exai_bench cascade"
REMOVE_ROWS: Final = (
    # In batches, so that each statement ends within its time limit.
    "delete from public.conversations where id in (select id from public.conversations where owner = $1 limit 5000)",
    "delete from public.files where owner = $1",
    # No cache holds this owner's conversations, so the record of their removal is not needed.
    "delete from exai.removed_conversations where owner = $1",
    "delete from exai.purged_turns where owner = $1",
)
MAKE_FILES: Final = """
insert into public.files (owner, sha256, size_bytes, media_type, name)
select $1, encode(sha256(convert_to(n::text, 'UTF8')), 'hex'), n, 'text/plain', 'file ' || n
  from generate_series(1, $2::integer) n
returning id::text"""
NOTHING_DELETED: Final = "DELETE 0"
IDS: Final = "select id, continuation_id from public.conversations where owner = $1"

SELECT_PAGE: Final = """
select seq, role, content, created_at, kind, turn_id, metadata
  from public.messages where conversation_id = $1 order by seq desc limit $2"""
SELECT_LIST: Final = """
select id, continuation_id, title, metadata, tags, next_seq, revision, created_at, updated_at
  from public.conversations where owner = $1 order by updated_at desc, id desc limit $2"""
SELECT_SEARCH: Final = """
select m.conversation_id, m.seq, m.role, m.content, m.created_at
  from exai.message_words w
  join public.messages m on m.conversation_id = w.conversation_id and m.seq = w.seq
 where w.words @@ (select string_agg(quote_literal(exai.owner_key_v1($3) || word), ' & ')::tsquery
                     from string_to_table($1, ' ') word)
 order by m.created_at desc limit $2"""
INSERT: Final = """
insert into exai_bench.messages (conversation_id, seq, turn_id, role, content, created_at)
select $1, $2 + u.ord, $3, u.role, u.content, now()
  from unnest($4::text[], $5::text[]) with ordinality u(role, content, ord)"""
INSERT_WITH_FILES: Final = """
with linked as (
  insert into exai_bench.conversation_files (conversation_id, file_id)
  select $1, f.id from unnest($6::text[]::uuid[]) f(id) on conflict do nothing)
insert into exai_bench.messages (conversation_id, seq, turn_id, role, content, created_at)
select $1, $2 + u.ord, $3, u.role, u.content, now()
  from unnest($4::text[], $5::text[]) with ordinality u(role, content, ord)"""


class DatabaseFloor:
    """Bare statements. Made by `open_database_floor`; `ids` are those of the conversations made by the bench."""

    def __init__(self, pool: asyncpg.Pool, ids: dict[ContinuationId, uuid.UUID]) -> None:
        self._pool, self._ids = pool, ids
        self._last_seq = dict.fromkeys(ids, 0)

    async def select_page(self, continuation_id: ContinuationId, limit: int) -> int:
        """Read the rows of the newest page and return how many there were."""
        return len(await self._pool.fetch(SELECT_PAGE, self._ids[continuation_id], limit))

    async def select_list(self, limit: int) -> int:
        """Read the rows of a page of the list and return how many there were."""
        return len(await self._pool.fetch(SELECT_LIST, OWNER, limit))

    async def select_search(self, text: str, limit: int) -> int:
        """Read the newest messages with these words, unranked, and return how many there were."""
        return len(await self._pool.fetch(SELECT_SEARCH, text, limit, OWNER))

    async def insert(
        self, continuation_id: ContinuationId, messages: Sequence[tuple[str, str]], file_ids: Sequence[FileId] = ()
    ) -> None:
        """Insert rows of role and content, and links to files, into tables of the same kind as the service's."""
        seq = self._last_seq[continuation_id]
        self._last_seq[continuation_id] = seq + len(messages)
        roles, contents = [role for role, _ in messages], [content for _, content in messages]
        arguments = (self._ids[continuation_id], seq, uuid.uuid4(), roles, contents)
        if file_ids:
            await self._pool.execute(INSERT_WITH_FILES, *arguments, list(file_ids))
        else:
            await self._pool.execute(INSERT, *arguments)

    async def round_trip(self) -> None:
        """Make one round trip without work."""
        await self._pool.fetchval("select 1")


@asynccontextmanager
async def open_database_floor(url: str, size: int, last_seq: int) -> AsyncIterator[DatabaseFloor]:
    """Open a pool of `size` connections; rows inserted are numbered on from `last_seq`.

    Raises `ConfigError` or `DatabaseError`.
    """
    descriptions: Descriptions = {}

    async def share(connection: OneTrip) -> None:
        connection.descriptions = descriptions

    try:
        pool = await asyncpg.create_pool(
            min_size=size,
            max_size=size,
            connection_class=OneTrip,
            init=share,
            timeout=CONNECT_LIMIT_S,
            statement_cache_size=0,
            **parse_address(url).connect_arguments(),
        )
    except Exception as error:
        raise _judged(error) from error
    async with pool:
        ids = {ContinuationId(row["continuation_id"]): row["id"] for row in await pool.fetch(IDS, OWNER)}
        floor = DatabaseFloor(pool, ids)
        floor._last_seq = dict.fromkeys(ids, last_seq)
        yield floor


async def make_tables(url: str) -> None:
    """Create the tables of the lower bounds, and analyze all tables, as autovacuum would within minutes.

    Raises `ConfigError` or `DatabaseError`.
    """
    async with _admin(url) as connection:
        await connection.execute(SET_UP)
        await connection.execute(ANALYZE)


async def make_files(url: str, number: int) -> list[FileId]:
    """Make rows of files that can be linked. Raises `ConfigError` or `DatabaseError`."""
    async with _admin(url) as connection:
        return [FileId(row["id"]) for row in await connection.fetch(MAKE_FILES, OWNER, number)]


async def remove_all(url: str) -> None:
    """Remove every trace of this and of earlier runs. Raises `ConfigError` or `DatabaseError`."""
    async with _admin(url) as connection:
        await connection.execute(REMOVE_SCHEMA)
        for statement in REMOVE_ROWS:
            while await connection.execute(statement, OWNER) != NOTHING_DELETED:
                pass


@asynccontextmanager
async def _admin(url: str) -> AsyncIterator[asyncpg.Connection]:
    try:
        connection = await asyncpg.connect(
            timeout=CONNECT_LIMIT_S,
            command_timeout=LIMIT_S,
            connection_class=OneTrip,
            statement_cache_size=0,
            **parse_address(url).connect_arguments(),
        )
        try:
            yield connection
        finally:
            await connection.close()
    except Exception as error:
        raise _judged(error) from error


def _judged(error: Exception) -> Exception:
    verdict = judge(error, "connecting")
    return verdict.error if verdict else error
