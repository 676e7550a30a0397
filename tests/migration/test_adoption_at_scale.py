"""A million messages are adopted while older clients continue; the migration is killed and run again."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from exai.db.driver.pool import OneTrip
from exai.db.migrations.migrate import LOCK_LIMIT
from exai.db.migrations.revision import expected_revision
from exai.embedded.launcher import Servers
from tests.conftest import fresh
from tests.support.backend import Databases
from tests.support.migrations import run, session, value
from tests.support.older_parts import (
    COMBINATIONS,
    Parts,
    check_nothing_is_lost,
    look,
    make,
    schema_sql,
    surroundings_sql,
)

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).resolve().parents[2]
MESSAGES = int(os.environ.get("EXAI_ADOPTION_MESSAGES", "1000000"))
CONVERSATIONS = 5_000
LONG_ONES = 5
LONG_SHARE = 10
"""One message in so many belongs to one of the long conversations."""

MOST_AT_ONCE = {
    "public.messages": 2_000,
    "public.conversations": 1_000,
    "exai.quarantine": 2_000,
    "exai.message_words": 1_000,
}
PARTS = Parts(time="timestamp", link_key=False, references=False, touching=True)
CLIENT_PAUSE_S = 0.005

ROWS = (
    "insert into conversations (continuation_id, title, created_at, updated_at, mark)"
    " select 'talk' || n, 'Title ' || n, '2024-01-01'::timestamptz + n * interval '1 minute',"
    " '2025-01-01'::timestamptz + n * interval '1 minute', 'bulk' from generate_series(1, {conversations}) n",
    "create temporary table homes as select (row_number() over (order by id))::int as n, id from conversations",
    # Written in another order than that of time; many share a time, some have none, some a role of another system.
    'insert into messages (conversation_id, role, content, metadata, "timestamp", mark)'
    " select h.id, case g.n % 97 when 0 then 'AI' else (array['user', 'assistant'])[1 + g.n % 2] end,"
    " case when g.n % 1009 > 0 then 'word ' || g.n || repeat(' and then we read it once more,', 5) end,"
    " case g.n % 3 when 0 then null when 1 then '{{}}' else jsonb_build_object('n', g.n) end,"
    " case when g.n % 499 > 0 then '2024-06-01'::timestamptz"
    " + (g.n::bigint * 7919 % {messages}) / 3 * interval '1 second' end, 'bulk'"
    " from generate_series(1, {messages}) g(n) join homes h on h.n ="
    " case when g.n % {share} = 0 then 1 + (g.n / {share}) % {long} else 1 + g.n % {conversations} end",
    "update messages set conversation_id = gen_random_uuid() where mark = 'bulk' and content like 'word 7777 %'",
    "insert into files (storage_path, mark, uploaded_by) select 'p/' || n, 'bulk', 'u' from generate_series(1, 2000) n",
    "insert into conversation_files select h.id, f.id, 'bulk' from homes h"
    " join (select id, (row_number() over (order by id))::int as n from files) f on f.n = 1 + h.n % 2000"
    " cross join generate_series(1, 3)",
    "vacuum analyze",
)
KEPT = """
select count(*), sum(hashtextextended(jsonb_build_array(m.id, m.conversation_id, m."timestamp", m.content)::text, 0))
  from (select id, conversation_id, "timestamp", coalesce(content, '') as content from messages where mark = 'bulk') m
"""
WORDLESS = """
select count(*) from messages m
  left join exai.message_words w using (conversation_id, seq)
 where w.words is distinct from (select x.words from exai.words_v1(exai.owner_key_v1('local'), m.content) x)
   and m.content <> ''
   and not exists (select from exai.unindexed_messages u
                    where u.conversation_id = m.conversation_id and m.seq between u.first_seq and u.last_seq)
"""
OUT_OF_ORDER = """
select count(*) from (
  select row_number() over (partition by conversation_id order by seq) as found,
         row_number() over (partition by conversation_id order by "timestamp", id) as wanted
    from messages where mark = 'bulk') m
 where m.found <> m.wanted
"""

GAPS = """
select count(*) from (
  select c.next_seq, count(m.seq) as n, max(m.seq) as last
    from conversations c left join messages m on m.conversation_id = c.id group by c.id) x
 where x.next_seq <> x.n + 1 or coalesce(x.last, 0) <> x.n
"""


@pytest.fixture
def large_url(fault_servers: tuple[Servers, Databases]) -> Iterator[str]:
    """An empty database on a server with the settings users have: an acknowledged write is on disk."""
    yield from fresh(fault_servers[1], migrated=False)


@dataclass
class Client:
    """A program of the older system's. A wait for a lock beyond the documented limit is refused by the server."""

    url: str
    statements: int = 0
    longest_s: float = 0.0
    longest: str = ""
    refused: list[str] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)

    async def go_on(self, done: asyncio.Event, step: Callable[[Client, OneTrip, int], Awaitable[None]]) -> None:
        async with session(self.url) as connection:
            await connection.execute(f"set lock_timeout = '{LOCK_LIMIT}'")
            number = 0
            while not done.is_set():
                number += 1
                await step(self, connection, number)
                await asyncio.sleep(CLIENT_PAUSE_S)

    async def ask(self, connection: OneTrip, statement: str, *args: object) -> Any:
        begun = time.monotonic()
        try:
            return await connection.fetch(statement, *args)
        except asyncpg.PostgresError as error:
            self.refused.append(f"{error}: {statement}")
            return []
        finally:
            took = time.monotonic() - begun
            self.statements += 1
            if took > self.longest_s:
                self.longest_s, self.longest = took, statement


async def begin_conversations(self: Client, connection: OneTrip, number: int) -> None:
    mark = f"begun{number}"
    await self.ask(connection, "insert into conversations (continuation_id, mark) values ($1, $1)", mark)
    rows = await self.ask(connection, "select id from conversations where continuation_id = $1", mark)
    add = "insert into messages (conversation_id, role, content, mark) values ($1, 'user', $2, $3) returning mark"
    for row in rows:
        for n in range(2):
            said = await self.ask(connection, add, row["id"], f"hello {n}", f"{mark}-{n}")
            self.acknowledged += [each["mark"] for each in said]


async def add_messages(self: Client, connection: OneTrip, number: int) -> None:
    """Also to the long conversations, and also roles and contents that only older clients know."""
    name = f"talk{1 + number % LONG_ONES if number % 5 == 0 else 1 + number * 7 % CONVERSATIONS}"
    said = await self.ask(
        connection,
        "insert into messages (conversation_id, role, content, mark)"
        " select id, case $2::int % 3 when 0 then 'AI' else 'user' end, nullif('later ' || $2::int % 4, 'later 0'), $3"
        " from conversations where continuation_id = $1 limit 1 returning mark",
        name,
        number,
        f"added{number}",
    )
    self.acknowledged += [each["mark"] for each in said]


async def change_rows(self: Client, connection: OneTrip, number: int) -> None:
    name = f"talk{1 + number * 13 % CONVERSATIONS}"
    await self.ask(connection, "update conversations set title = $2 where continuation_id = $1", name, f"New {number}")
    await self.ask(
        connection,
        "update messages m set metadata = coalesce(m.metadata, '{}') || '{\"seen\": true}' from conversations c"
        " where c.continuation_id = $1 and m.conversation_id = c.id and m.mark like 'added%'",
        name,
    )
    await self.ask(connection, "insert into files (storage_path, uploaded_by, mark) values ($1, 'u', $1)", f"f{number}")


async def read(self: Client, connection: OneTrip, number: int) -> None:
    name = f"talk{1 + number * 17 % CONVERSATIONS}"
    rows = await self.ask(connection, "select id, title from conversations where continuation_id = $1", name)
    messages = 'select id, role, content from messages where conversation_id = $1 order by "timestamp" limit 50'
    for row in rows:
        await self.ask(connection, messages, row["id"])
    await self.ask(
        connection, 'select id, content from messages where "timestamp" is not null order by "timestamp" desc limit 20'
    )
    assert rows


def alembic_upgrade(url: str) -> subprocess.Popen[bytes]:
    """As a user runs it: from the checkout, with an address in the environment and nothing else."""
    environ = {name: text for name, text in os.environ.items() if name in {"PATH", "HOME", "LANG", "TMPDIR"}}
    return subprocess.Popen(
        [sys.executable, "-m", "alembic", "upgrade", "head"], cwd=ROOT, env=environ | {"DATABASE_URL": url},
        stdout=subprocess.DEVNULL,
    )  # fmt: skip


async def ended(process: subprocess.Popen[bytes]) -> int:
    return await asyncio.to_thread(process.wait)


async def fill(url: str) -> None:
    sizes = {"messages": MESSAGES, "conversations": CONVERSATIONS, "long": LONG_ONES, "share": LONG_SHARE}
    await run(url, *schema_sql(PARTS), *(row.format(**sizes) for row in ROWS), *surroundings_sql(PARTS))


async def written_rows(url: str) -> list[tuple[object, ...]]:
    """Of each table how many rows there are, and a sum over all of them and the transactions that wrote them."""
    async with session(url) as connection:
        names = await connection.fetch(
            "select c.oid::regclass::text from pg_class c join pg_namespace n on n.oid = c.relnamespace"
            " where n.nspname in ('public', 'exai', 'monitoring') and c.relkind = 'r' order by 1"
        )
        sums = "select count(*), sum(hashtextextended(t.xmin::text || t::text, 0)) from {} t"
        return [(name, *await connection.fetchrow(sums.format(name))) for (name,) in names]


async def test_a_million_messages_are_taken_over_while_clients_go_on(large_url: str) -> None:
    """No row is lost or out of order, no client is refused or waits beyond the limit, and no batch is large."""
    url = large_url
    await fill(url)
    kept = await value(url, f"select x::text from ({KEPT}) x")
    done = asyncio.Event()
    steps = (begin_conversations, add_messages, change_rows, read, read)
    clients = [Client(url) for _ in steps]
    tasks = [asyncio.create_task(client.go_on(done, step)) for client, step in zip(clients, steps, strict=True)]
    begun = time.monotonic()
    try:
        await kill_half_way(url)
        assert await ended(alembic_upgrade(url)) == 0
    finally:
        done.set()
        await asyncio.gather(*tasks)
    took = time.monotonic() - begun
    acknowledged = [mark for client in clients for mark in client.acknowledged]
    longest = max(clients, key=lambda client: client.longest_s)
    print(
        f"\n{MESSAGES} messages in {took:.0f} s; {sum(client.statements for client in clients)} statements of"
        f" {len(clients)} clients meanwhile, none refused, {len(acknowledged)} messages of theirs;"
        f" the longest took {longest.longest_s:.3f} s: {longest.longest[:60]}"
    )
    assert await value(url, "select version_num from exai.alembic_version") == expected_revision()
    assert [line for client in clients for line in client.refused] == []
    assert await value(url, "select deadlocks from pg_stat_database where datname = current_database()") == 0
    for table, most in MOST_AT_ONCE.items():
        # One update of a client changes all messages that clients have added to a conversation.
        ours = "having bool_or(mark = 'bulk')" if table == "public.messages" else ""
        at_once = f"select max(n) from (select count(*) as n from {table} group by xmin::text {ours}) x"
        assert await value(url, at_once) <= most, table
    assert await value(url, f"select x::text from ({KEPT}) x") == kept
    assert [await value(url, query) for query in (OUT_OF_ORDER, GAPS, WORDLESS)] == [0, 0, 0]
    found = "select count(distinct m.mark) from messages m where m.mark = any($1::text[])"
    assert await value(url, found, acknowledged) == len(acknowledged) > 0
    before = await written_rows(url)
    assert await ended(alembic_upgrade(url)) == 0
    assert await written_rows(url) == before


async def kill_half_way(url: str) -> None:
    """SIGKILL of the program once half of the conversations are numbered."""
    process = alembic_upgrade(url)
    left = "select count(*) from conversations where next_seq is null"
    async with session(url) as observer:
        while process.poll() is None:
            if await reached(observer, f"select ({left}) between 1 and {CONVERSATIONS // 2}"):
                break
            await asyncio.sleep(CLIENT_PAUSE_S)
        assert process.poll() is None, "it was over before it could be killed"
        process.send_signal(signal.SIGKILL)
        assert await ended(process) == -signal.SIGKILL
        assert 0 < await observer.fetchval(left) < CONVERSATIONS


async def reached(observer: OneTrip, stage: str) -> bool:
    try:
        return bool(await observer.fetchval(stage))
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError, asyncpg.InvalidSchemaNameError):
        return False


STAGES = (
    "select to_regclass('exai.adopted_tables') is not null",
    "select count(*) > 0 from messages where seq is not null",
    "select count(*) > 2500 from messages where seq is not null",
    "select count(*) = 0 from messages where seq is null",
    "select count(*) > 0 from pg_index where indrelid = 'messages'::regclass and not indisvalid",
    "select count(*) > 0 from exai.quarantine",
    "select count(*) > 0 from pg_constraint where conname = 'messages_role_check'",
    "select to_regclass('public.messages_created_idx') is not null",
    "select to_regclass('monitoring.metrics_raw_adopted_key') is not null",
    "select count(*) > 0 from exai.message_words",
    "select to_regclass('exai.message_words_words_idx') is not null",
)


async def test_killed_at_any_stage_it_is_simply_run_again(large_url: str) -> None:
    """SIGKILL of the program, as soon as each stage is seen."""
    url = large_url
    parts = COMBINATIONS["counted"]
    await make(url, parts)
    before = await look(url)
    kills = 0
    async with session(url) as observer:
        for stage in STAGES:
            process = alembic_upgrade(url)
            while process.poll() is None and not await reached(observer, stage):
                await asyncio.sleep(0)
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
            await ended(process)
    assert await ended(alembic_upgrade(url)) == 0
    assert kills >= 5
    await check_nothing_is_lost(url, before, parts)
    assert await value(url, "select count(*) from pg_index where not indisvalid") == 0
    assert await value(url, "select count(*) from monitoring.metrics_raw") == 50
