-- name: erasure_tables
-- repeat: read
-- described: at first use
-- The statements that count and delete an owner's rows, or those of conversations, in every table that names one by a
-- column, from the catalogs. Conversations themselves are deleted by erase_conversations.
select (n.nspname || '.' || c.relname)::text as name, a.attname::text as by,
       pg_catalog.format('select pg_catalog.count(*) from %I.%I x where %s', n.nspname, c.relname, w.condition)::text as count,
       pg_catalog.format('delete from %I.%I x where %s', n.nspname, c.relname, w.condition)::text as remove
  from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  join pg_catalog.pg_attribute a on a.attrelid = c.oid and not a.attisdropped
 cross join lateral (
   select case a.attname when 'owner' then 'x.owner = $1::text'
                         when 'conversation_id' then 'x.conversation_id = any($1::text[]::uuid[])'
                         else 'x.owner = $1::text and x.continuation_id = any($2::text[])' end as condition) w
 where c.relkind in ('r', 'p') and not c.relispartition and a.attname = any($2::text[])
   and (n.nspname in ('exai', 'monitoring') or (n.nspname = 'public' and c.relname = any($1::text[])))
   and (n.nspname, c.relname) <> ('public', 'conversations')
 order by 1, 2;

-- name: erasure_conversations
-- repeat: read
-- described: at first use
-- The conversations to erase, locked: all of an owner; or one with its forks, which show its messages, and the deleted
-- ones that had its name. By conversations_owner_continuation_key, conversations_former_idx and conversations_parent_idx.
with recursive found(id) as (
  select c.id from public.conversations c
   where c.owner = $1::text and ($2::text is null or c.continuation_id = $2::text
                                 or (c.former_name = $2::text and c.deleted_at is not null))
  union
  select c.id from public.conversations c join found f on c.parent_id = f.id where $2::text is not null)
select c.id::text as id, c.owner::text as owner, c.continuation_id::text as continuation_id,
       coalesce(c.former_name = $2::text and c.deleted_at is not null, false)::boolean as is_former
  from public.conversations c
 where c.id in (select f.id from found f)
 order by c.id
   for update;

-- name: erasure_files
-- repeat: read
-- described: at first use
-- The files to erase, locked: all of an owner; or those of these conversations that no other one has. By
-- conversation_files_pkey and conversation_files_file_idx.
select f.id::text as id
  from public.files f
 where f.owner = $1::text
   and ($2::text[] is null
        or (f.id in (select l.file_id from public.conversation_files l
                      where l.conversation_id = any($2::text[]::uuid[]))
            and not exists (select from public.conversation_files l
                             where l.file_id = f.id and l.conversation_id <> all($2::text[]::uuid[]))))
 order by f.id
   for update;

-- name: erasure_threads
-- repeat: read
-- described: at first use
-- The threads of an owner's checkpoints, locked. By checkpoint_threads_owner_thread_key.
select t.thread_id::text as thread_id
  from exai.checkpoint_threads t
 where t.owner = $1::text
 order by t.id
   for update;

-- name: erase_files
-- repeat: keyed
-- described: at first use
-- Deletes files; by files_pkey.
delete from public.files f where f.id = any($1::text[]::uuid[]);

-- name: erase_contents
-- repeat: keyed
-- described: at first use
-- Deletes an owner's contents that no file has, and returns where their bytes are. By files_content_idx.
delete from exai.contents c
 where c.owner = $1::text and not exists (select from public.files f where f.owner = c.owner and f.sha256 = c.sha256)
returning c.sha256::text as sha256, c.size_bytes::bigint as size_bytes, c.store::text as store,
          c.storage_path::text as storage_path, c.blob_id::text as blob_id;

-- name: erase_blobs
-- repeat: keyed
-- described: at first use
-- Deletes bytes in the database, by blobs_pkey.
delete from exai.blobs b where b.id = any($1::text[]::uuid[]);

-- name: erase_conversations
-- repeat: keyed
-- described: at first use
-- Deletes conversations with everything that refers to them.
delete from public.conversations c where c.id = any($1::text[]::uuid[]);

-- name: erase_names
-- repeat: keyed
-- described: at first use
-- Takes the names of erased conversations out of the records of what they cost.
update exai.purged_turns p set continuation_id = p.conversation_id::text
 where p.conversation_id = any($1::text[]::uuid[]);

-- name: erase_requests
-- repeat: keyed
-- described: at first use
-- Deletes the requests of clients for conversations, which name them in their arguments until they are done. By
-- requests_recent_idx.
delete from public.requests r
 where r.owner = $1::text and r.arguments ->> 'continuation_id'::text = any($2::text[]);

-- name: erase_quarantine
-- repeat: keyed
-- described: at first use
-- Deletes rows of an older system by their owner or conversation.
delete from exai.quarantine q
 where ($2::boolean and q."row" ->> 'owner'::text = $1::text) or q."row" ->> 'conversation_id'::text = any($3::text[])
    or (q.table_name = 'conversations' and q."row" ->> 'id'::text = any($3::text[]));

-- name: erase_events
-- repeat: keyed
-- described: at first use
-- Deletes an owner's events of the history.
delete from monitoring.metrics_raw m where m.data #>> '{labels,owner}'::text[] = $1::text;

-- name: erase_minutes
-- repeat: keyed
-- described: at first use
-- Deletes an owner's sums of minutes.
delete from monitoring.metrics_1min m where m.labels ->> 'owner'::text = $1::text;

-- name: erase_hours
-- repeat: keyed
-- described: at first use
-- Deletes an owner's sums of hours.
delete from monitoring.metrics_1hour m where m.labels ->> 'owner'::text = $1::text;

-- name: erase_buffered
-- repeat: keyed
-- described: at first use
-- Has aggregate_metrics leave out metrics of an owner from before now, and waits for its calls that do not know that yet.
with gate as materialized (select pg_catalog.pg_advisory_xact_lock(7311701100470826099))
insert into monitoring.erased_owners as e (digest, erased_at)
select pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to($1::text, 'UTF8')), 'hex'), pg_catalog.clock_timestamp()
  from gate
on conflict (digest) do update set erased_at = excluded.erased_at;

-- name: forget_removals
-- repeat: keyed
-- described: at first use
-- Forgets that conversations, and all threads, were removed, once caches have been told; by their owner and name.
with threads as (
  delete from exai.removed_threads t where t.owner = $1::text and $2::text[] is null)
delete from exai.removed_conversations r
 where r.owner = $1::text and ($2::text[] is null or r.continuation_id = any($2::text[]));
