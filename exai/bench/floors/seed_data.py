"""Create large numbers of conversations and messages for `exai bench --scale`.

Invariant: rows are as if stored by the service, and belong to the owner of the bench.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import asyncpg

from exai.bench.floors.postgres import OWNER
from exai.db.driver.address import parse_address
from exai.models import ContinuationId

BATCH: Final = 10_000
WORDS: Final = 24
"""Words per message; about 160 bytes."""

LIMIT_S: Final = 600.0

WIDE: Final = """
with c as (
  insert into public.conversations (owner, continuation_id, next_seq, revision)
  select $4::text, 'exai-bench-' || n, 2, 1 from generate_series($1::integer, $2::integer) n
  returning id, substr(continuation_id, 12)::integer as n)
insert into public.messages (conversation_id, seq, turn_id, role, content)
select c.id, 1, c.id, 'user',
       (select string_agg(($3::text[])[1 + floor(random() ^ 3 * cardinality($3::text[]))::integer], ' ')
          from generate_series(1, $5::integer + 0 * c.n))
  from c"""

DEEP: Final = """
with c as (
  insert into public.conversations as c (owner, continuation_id, next_seq, revision)
  values ($4::text, 'exai-bench-deep', $2::integer + 1, 1)
  on conflict (owner, continuation_id) do update set next_seq = c.next_seq + $2::integer - $1::integer + 1
  returning id, next_seq)
insert into public.messages (conversation_id, seq, turn_id, role, content)
select c.id, c.next_seq - 1 - $2::integer + n, c.id, 'user',
       (select string_agg(($3::text[])[1 + floor(random() ^ 3 * cardinality($3::text[]))::integer], ' ')
          from generate_series(1, $5::integer + 0 * n))
  from c cross join generate_series($1::integer, $2::integer) n"""

INDEX: Final = "select o_left from exai.index_messages_v1($1::integer)"
SETTLE: Final = (
    "vacuum (analyze) public.conversations",
    "vacuum (analyze) public.messages",
    "vacuum (analyze) exai.message_words",
    "vacuum exai.unindexed_messages",
    "checkpoint",
)

DEEP_ID: Final = ContinuationId("exai-bench-deep")


def wide_id(number: int) -> ContinuationId:
    """Return the name of the n-th conversation of one message."""
    return ContinuationId(f"exai-bench-{number}")


class SeedData:
    """A connection beside the service's; made by `open_seed_data`."""

    def __init__(self, connection: asyncpg.Connection, words: Sequence[str]) -> None:
        self._connection, self._words = connection, list(words)

    async def wide(self, first: int, last: int) -> AsyncIterator[int]:
        """Make the conversations `first` to `last`, of one message each, and yield the progress."""
        async for done in self._batches(WIDE, first, last):
            yield done

    async def deep(self, first: int, last: int) -> AsyncIterator[int]:
        """Make the messages `first` to `last` of one conversation, and yield the progress."""
        async for done in self._batches(DEEP, first, last):
            yield done

    async def settle(self) -> None:
        """Vacuum and analyze, as autovacuum would within minutes."""
        for statement in SETTLE:
            await self._connection.execute(statement)

    async def _batches(self, sql: str, first: int, last: int) -> AsyncIterator[int]:
        for start in range(first, last + 1, BATCH):
            end = min(start + BATCH - 1, last)
            await self._connection.execute(sql, start, end, self._words, OWNER, WORDS)
            while await self._connection.fetchval(INDEX, BATCH):
                pass
            yield end


@asynccontextmanager
async def open_seed_data(url: str, words: Sequence[str]) -> AsyncIterator[SeedData]:
    """Open a connection of its own; messages are made of these words, the first of them most often."""
    connection = await asyncpg.connect(command_timeout=LIMIT_S, **parse_address(url).connect_arguments())
    try:
        yield SeedData(connection, words)
    finally:
        await connection.close()
