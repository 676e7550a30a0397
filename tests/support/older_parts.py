"""The database of the system that EXAI replaces, with and without each of its parts, and a check that no row was lost.

Every row carries a `mark` in a column that is none of ours: by it a row is found again when other columns have changed.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any, Literal

from exai.db.driver.pool import OneTrip
from tests.support.migrations import run, session

ROLES = ("anon", "authenticated", "service_role")
OUR_ROLES = ("system", "user", "assistant", "tool")
MAPPED = {"Human": "user", "AI": "assistant", " User ": "user", "developer": "system", "function": "tool", "x": "user"}
LOST = "00000000-0000-0000-0000-0000000000ff"
NEVER = "00000000-0000-0000-0000-0000000000fe"
NAMELESS = "e8a10000-0000-4000-8000-000000000000"


@dataclass(frozen=True)
class Parts:
    """What the database has; the names of the tests say which combination."""

    message_id: Literal["uuid", "bigint", "none"] = "uuid"
    time: Literal["created_at", "created_at without time zone", "timestamp", "timestamp without time zone"] = (
        "created_at"
    )
    metadata: bool = True
    message_key: bool = True
    link_key: bool = False
    references: bool = False
    indexes: bool = True
    function: bool = True
    secured: bool = True
    supabase: bool = True
    touching: bool = False
    """A trigger that sets `updated_at` on every update."""
    metrics: Literal["none", "typed", "untyped"] = "typed"


COMBINATIONS = {
    "everything": Parts(link_key=True, references=True, touching=True),
    "nothing": Parts(
        "none", "timestamp", metadata=False, message_key=False, indexes=False, function=False, secured=False,
        supabase=False, metrics="none",
    ),
    "counted": Parts("bigint", "timestamp without time zone", link_key=True, secured=False, metrics="untyped"),
    "published without keys": Parts("uuid", "timestamp", message_key=False, indexes=False, touching=True),
    "referring, without metadata": Parts("bigint", metadata=False, references=True, supabase=False, metrics="none"),
    "plain, without time zone": Parts(
        "none", "created_at without time zone", message_key=False, secured=False, supabase=False, touching=True
    ),
}  # fmt: skip


def conversation(number: int) -> str:
    return f"00000000-0000-0000-0000-{number:012d}"


def time_column(parts: Parts) -> str:
    return "created_at" if parts.time.startswith("created_at") else '"timestamp"'


def schema_sql(parts: Parts) -> list[str]:
    identity = {
        "uuid": f"id uuid default gen_random_uuid(){' primary key' if parts.message_key else ''},",
        "bigint": f"id bigserial{' primary key' if parts.message_key else ''},",
        "none": "",
    }[parts.message_id]
    kind = "timestamp" if "without" in parts.time else "timestamptz"
    references = "references conversations(id)" if parts.references else ""
    sql = [
        "create table conversations (id uuid primary key default gen_random_uuid(), continuation_id text, title text,"
        " metadata jsonb default '{}', created_at timestamptz default now(), updated_at timestamptz default now(),"
        " mark text)",
        f"create table messages ({identity} conversation_id uuid {references}, role text, content text,"
        f" {'metadata jsonb,' if parts.metadata else ''} {time_column(parts)} {kind} default now(), mark text)",
        "create table files (id uuid primary key default gen_random_uuid(), storage_path text, mark text,"
        " uploaded_by text not null)",
        f"create table conversation_files (conversation_id uuid {references},"
        f" file_id uuid {'references files(id)' if parts.references else ''}, mark text"
        f"{', primary key (conversation_id, file_id)' if parts.link_key else ''})",
    ]
    if parts.indexes:
        sql += [
            "create index idx_conversations_continuation_id on conversations (continuation_id)",
            f"create index idx_messages_conversation_created on messages (conversation_id, {time_column(parts)} desc)",
            f"create index idx_messages_conversation_id_created on messages (conversation_id, {time_column(parts)})",
            "create index idx_messages_conversation_id on messages (conversation_id)",
            f"create index idx_messages_created_at on messages ({time_column(parts)})",
            "create index idx_files_storage_path on files (storage_path)",
            "create index idx_conversation_files_file_id on conversation_files (file_id)",
        ]
    if parts.function:
        sql.append(
            "create function cleanup_orphaned_files() returns table (deleted_count bigint, freed text) language sql as"
            " $$ with gone as (delete from files where id not in (select file_id from conversation_files) returning 1)"
            " select count(*), ''::text from gone $$"
        )
    if parts.touching:
        sql += [
            "create function touch() returns trigger language plpgsql as"
            " $$ begin new.updated_at := now(); return new; end $$",
            "create trigger set_updated_at before update on conversations for each row execute function touch()",
        ]
    return sql


def surroundings_sql(parts: Parts) -> list[str]:
    """What Supabase has around the tables, and the metrics."""
    tables = ("conversations", "messages", "files", "conversation_files")
    sql = []
    if parts.supabase:
        sql += [f"do $$ begin create role {role}; exception when duplicate_object then null; end $$" for role in ROLES]
        for kind in ("tables", "sequences", "functions"):
            sql.append(f"alter default privileges in schema public grant all on {kind} to {', '.join(ROLES)}")
        sql.append(f"grant all on all tables in schema public to {', '.join(ROLES)}")
        sql.append(f"create publication supabase_realtime for table {', '.join(tables)}")
    if parts.secured:
        for table in tables:
            sql.append(f"alter table {table} enable row level security")
            sql.append(f"create policy everybody on {table} for all using (true) with check (true)")
    if parts.metrics == "typed":
        sql += [
            "create schema monitoring",
            "create table monitoring.metrics_raw (id bigserial primary key, type text not null,"
            ' "timestamp" timestamptz not null default now(), data jsonb not null,'
            " created_at timestamptz default now())",
            "insert into monitoring.metrics_raw (type, data) select 'old', '{}' from generate_series(1, 50)",
        ]
    elif parts.metrics == "untyped":
        sql += [
            "create schema monitoring",
            "create table monitoring.metrics_raw (id bigserial primary key, data jsonb, processed_at timestamptz"
            " default now())",
            "insert into monitoring.metrics_raw (data) select '{}' from generate_series(1, 50)",
        ]
    return sql


def rows_sql(parts: Parts) -> list[str]:
    """Every kind of row its rules let in."""
    time = time_column(parts)
    odd = [*MAPPED, None]
    sql = [
        "insert into conversations (id, continuation_id, title, metadata, created_at, updated_at, mark)"
        f" select ('{conversation(0)[:24]}' || lpad(n::text, 12, '0'))::uuid, case n when 3 then null when 4 then '' "
        " when 5 then repeat('x', 600) when 7 then 'name6' else 'name' || n end, 'Title ' || n,"
        " case n when 8 then null when 9 then '[1, 2]'::jsonb else jsonb_build_object('n', n) end,"
        " case when n <> 10 then '2025-01-01'::timestamptz + n * interval '1 day' end,"
        " case when n <> 11 then '2025-02-01'::timestamptz + n * interval '1 day' end, 'c' || n"
        " from generate_series(1, 30) n",
        f"insert into messages (conversation_id, role, content, {time}, mark)"
        f" select ('{conversation(0)[:24]}' || lpad((1 + n % 25)::text, 12, '0'))::uuid,"
        " case n % 2 when 0 then 'user' else 'assistant' end, 'content ' || n,"
        # Many share a time; a hundred have none.
        " case when n % 40 > 0 then '2025-03-01'::timestamptz + (n * 7919 % 1000) * interval '1 second' end, 'm' || n"
        " from generate_series(1, 4000) n",
        f"update messages set {time} = 'infinity' where mark = 'm77'",
        *(
            f"update messages set role = {'null' if role is None else repr(role)} where mark = 'm{100 + n}'"
            for n, role in enumerate(odd)
        ),
        "update messages set content = null where mark in ('m200', 'm201')",
        "insert into files (storage_path, mark, uploaded_by)"
        " select 'p/' || n, 'f' || n, 'u' from generate_series(1, 20) n",
        "insert into conversation_files select c.id, f.id, c.mark || f.mark from conversations c cross join files f"
        " where length(c.mark) = 2",
    ]
    if parts.metadata:
        sql += [
            "update messages set metadata = '{\"model\": \"m\", \"adopted\": 1}' where mark in ('m100', 'm300')",
            "update messages set metadata = '\"text\"' where mark in ('m101', 'm301')",
        ]
    if not parts.references:
        sql += [
            f"update messages set conversation_id = '{LOST}' where mark in ('m400', 'm401')",
            f"insert into conversation_files select c.id, '{LOST}', 'nofile' || c.mark from conversations c",
            f"insert into conversation_files select '{LOST}', f.id, 'lost' || f.mark from files f",
            f"insert into conversation_files select '{NEVER}', f.id, 'noconversation' || f.mark from files f",
        ]
    sql.append("update messages set conversation_id = null where mark in ('m500', 'm501')")
    if not parts.link_key:
        sql += [
            "insert into conversation_files select l.conversation_id, l.file_id, 'again' || l.mark"
            " from conversation_files l",
            "insert into conversation_files values (null, null, 'empty')",
        ]
    return sql


async def make(url: str, parts: Parts) -> None:
    """Create the database; the publication comes last, because it restricts changes of its tables."""
    await run(url, *schema_sql(parts), *rows_sql(parts), *surroundings_sql(parts))


Row = dict[str, Any]


async def rows_of(connection: OneTrip, table: str) -> list[Row]:
    """The rows in the order in which they were written, as far as it is known."""
    await connection.execute("set timezone = 'UTC'")
    return [json.loads(row[0]) for row in await connection.fetch(f"select to_jsonb(t) from {table} t order by t.ctid")]


@dataclass
class Before:
    """All rows as they were."""

    conversations: list[Row]
    messages: list[Row]
    files: list[Row]
    links: list[Row]


async def look(url: str) -> Before:
    async with session(url) as connection:
        return Before(
            await rows_of(connection, "conversations"),
            await rows_of(connection, "messages"),
            await rows_of(connection, "files"),
            await rows_of(connection, "conversation_files"),
        )


async def check_nothing_is_lost(url: str, before: Before, parts: Parts) -> None:
    """Each row is there once, each value as it was or kept where the rule says."""
    async with session(url) as connection:
        now = {
            table: {row["mark"]: row for row in await rows_of(connection, table) if row["mark"]}
            for table in ("conversations", "messages", "files", "conversation_files")
        }
        aside = {row["row"]["mark"]: row["row"] for row in await rows_of(connection, "exai.quarantine")}
    for row in before.files:
        assert now["files"][row["mark"]].items() >= row.items()
    for row in before.conversations:
        check_conversation(row, now["conversations"][row["mark"]])
    for row in before.messages:
        check_message(row, now["messages"][row["mark"]])
    check_links(before, now["conversation_files"], aside)
    check_order(before, now["messages"], parts)


def check_conversation(old: Row, new: Row) -> None:
    adopted = new["metadata"].get("adopted", {})
    name = old["continuation_id"]
    if not name or len(name) > 500:
        assert new["continuation_id"] == old["id"]
        assert adopted.get("continuation_id") == (name or None)
    elif new["continuation_id"] != name:
        assert (new["continuation_id"], new["metadata"]["duplicate_of"]) == (f"{name}~{old['id']}", name)
    if isinstance(old["metadata"], dict):
        assert new["metadata"].items() >= old["metadata"].items()
    elif old["metadata"] is not None:
        assert adopted["metadata"] == old["metadata"]
    kept = {key: old[key] for key in ("id", "title", "mark")}
    times = {key: old[key] for key in ("created_at", "updated_at") if old[key] is not None}
    assert new.items() >= (kept | times).items()


def check_message(old: Row, new: Row) -> None:
    adopted = new["metadata"].get("adopted")
    adopted = adopted if isinstance(adopted, dict) else {}
    assert new["conversation_id"] == (old["conversation_id"] or NAMELESS)
    if old["role"] in OUR_ROLES:
        assert new["role"] == old["role"]
    else:
        assert (new["role"], adopted["role"]) == (MAPPED.get(old["role"], "user"), old["role"])
    if old["content"] is None:
        assert (new["content"], "content" in adopted, adopted["content"]) == ("", True, None)
    else:
        assert new["content"] == old["content"]
    metadata = old.get("metadata")
    if isinstance(metadata, dict):
        inner = metadata.pop("adopted", None)
        assert new["metadata"].items() >= metadata.items()
        assert inner is None or new["metadata"]["adopted"] == inner or adopted["adopted"] == inner
    elif metadata is not None:
        assert adopted["metadata"] == metadata
    for name in ("id", "timestamp"):
        assert new.get(name) == old.get(name)
    time = old.get("created_at")
    assert time is None or time in (
        new["created_at"],
        new["created_at"].removesuffix("+00:00"),
        adopted.get("created_at"),
    )


def check_links(before: Before, now: dict[str, Row], aside: dict[str, Row]) -> None:
    """One of each pair whose two rows exist, everything else set aside as it was.

    A conversation of which only messages were left exists again.
    """
    conversations = {row["id"] for row in before.conversations} | {row["conversation_id"] for row in before.messages}
    files = {row["id"] for row in before.files}
    pairs = {(row["conversation_id"], row["file_id"]) for row in before.links}
    wanted = {pair for pair in pairs if pair[0] in conversations - {None} and pair[1] in files}
    assert Counter((row["conversation_id"], row["file_id"]) for row in now.values()) == Counter(wanted)
    for row in before.links:
        found = (now if row["mark"] in now else aside)[row["mark"]]
        assert found in (row, {**row, "source": None})


def check_order(before: Before, now: dict[str, Row], parts: Parts) -> None:
    """By time, then by id, then as written; without a time last."""
    wanted: dict[str, list[Row]] = defaultdict(list)
    for row in before.messages:
        wanted[row["conversation_id"] or NAMELESS].append(row)
    found: dict[str, list[Row]] = defaultdict(list)
    for row in now.values():
        found[row["conversation_id"]].append(row)
    name = time_column(parts).strip('"')

    def key(row: Row) -> tuple[bool, str, Any]:
        time = None if row[name] in (None, "infinity") else row[name]
        return (time is None, time or "", row.get("id", 0))

    for identity, rows in wanted.items():
        ordered = sorted(found[identity], key=lambda row: row["seq"])
        assert [row["seq"] for row in ordered] == list(range(1, len(rows) + 1))
        assert [row["mark"] for row in ordered] == [row["mark"] for row in sorted(rows, key=key)]
