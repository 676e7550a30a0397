"""Databases as older systems left them: with and without keys, times, ids, indexes, and rows that fit together."""

from __future__ import annotations

from dataclasses import dataclass

A, B, C, D = (f"00000000-0000-0000-0000-00000000000{n}" for n in "abcd")
NOBODY = "00000000-0000-0000-0000-0000000000ff"
FILE_1, FILE_2 = (f"00000000-0000-0000-0000-0000000000f{n}" for n in "12")

LIKE_SUPABASE = f"""
create table conversations (
  id uuid primary key default gen_random_uuid(), continuation_id text not null unique, title text,
  metadata jsonb default '{{}}', created_at timestamptz default now(), updated_at timestamptz default now());
create table messages (
  id uuid primary key default gen_random_uuid(),
  conversation_id uuid references conversations(id) on delete cascade,
  role text not null check (role in ('user', 'assistant', 'system')), content text not null, metadata jsonb,
  created_at timestamptz default now());
create table files (
  id uuid primary key default gen_random_uuid(), storage_path text not null, original_name text not null,
  file_size bigint, created_at timestamptz default now());
create table conversation_files (
  conversation_id uuid references conversations(id), file_id uuid references files(id) on delete cascade);
create index idx_conversations_continuation_id on conversations (continuation_id);
create index idx_messages_conversation_created on messages (conversation_id, created_at desc);
create index idx_messages_conversation_id_created on messages (conversation_id, created_at);
create index idx_messages_conversation_id on messages (conversation_id);
create index idx_messages_created_at on messages (created_at);
create index idx_files_storage_path on files (storage_path);
create index idx_conversation_files_file_id on conversation_files (file_id);
create function cleanup_orphaned_files() returns integer language plpgsql as $$
declare count integer; begin
  delete from files where id not in (select file_id from conversation_files);
  get diagnostics count = row_count; return count; end $$;
alter table conversations enable row level security;
create policy everything on conversations for all using (true);
insert into conversations (id, continuation_id, title, created_at, updated_at) values
  ('{A}', 'a', 'First', '2025-01-01', '2025-02-01'), ('{B}', 'b', null, '2025-01-02', '2025-02-02'),
  ('{C}', 'c', null, null, null);
insert into messages (id, conversation_id, role, content, metadata, created_at) values
  ('{"0" * 8}-0000-0000-0000-000000000003', '{A}', 'user', 'a3', null, '2025-01-01 10:00:01'),
  ('{"0" * 8}-0000-0000-0000-000000000002', '{A}', 'assistant', 'a2', '{{"model": "x"}}', '2025-01-01 10:00:00'),
  ('{"0" * 8}-0000-0000-0000-000000000001', '{A}', 'user', 'a1', '{{}}', '2025-01-01 10:00:00'),
  ('{"0" * 8}-0000-0000-0000-000000000004', '{B}', 'user', 'b1', '{{}}', '2025-01-02');
insert into files (id, storage_path, original_name) values ('{FILE_1}', 'p/1', 'one'), ('{FILE_2}', 'p/2', 'two');
insert into conversation_files values ('{A}', '{FILE_1}'), ('{A}', '{FILE_1}'), ('{B}', '{FILE_1}'), (null, '{FILE_2}');
"""

WITHOUT_ANY_RULES = f"""
create table conversations (id uuid, continuation_id varchar(100), metadata jsonb);
create table messages (
  conversation_id uuid, role varchar(20), content text, "timestamp" timestamp without time zone not null);
create table files (id uuid, storage_path varchar(500), name varchar(50) not null, size_bytes integer);
create table conversation_files (conversation_id uuid, file_id uuid, linked_by text not null);
insert into conversations values
  ('{A}', 'same', null), ('{B}', 'same', '{{"k": 1}}'), ('{C}', null, null), ('{D}', 'd', '{{}}');
insert into messages values
  ('{A}', 'user', 'a2', '2025-01-01 10:00:02'), ('{A}', null, 'a1', '2025-01-01 10:00:01'),
  ('{B}', 'human', 'b1', '2025-03-01'), ('{B}', 'user', null, '2025-03-02'),
  ('{C}', 'user', 'c1', '2025-01-01'), ('{NOBODY}', 'user', 'orphan', '2025-01-01'),
  (null, 'user', 'nowhere 1', '2025-01-01'), (null, 'user', 'nowhere 2', '2025-01-02');
insert into files values ('{FILE_1}', 'p/1', 'one', 7);
insert into conversation_files values
  ('{A}', '{FILE_1}', 'x'), ('{A}', '{FILE_1}', 'y'), ('{A}', '{NOBODY}', 'x'), ('{NOBODY}', '{FILE_1}', 'x'),
  (null, null, 'x');
"""

WITH_COUNTED_IDS = f"""
create table conversations (
  id uuid primary key, continuation_id text, title varchar(200), metadata jsonb not null default '{{}}',
  user_id text not null, created_at timestamp not null default now(), updated_at timestamp not null default now());
create table messages (
  id bigserial primary key, conversation_id uuid not null, role varchar(20) not null, content text,
  metadata jsonb default '{{}}', "timestamp" timestamptz default now(), token_count integer not null);
create table conversation_files (
  id bigserial primary key, conversation_id uuid not null, file_id uuid not null, created_at timestamptz);
create index on messages (conversation_id, "timestamp");
insert into conversations (id, continuation_id, user_id) values ('{A}', 'a', 'u'), ('{B}', 'b', 'u');
insert into messages (conversation_id, role, content, "timestamp", token_count) values
  ('{A}', 'user', 'a1', '2025-01-01', 1), ('{A}', 'assistant', 'a2', '2025-01-01', 1),
  ('{B}', 'user', 'b2', '2025-01-02', 1), ('{B}', 'user', 'b1', '2025-01-01', 1), ('{B}', 'user', 'b3', null, 1);
"""

CONVERSATIONS_ALONE = f"""
create table conversations (id uuid primary key, continuation_id text, title text, metadata jsonb,
  created_at timestamptz, updated_at timestamptz);
insert into conversations values ('{A}', 'a', 'First', null, '2025-01-01', '2025-01-02');
"""

MESSAGES_ALONE = f"""
create table messages (conversation_id uuid not null, role text, content text, created_at timestamptz);
insert into messages values ('{A}', 'user', 'a2', '2025-01-02'), ('{A}', 'user', 'a1', '2025-01-01');
"""

FILES_ALONE = f"""
create table files (id uuid primary key default gen_random_uuid(), storage_path text);
insert into files values ('{FILE_1}', 'p/1');
"""


@dataclass(frozen=True)
class Older:
    """An older database, the expected conversations after its adoption, and the expected links."""

    sql: str
    conversations: dict[str, list[str]]
    links: int = 0
    quarantined: int = 0


OLDER = {
    "like Supabase": Older(LIKE_SUPABASE, {"a": ["a1", "a2", "a3"], "b": ["b1"], "c": []}, links=2, quarantined=2),
    "without any rules": Older(
        WITHOUT_ANY_RULES,
        {
            "same": ["b1", ""],
            f"same~{A}": ["a1", "a2"],
            C: ["c1"],
            "d": [],
            NOBODY: ["orphan"],
            "recovered": ["nowhere 1", "nowhere 2"],
        },
        links=2,
        quarantined=3,
    ),
    "with counted ids": Older(WITH_COUNTED_IDS, {"a": ["a1", "a2"], "b": ["b1", "b2", "b3"]}),
    "conversations alone": Older(CONVERSATIONS_ALONE, {"a": []}),
    "messages alone": Older(MESSAGES_ALONE, {A: ["a1", "a2"]}),
    "files alone": Older(FILES_ALONE, {}),
}
