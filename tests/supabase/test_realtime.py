"""Who receives which event: EXAI's tables under `realtime.apply_rls`, and its broadcasts by `realtime.send`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from exai.db.conversations import ConversationRepository
from exai.db.driver.pool import OneTrip
from exai.db.migrations.migrate import upgrade
from exai.db.requests import RequestOutcome, RequestRepository
from exai.db.supabase import examine
from exai.models import ContinuationId, Owner
from tests.supabase.realtime import EVENTS, MIGRATIONS, project, server_with_wal2json, subscribe
from tests.support.database import appending, opened
from tests.support.migrations import session
from tests.support.supabase import acting

A, B = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(not MIGRATIONS.exists(), reason="Realtime's SQL could not be fetched (make test-supabase)"),
    pytest.mark.skipif(server_with_wal2json() is None, reason="no installed Postgres has the extension wal2json"),
]


@dataclass
class Project:
    """A database with Realtime and EXAI: Realtime's connection, and that of the project's owner."""

    realtime: OneTrip
    owner: OneTrip
    exai: ConversationRepository
    queue: RequestRepository
    url: str

    async def append(self, owner: str, content: str, name: ContinuationId | None = None) -> ContinuationId:
        """Store a message as EXAI does, in a new conversation or in one that exists."""
        commit = (await self.exai.append(appending(name, content, owner=Owner(owner)))).commit
        assert commit is not None
        return commit.conversation.continuation_id

    async def events(self) -> set[tuple[str, str, str, str]]:
        """Return subscriber, table, type and a value of each new event; a client without a token receives no row."""
        rows = await self.realtime.fetch(EVENTS)
        for row in rows:
            refused = (["Error 401: Unauthorized"], None)
            assert (row["errors"], row["record"]) == refused if row["sub"] is None else not row["errors"]
        return {(row["sub"], row["table"], row["type"], _mark(row["table"], row)) for row in rows if row["sub"]}


def _mark(table: str, row: Any) -> str:
    record = json.loads(row["record"])
    name = {"conversations": "revision", "messages": "content", "requests": "answer"}[table]
    return str(record.get(name))


@pytest.fixture
async def realtime() -> AsyncIterator[Project]:
    """Users A and B are subscribed to everything, and a client that is not signed in."""
    pg_bin = server_with_wal2json()
    assert pg_bin is not None
    async with project(MIGRATIONS, pg_bin) as (superuser, owner):
        await upgrade(owner)
        async with session(superuser) as watching, session(owner) as writing, opened(owner) as database:
            for sub in (A, B):
                await subscribe(watching, role="authenticated", sub=sub)
            await subscribe(watching, role="anon")
            exai, queue = ConversationRepository(database), RequestRepository(database)
            yield Project(watching, writing, exai, queue, owner)


async def test_subscribers_receive_events_of_their_own_rows_only(realtime: Project) -> None:
    """Of conversations, messages and requests, stored and changed."""
    name = await realtime.append(A, "of A")
    await realtime.append(B, "of B")
    first = {(A, "messages", "INSERT", "of A"), (B, "messages", "INSERT", "of B")}
    assert await realtime.events() == first | {(sub, "conversations", "INSERT", "1") for sub in (A, B)}
    await realtime.append(A, "again", name)
    assert await realtime.events() == {(A, "messages", "INSERT", "again"), (A, "conversations", "UPDATE", "2")}
    async with acting(realtime.owner, "authenticated", sub=A):
        await realtime.owner.execute("insert into requests (tool, arguments) values ('version', '{}'::jsonb)")
    assert await realtime.events() == {(A, "requests", "INSERT", "None")}
    [request] = (await realtime.queue.claim(1, lease_s=60.0)).claimed
    assert await realtime.queue.finish(request, RequestOutcome("done", "42", {}))
    assert await realtime.events() == {(A, "requests", "UPDATE", answer) for answer in ("None", "42")}


async def test_a_deleted_conversation_is_no_event_of_anybody(realtime: Project) -> None:
    """Its row is kept for a while, and those who could read it before cannot see that it changed."""
    await realtime.append(A, "kept from B")
    await realtime.events()
    await realtime.owner.execute("update conversations set deleted_at = now()")
    assert await realtime.events() == set()


async def test_an_erased_row_shows_its_key_and_nothing_else(realtime: Project) -> None:
    """Realtime sends deletions to every subscriber, without regard to policies."""
    await realtime.append(A, "erased")
    await realtime.events()
    await realtime.owner.execute("delete from turns")
    await realtime.owner.execute("delete from conversations")
    rows = await realtime.realtime.fetch(EVENTS)
    assert {row["type"] for row in rows} == {"DELETE"}
    assert {name for row in rows for name in json.loads(row["old_record"] or "null") or ()} <= {
        "id",
        "conversation_id",
        "seq",
    }
    assert not [row for row in rows if row["record"] not in (None, "null", "{}")]


async def test_broadcasts_reach_the_topic_of_the_owner(realtime: Project) -> None:
    """By the real `realtime.send`, into the partition of today, under the real rights on `realtime.messages`."""
    assert {each.part: each.state for each in await examine(realtime.url, anonymous=False)}["broadcast"] == "ok"
    name = await realtime.append(A, "first")
    await realtime.append(A, "second", name)
    rows = await realtime.realtime.fetch(
        "select topic, event, private, extension, (payload - 'id')::text as payload from realtime.messages"
        " order by payload ->> 'revision'"
    )
    assert [tuple(row) for row in rows] == [
        (f"exai:{A}", "changed", True, "broadcast", json.dumps({"revision": revision, "continuation_id": name}))
        for revision in (1, 2)
    ]
    for role, sub, topic, count in (
        ("authenticated", A, A, 2), ("authenticated", B, A, 0), ("authenticated", A, B, 0), ("anon", A, A, 0),
    ):  # fmt: skip
        async with acting(realtime.realtime, role, sub=sub):
            await realtime.realtime.execute("select set_config('realtime.topic', $1::text, true)", f"exai:{topic}")
            assert await realtime.realtime.fetchval("select count(*) from realtime.messages") == count


async def test_a_change_is_stored_when_the_day_has_no_partition(realtime: Project) -> None:
    """Realtime's server creates them, and may be behind; `realtime.send` warns and the change is kept."""
    await realtime.realtime.execute("drop table realtime.messages_all_days")
    await realtime.append(A, "not announced")
    assert await realtime.owner.fetchval("select count(*) from conversations") == 1
