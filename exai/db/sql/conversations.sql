-- name: read_page
-- repeat: read
-- One page of a conversation and its header, within a number of bytes; by the primary key of messages, in one snapshot.
select p.head::text, p.messages::bytea
  from exai.read_page_v1($1::text, $2::text, $3::bigint, $4::bigint, $5::integer, $6::bigint, $7::integer) p;

-- name: read_pages
-- repeat: read
-- The newest pages of several conversations, each read as in read_page and identified by its number; a missing one has
-- no row. The lateral join calls the function for one conversation after the other, so rows of a page keep their order.
select a.number::integer as number, p.head::text, p.messages::bytea
  from unnest($1::text[], $2::text[]) with ordinality a(owner, name, number)
       cross join lateral exai.read_page_v1(a.owner, a.name, null, 0, $3::integer, $4::bigint, 0) p;

-- name: pending_turns
-- repeat: read
-- The running turns of a conversation, null if there is none; by turns_pending_idx.
select exai.pending_turns_v1($1::text::uuid)::text as pending;

-- name: find_messages
-- repeat: read
-- Messages by their keys, in one conversation or in all of an owner; by messages_key_idx.
select p.place::integer, p.head::text, p.line::bytea
  from exai.find_messages_v1($1::text, $2::text, $3::text[], $4::integer, $5::bigint) p;

-- name: read_headers
-- repeat: read
-- The headers of conversations by their names; by conversations_owner_continuation_key.
select exai.header_v1(c)::text as header
  from public.conversations c
 where c.owner = $1::text and c.continuation_id = any($2::text[]) and c.deleted_at is null;

-- name: append
-- repeat: keyed
-- Stores messages and file links once per request key; locks the conversation, or makes it if the header asks for that. On
-- request a last row has the turn's number among those of its tool.
select p.part::text, p.seq::bigint, p.role::text, p.content::text, p.created_at::timestamptz, p.kind::text,
       p.turn_id::text, p.data::text
  from exai.append_v1($1::text, $2::text, $3::text::uuid, $4::text::uuid, $5::text, $6::text, $7::text, $8::text,
                      $9::text[], $10::text[], $11::text[], $12::text[], $13::text[], $14::bigint, $16::text[],
                      $17::text[], $18::text::jsonb) p
union all
select 'step'::text, exai.count_steps_v1($1::text, $5::text)::bigint, null::text, null::text, null::timestamptz,
       null::text, null::text, null::text
 where $15::boolean;

-- name: append_with_files
-- repeat: keyed
-- As append, with files. First stores those that come along, each content once; see put_files_v1. At last notes from
-- where others were read from a disk.
select 'put'::text as part, f.place::bigint as seq, null::text as role, null::text as content,
       null::timestamptz as created_at, null::text as kind, null::text as turn_id, null::text as data
  from (select $21::text::jsonb as described where $21::text is not null) g
 cross join lateral exai.put_files_v1($1::text, $20::text, g.described, $22::bytea) f
union all
select p.part::text, p.seq::bigint, p.role::text, p.content::text, p.created_at::timestamptz, p.kind::text,
       p.turn_id::text, p.data::text
  from exai.append_v1($1::text, $2::text, $3::text::uuid, $4::text::uuid, $5::text, $6::text, $7::text, $8::text,
                      $9::text[], $10::text[], $11::text[], $12::text[], $13::text[], $14::bigint, $16::text[],
                      $17::text[], $18::text::jsonb) p
union all
select 'step'::text, exai.count_steps_v1($1::text, $5::text)::bigint, null::text, null::text, null::timestamptz,
       null::text, null::text, null::text
 where $15::boolean
union all
select 'linked'::text, exai.link_files_v1($1::text, $5::text, $19::text::jsonb)::bigint, null::text, null::text,
       null::timestamptz, null::text, null::text, null::text
 where $19::text is not null;

-- name: append_group
-- repeat: never
-- Stores the appends of several callers at once. An append without a row in the result is sent in a statement of its
-- own, which detects by its key whether it was stored. Locks the conversations, skipping those locked by others.
select p.number::integer, p.base_revision::bigint, p.first_seq::bigint, p.created_at::timestamptz, p.header::text,
       p.server_epoch::text
  from exai.append_batch_v1($1::text[], $2::text[], $3::text[]::uuid[], $4::text[]::uuid[], $5::text[], $6::text[],
                            $7::text[], $8::text[], $9::bigint[], $10::bigint[], $11::integer[], $12::bigint[],
                            $13::text[], $14::text[], $15::text[], $16::text[], $17::integer[],
                            $18::text[]::uuid[]) p;

-- name: list_conversations
-- repeat: read
-- A page of an owner's conversations, latest change first, by conversations_recent_idx. Filters are applied in this
-- order to the owner's rows only, so that the duration reveals nothing about other owners. If the headers before a row
-- exceed the byte limit, the row has no header, which indicates that the list continues. The kind of each one's newest
-- message is that of the outcome of a turn; it is null if another message is the newest. No messages and
-- no turns are read.
select case when l.preceding <= $12::bigint then l.header end::text as header, l.deleted_at::timestamptz as deleted_at,
       l.newest_kind::text as newest_kind
  from (
select f.header, f.deleted_at, f.updated_at, f.id, f.newest_kind,
       pg_catalog.sum(pg_catalog.octet_length(f.header)) over (order by f.updated_at desc, f.id desc)
       operator(pg_catalog.-) pg_catalog.octet_length(f.header) as preceding
  from (
select exai.header_v1(c)::text as header, c.updated_at, c.id, c.deleted_at,
       case when c.reply_seq operator(pg_catalog.=) (c.next_seq operator(pg_catalog.-) 1) then c.reply_kind end
         as newest_kind
  from public.conversations c
 where c.owner = $1::text and (c.deleted_at is not null) = $5::boolean
   and (c.updated_at, c.id) < ($3::timestamptz, $4::text::uuid)
   and ($6::text[] is null or c.tags operator(pg_catalog.@>) $6::text[])
   and ($7::text is null or c.metadata operator(pg_catalog.@>) $7::text::jsonb)
   and ($8::text is null or pg_catalog.starts_with(c.continuation_id, $8::text)
        or c.title operator(pg_catalog.~) $9::text)
   and c.updated_at operator(pg_catalog.>=) coalesce($10::timestamptz, '-infinity')
   and c.updated_at operator(pg_catalog.<) coalesce($11::timestamptz, 'infinity')
   and (not $13::boolean or c.next_seq operator(pg_catalog.>) 1)
 order by c.updated_at desc, c.id desc
 limit $2::integer) f) l
 order by l.updated_at desc, l.id desc;

-- name: list_conversations_in_order
-- repeat: read
-- A page of an owner's conversations in any order, or of those whose names begin alike; see list_conversations_v1.
select p.header::text, p.deleted_at::timestamptz, p.newest_kind::text
  from exai.list_conversations_v1(
    $1::text, $2::integer, $3::timestamptz, $4::text::uuid, $5::boolean, $6::text[], $7::text::jsonb, $8::text, $9::text,
    $10::timestamptz, $11::timestamptz, $13::text, $14::text, $15::text, $16::boolean, $12::bigint) p;

-- name: list_conversations_by_turns
-- repeat: read
-- The same page of the conversations with a turn of this tool or model. The condition stands alone, so that the planner
-- can begin with it: a rare tool or model is found by turns_tool_idx or turns_model_idx, a common one in the newest
-- conversations by turns_conversation_idx.
select case when l.preceding <= $14::bigint then l.header end::text as header, l.deleted_at::timestamptz as deleted_at,
       l.newest_kind::text as newest_kind
  from (
select f.header, f.deleted_at, f.updated_at, f.id, f.newest_kind,
       pg_catalog.sum(pg_catalog.octet_length(f.header)) over (order by f.updated_at desc, f.id desc)
       operator(pg_catalog.-) pg_catalog.octet_length(f.header) as preceding
  from (
select exai.header_v1(c)::text as header, c.updated_at, c.id, c.deleted_at,
       case when c.reply_seq operator(pg_catalog.=) (c.next_seq operator(pg_catalog.-) 1) then c.reply_kind end
         as newest_kind
  from public.conversations c
 where c.owner = $1::text and (c.deleted_at is not null) = $5::boolean
   and (c.updated_at, c.id) < ($3::timestamptz, $4::text::uuid)
   and ($6::text[] is null or c.tags operator(pg_catalog.@>) $6::text[])
   and ($7::text is null or c.metadata operator(pg_catalog.@>) $7::text::jsonb)
   and ($8::text is null or pg_catalog.starts_with(c.continuation_id, $8::text)
        or c.title operator(pg_catalog.~) $9::text)
   and c.updated_at operator(pg_catalog.>=) coalesce($12::timestamptz, '-infinity')
   and c.updated_at operator(pg_catalog.<) coalesce($13::timestamptz, 'infinity')
   and (not $15::boolean or c.next_seq operator(pg_catalog.>) 1)
   and exists (
        select from public.turns t
         where t.conversation_id = c.id and t.owner = $1::text
           and ($10::text is null or t.tool operator(pg_catalog.=) $10::text)
           and ($11::text is null or t.model operator(pg_catalog.=) $11::text))
 order by c.updated_at desc, c.id desc
 limit $2::integer) f) l
 order by l.updated_at desc, l.id desc;

-- name: changes
-- repeat: read
-- The changes since the start of a snapshot, for caches and listeners: one row of this snapshot, then conversations and
-- threads (null revision: removed), the latest changes if there are more than the limit. By conversations_changed_idx,
-- checkpoint_threads_changed_idx and primary keys. The list of conversations changed if one is new, gone, or one of its
-- last two changes was an edit. Transaction ids that the server has not assigned yet come from another server (a restored
-- dump) and are not changes here. Without a start, only the snapshot is returned.
-- The time at which statistics were reset indicates a recovery; from Postgres 15 on server_epoch_v1 includes it. A new
-- file of the table of threads indicates its truncation.
with snapshot as materialized (
  select pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot()) as xmin,
         pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot()) as xmax),
changed as (
  select c.owner, c.continuation_id, c.revision, c.revision <= 2 or c.edited_revision >= c.revision - 1 as listed
    from public.conversations c
   where c.changed_xid >= $1::text::xid8 and c.changed_xid < (select s.xmax from snapshot s)
   order by c.changed_xid desc
   limit $2::integer),
removed as (
  select r.owner, r.continuation_id
    from exai.removed_conversations r
   where r.changed_xid >= $1::text::xid8 and r.changed_xid < (select s.xmax from snapshot s)
   limit $2::integer),
threads as (
  select t.owner, t.thread_id, t.revision
    from exai.checkpoint_threads t
   where t.changed_xid >= $1::text::xid8 and t.changed_xid < (select s.xmax from snapshot s)
   order by t.changed_xid desc
   limit $2::integer),
removed_threads as (
  select r.owner, r.thread_id
    from exai.removed_threads r
   where r.changed_xid >= $1::text::xid8 and r.changed_xid < (select s.xmax from snapshot s)
   limit $2::integer)
select s.xmin::text as xmin,
       pg_catalog.concat_ws(' ', exai.server_epoch_v1(),
                            extract(epoch from pg_catalog.pg_stat_get_bgwriter_stat_reset_time()),
                            pg_catalog.pg_relation_filenode('exai.checkpoint_threads'::regclass))::text as server_epoch,
       null::text as owner, null::text as continuation_id, null::text as thread_id, null::bigint as revision,
       null::boolean as listed
  from snapshot s
union all
select null::text, null::text, c.owner::text, c.continuation_id::text, null::text, c.revision::bigint, c.listed::boolean
  from changed c
union all
select null::text, null::text, r.owner::text, r.continuation_id::text, null::text, null::bigint, true::boolean
  from removed r
union all
select null::text, null::text, t.owner::text, null::text, t.thread_id::text, t.revision::bigint, false::boolean
  from threads t
union all
select null::text, null::text, r.owner::text, null::text, r.thread_id::text, null::bigint, false::boolean
  from removed_threads r;
