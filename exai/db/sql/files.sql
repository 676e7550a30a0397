-- name: put_files
-- repeat: keyed
-- Records contents once per owner by files_owner_sha256_key; one that is there already is marked as used now, so that it
-- does not become an orphan between this and its link. Rows are taken in the order of their digests, so that two callers
-- with the same files do not wait for each other.
with given as (
  select distinct on (g.sha256) g.sha256, g.size_bytes, g.media_type, g.name, g.storage_path
    from unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::text[])
         g(sha256, size_bytes, media_type, name, storage_path)
   order by g.sha256)
insert into public.files as f (owner, sha256, size_bytes, media_type, name, storage_path, used_at)
select $1::text, g.sha256, g.size_bytes::bigint, g.media_type, g.name, g.storage_path, clock_timestamp()
  from given g
 order by g.sha256
on conflict (owner, sha256) do update set used_at = excluded.used_at
returning f.id::text as id, f.sha256::text as sha256, f.size_bytes::bigint as size_bytes,
          f.media_type::text as media_type, f.name::text as name, f.created_at::timestamptz as created_at,
          (f.xmax = 0)::boolean as created;

-- name: get_files
-- repeat: read
-- An owner's files by id, by files_pkey.
select f.id::text as id, f.sha256::text as sha256, f.size_bytes::bigint as size_bytes,
       f.media_type::text as media_type, f.name::text as name, f.created_at::timestamptz as created_at
  from public.files f
 where f.owner = $1::text and f.id = any($2::text[]::uuid[]) and f.sha256 is not null;

-- name: list_files
-- repeat: read
-- A page of an owner's files, newest first, by files_recent_idx.
select f.id::text as id, f.sha256::text as sha256, f.size_bytes::bigint as size_bytes,
       f.media_type::text as media_type, f.name::text as name, f.created_at::timestamptz as created_at
  from public.files f
 where f.owner = $1::text and f.sha256 is not null
   and (f.created_at, f.id) < ($3::timestamptz, $4::text::uuid)
 order by f.created_at desc, f.id desc
 limit $2::integer;

-- name: list_conversation_files
-- repeat: read
-- A page of the files of one conversation, newest first; by conversation_files_pkey, then files_pkey.
select f.id::text as id, f.sha256::text as sha256, f.size_bytes::bigint as size_bytes,
       f.media_type::text as media_type, f.name::text as name, f.created_at::timestamptz as created_at
  from public.conversations c
  join public.conversation_files l on l.conversation_id = c.id
  join public.files f on f.id = l.file_id
 where c.owner = $1::text and c.continuation_id = $5::text and c.deleted_at is null and f.sha256 is not null
   and (f.created_at, f.id) < ($3::timestamptz, $4::text::uuid)
 order by f.created_at desc, f.id desc
 limit $2::integer;

-- name: link_files
-- repeat: keyed
-- Links files to a conversation, all of them or none; links that are there already stay. By the primary keys.
with conversation as materialized (
  select c.id from public.conversations c
   where c.owner = $1::text and c.continuation_id = $2::text and c.deleted_at is null),
found as materialized (
  select f.id from public.files f where f.owner = $1::text and f.id = any($3::text[]::uuid[])),
linked as (
  insert into public.conversation_files (conversation_id, file_id)
  select c.id, f.id from conversation c cross join found f
   where (select count(*) from found) = cardinality($3::text[])
   order by f.id
  on conflict do nothing
  returning file_id)
select (exists (select from conversation))::boolean as conversation,
       array(select w.id from unnest($3::text[]) w(id) where w.id::uuid not in (select f.id from found f))::text[]
         as missing,
       (select count(*) from linked)::bigint as linked;

-- name: delete_file
-- repeat: never
-- Forgets a file and its links; its bytes go with the next sweep. A repetition would find no file and call that an error.
-- By files_pkey.
delete from public.files f where f.owner = $1::text and f.id = $2::text::uuid
returning f.id::text as id;

-- name: cleanup_orphaned_files
-- repeat: keyed
-- Forgets files that no conversation has and nobody has used for the grace period.
select o.owner::text as owner, o.sha256::text as sha256, o.storage_path::text as storage_path
  from public.cleanup_orphaned_files(make_interval(secs => $1::double precision)) o;

-- name: known_files
-- repeat: read
-- Which of these places in the blob store some file still has, for the sweep of bytes; by files_storage_path_idx.
select f.storage_path::text as storage_path from public.files f where f.storage_path = any($1::text[]);
