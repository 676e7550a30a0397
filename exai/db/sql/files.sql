-- name: put_files
-- repeat: keyed
-- Stores files and the contents that come along, each content once for an owner; see put_files_v1. By contents_pkey, then
-- files_content_idx.
select f.place::integer as place, f.id::text as id, f.sha256::text as sha256, f.size_bytes::bigint as size_bytes,
       f.media_type::text as media_type, f.name::text as name, f.created_at::timestamptz as created_at,
       f.store::text as store, f.encoding::text as encoding, f.storage_path::text as storage_path,
       f.created::boolean as created
  from exai.put_files_v1($1::text, $2::text, $3::text::jsonb, $4::bytea) f;

-- name: put_part
-- repeat: keyed
-- Stores one part of a blob, and the blob with its first one; by their primary keys.
with begun as (
  insert into exai.blobs (id, size_bytes) values ($1::text::uuid, $2::bigint) on conflict do nothing)
insert into exai.blob_parts (blob_id, number, characters, data)
values ($1::text::uuid, $3::integer, $4::integer, $5::bytea)
on conflict do nothing;

-- name: read_bytes
-- repeat: read
-- A range of bytes of a content, part by part; only the requested bytes of each part are read. By contents_pkey, then
-- blob_parts_pkey.
select substring(p.data from greatest($3::bigint - (p.number::bigint << 20), 0)::integer + 1
                 for (least($3::bigint + $4::bigint, ((p.number + 1)::bigint << 20))
                      - greatest($3::bigint, (p.number::bigint << 20)))::integer)::bytea as data
  from exai.contents c
  join exai.blob_parts p on p.blob_id = c.blob_id
 where c.owner = $1::text and c.sha256 = $2::text
   and p.number between $3::bigint / 1048576 and ($3::bigint + $4::bigint - 1) / 1048576
 order by p.number;

-- name: read_contents
-- repeat: read
-- All parts of some contents; by contents_pkey, then blob_parts_pkey.
select c.sha256::text as sha256, p.data::bytea as data
  from exai.contents c
  join exai.blob_parts p on p.blob_id = c.blob_id
 where c.owner = $1::text and c.sha256 = any($2::text[])
 order by c.sha256, p.number;

-- name: part_characters
-- repeat: read
-- How many characters begin in each part of a content; by contents_pkey, then blob_parts_pkey.
select p.characters::integer as characters
  from exai.contents c
  join exai.blob_parts p on p.blob_id = c.blob_id
 where c.owner = $1::text and c.sha256 = $2::text
 order by p.number;

-- name: sweep_contents
-- repeat: keyed
-- Removes contents that no file has and bytes that no content has, unused for the grace period.
select s.contents::bigint as contents, s.blobs::bigint as blobs
  from exai.sweep_contents_v1(pg_catalog.make_interval(secs => $1::double precision), $2::integer) s;

-- name: get_files
-- repeat: read
-- An owner's files by id, by files_pkey.
select f.id::text as id, f.sha256::text as sha256, f.size_bytes::bigint as size_bytes,
       f.media_type::text as media_type, f.name::text as name, f.created_at::timestamptz as created_at,
       k.store::text as store, k.encoding::text as encoding, k.storage_path::text as storage_path
  from public.files f
  left join exai.contents k on k.owner = f.owner and k.sha256 = f.sha256
 where f.owner = $1::text and f.id = any($2::text[]::uuid[]) and f.sha256 is not null;

-- name: get_shown_files
-- repeat: read
-- As get_files, with the place from which each was read for a conversation; by files_pkey, then conversation_files_pkey.
select f.id::text as id, f.sha256::text as sha256, f.size_bytes::bigint as size_bytes,
       f.media_type::text as media_type, f.name::text as name, f.created_at::timestamptz as created_at,
       k.store::text as store, k.encoding::text as encoding, k.storage_path::text as storage_path,
       l.source::text as source
  from public.files f
  left join exai.contents k on k.owner = f.owner and k.sha256 = f.sha256
  left join public.conversation_files l on l.conversation_id = $3::text::uuid and l.file_id = f.id
 where f.owner = $1::text and f.id = any($2::text[]::uuid[]) and f.sha256 is not null;

-- name: list_read_files
-- repeat: read
-- The files of a conversation that were read on one machine, which may be stored in several forms, those read last first;
-- by conversation_files_pkey, then files_pkey.
select f.id::text as id, f.sha256::text as sha256, f.size_bytes::bigint as size_bytes,
       f.media_type::text as media_type, f.name::text as name, f.created_at::timestamptz as created_at,
       k.store::text as store, k.encoding::text as encoding, k.storage_path::text as storage_path,
       l.source::text as source
  from public.conversations c
  join public.conversation_files l on l.conversation_id = c.id
  join public.files f on f.id = l.file_id
  left join exai.contents k on k.owner = f.owner and k.sha256 = f.sha256
 where c.owner = $1::text and c.continuation_id = $2::text and c.deleted_at is null and f.sha256 is not null
   and l.source ->> 'machine'::text = any($3::text[])
 order by (l.source ->> 'read_ns'::text)::bigint desc, f.id
 limit $4::integer;

-- name: list_files
-- repeat: read
-- A page of an owner's files, newest first, by files_recent_idx; those whose id begins so or whose name has this part are
-- looked for in that order, in nothing but the owner's rows.
select f.id::text as id, f.sha256::text as sha256, f.size_bytes::bigint as size_bytes,
       f.media_type::text as media_type, f.name::text as name, f.created_at::timestamptz as created_at,
       k.store::text as store, k.encoding::text as encoding, k.storage_path::text as storage_path
  from public.files f
  left join exai.contents k on k.owner = f.owner and k.sha256 = f.sha256
 where f.owner = $1::text and f.sha256 is not null
   and (f.created_at, f.id) < ($3::timestamptz, $4::text::uuid)
   and ($5::text is null or pg_catalog.starts_with(f.id::text, $5::text) or f.name operator(pg_catalog.~) $6::text)
 order by f.created_at desc, f.id desc
 limit $2::integer;

-- name: list_conversation_files
-- repeat: read
-- A page of the files of one conversation, newest first; by conversation_files_pkey, then files_pkey.
select f.id::text as id, f.sha256::text as sha256, f.size_bytes::bigint as size_bytes,
       f.media_type::text as media_type, f.name::text as name, f.created_at::timestamptz as created_at,
       k.store::text as store, k.encoding::text as encoding, k.storage_path::text as storage_path
  from public.conversations c
  join public.conversation_files l on l.conversation_id = c.id
  join public.files f on f.id = l.file_id
  left join exai.contents k on k.owner = f.owner and k.sha256 = f.sha256
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
   where (select pg_catalog.count(*) from found) = pg_catalog.cardinality($3::text[])
   order by f.id
  on conflict do nothing
  returning file_id)
select (exists (select from conversation))::boolean as conversation,
       array(select w.id from pg_catalog.unnest($3::text[]) w(id)
              where w.id::uuid not in (select f.id from found f))::text[] as missing,
       (select pg_catalog.count(*) from linked)::bigint as linked;

-- name: delete_file
-- repeat: never
-- Forgets a file and its links; a content that no file has any more goes with a later sweep. A repetition would find no file and call that an error.
-- By files_pkey.
delete from public.files f where f.owner = $1::text and f.id = $2::text::uuid
returning f.id::text as id;

-- name: cleanup_orphaned_files
-- repeat: keyed
-- Deletes files that no conversation has and that were not used for the grace period.
select o.owner::text as owner, o.sha256::text as sha256, o.storage_path::text as storage_path
  from public.cleanup_orphaned_files(pg_catalog.make_interval(secs => $1::double precision)) o;

-- name: stored_files
-- repeat: read
-- A page of the contents in some stores, each with its oldest file, for all owners; by files_content_idx, then
-- contents_pkey. A file without a content is from before there were contents, in the directory of its daemon.
select distinct on (f.owner, f.sha256)
       f.owner::text as owner, f.id::text as id, f.sha256::text as sha256, f.size_bytes::bigint as size_bytes,
       f.media_type::text as media_type, f.name::text as name, f.created_at::timestamptz as created_at,
       k.store::text as store, k.encoding::text as encoding, k.storage_path::text as storage_path
  from public.files f
  left join exai.contents k on k.owner = f.owner and k.sha256 = f.sha256
 where (f.owner, f.sha256) > ($1::text, $2::text)
   and case when k.store is null then f.storage_path is not null and 'directory'::text = any($3::text[])
            else k.store = any($3::text[]) end
 order by f.owner, f.sha256, f.created_at, f.id
 limit $4::integer;

-- name: database_identity
-- repeat: read
-- The identity of this database.
select pg_catalog.concat(c.system_identifier, '/', d.oid)::text as identity
  from pg_catalog.pg_control_system() c
  cross join pg_catalog.pg_database d
 where d.datname = pg_catalog.current_database();

-- name: count_stored
-- repeat: read
-- How many contents with a file are in some stores, and their size; counts all of them.
select pg_catalog.count(*)::bigint as contents, coalesce(pg_catalog.sum(d.size_bytes), 0)::bigint as size_bytes
  from (select distinct on (f.owner, f.sha256) f.size_bytes
          from public.files f
          left join exai.contents k on k.owner = f.owner and k.sha256 = f.sha256
         where f.sha256 is not null
           and case when k.store is null then f.storage_path is not null and 'directory'::text = any($1::text[])
                    else k.store = any($1::text[]) end
         order by f.owner, f.sha256) d;

-- name: mark_lost
-- repeat: keyed
-- Notes that the bytes of contents are not in their store, so that they are stored again when they are given again; by
-- contents_pkey. A content that was stored elsewhere meanwhile is left alone.
update exai.contents c
   set lost_at = pg_catalog.now()
  from rows from (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[]), pg_catalog.unnest($3::text[]),
                  pg_catalog.unnest($4::text[])) w(owner, sha256, store, storage_path)
 where c.owner = w.owner and c.sha256 = w.sha256 and c.store = w.store
   and c.storage_path is not distinct from w.storage_path and c.lost_at is null
returning c.sha256::text as sha256;

-- name: stored_size
-- repeat: read
-- How many bytes of a content are in the database, null for none; reads no bytes. By contents_pkey, then
-- blob_parts_pkey.
select (select exai.blob_size_v1(c.blob_id) from exai.contents c where c.owner = $1::text and c.sha256 = $2::text)::bigint
       as size_bytes;

-- name: count_unused
-- repeat: read
-- What sweep_contents would remove, without a limit: bytes that no content has, and those of contents without a file.
with spare as materialized (
  select c.blob_id from exai.contents c
   where c.used_at < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $1::double precision)
     and c.blob_id is not null
     and not exists (select from public.files f where f.owner = c.owner and f.sha256 = c.sha256))
select pg_catalog.count(*)::bigint as blobs, coalesce(pg_catalog.sum(exai.blob_size_v1(b.id)), 0)::bigint as size_bytes
  from exai.blobs b
 where (b.begun_at < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $1::double precision)
        and not exists (select from exai.contents c where c.blob_id = b.id))
    or b.id in (select s.blob_id from spare s);

-- name: count_orphans
-- repeat: read
-- How many files cleanup_orphaned_files would delete, without a limit.
select pg_catalog.count(*)::bigint as files
  from public.files f
 where f.used_at < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $1::double precision)
   and not exists (select from public.conversation_files l where l.file_id = f.id);

-- name: known_files
-- repeat: read
-- Which of these storage paths belong to a content, or to a file from before there were contents; by
-- contents_storage_path_idx and files_storage_path_idx.
select f.storage_path::text as storage_path from public.files f where f.storage_path = any($1::text[])
union
select c.storage_path::text from exai.contents c where c.storage_path = any($1::text[]);

-- name: read_texts
-- repeat: read
-- The texts of documents by content, and recent failures; by content_texts_pkey.
select x.sha256::text as sha256, x.source::text as source, x.text::text as text, x.note::text as note
  from exai.content_texts x
 where x.owner = $1::text and x.sha256 = any($2::text[])
   and (x.text is not null
        or x.made_at > pg_catalog.now() - pg_catalog.make_interval(secs => $3::double precision));

-- name: put_text
-- repeat: keyed
-- Stores the text of a content that exists, or a failed attempt; by content_texts_pkey.
insert into exai.content_texts (owner, sha256, source, text, note)
select c.owner, c.sha256, $3::text, $4::text, $5::text
  from exai.contents c
 where c.owner = $1::text and c.sha256 = $2::text
on conflict (owner, sha256) do update
   set source = excluded.source, text = excluded.text, note = excluded.note, made_at = pg_catalog.now()
 where content_texts.text is null;

-- name: remember_remote
-- repeat: keyed
-- Remembers a copy at a provider until it is deleted there.
insert into exai.remote_files (key_id, file_id) values ($1::text, $2::text) on conflict do nothing;

-- name: forget_remote
-- repeat: keyed
-- Forgets a copy that is deleted; by remote_files_pkey.
delete from exai.remote_files r where r.key_id = $1::text and r.file_id = $2::text;

-- name: claim_remote
-- repeat: keyed
-- Returns copies that were not tried for a while, those tried longest ago first, and forgets those beyond their age.
with gone as (
  delete from exai.remote_files r
   where r.key_id = $1::text
     and r.made_at < pg_catalog.now() - pg_catalog.make_interval(secs => $4::double precision)),
due as (
  select r.key_id, r.file_id
    from exai.remote_files r
   where r.key_id = $1::text
     and r.tried_at < pg_catalog.now() - pg_catalog.make_interval(secs => $2::double precision)
     and r.made_at >= pg_catalog.now() - pg_catalog.make_interval(secs => $4::double precision)
   order by r.tried_at
   limit $3::integer
     for update skip locked)
update exai.remote_files r set tried_at = pg_catalog.now()
  from due d
 where r.key_id = d.key_id and r.file_id = d.file_id
returning r.file_id::text as file_id;
