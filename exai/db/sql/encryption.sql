-- name: encryption_keys
-- repeat: read
-- The keys in use, with the key of the hashes encrypted under each.
select k.name::text as name, k.fingerprint::text as fingerprint, k.wrapped::bytea as wrapped
  from exai.encryption_keys k
 order by k.name;

-- name: add_encryption_key
-- repeat: keyed
-- described: at first use
-- Stores the name of a key that is in use from now on; by encryption_keys_pkey, the first one by encryption_keys_first_key.
insert into exai.encryption_keys (name, fingerprint, wrapped, is_first)
values ($1::text, $2::text, $3::bytea, nullif($4::boolean, false))
on conflict do nothing
returning 1::integer as added;

-- name: remove_encryption_keys
-- repeat: keyed
-- described: at first use
-- Removes the names of keys with which no row is encrypted any more.
delete from exai.encryption_keys k where k.name <> all($1::text[]);

-- name: rekey_scan_messages
-- repeat: read
-- described: at first use
-- Some messages in the order of their keys, those with their content that are not stored as wanted: encrypted with a key
-- ($3 is the beginning of such a content), or not at all (null). The last row is the place at which to go on, null at the end. By the
-- primary key.
with page as materialized (
  select m.conversation_id, m.seq
    from public.messages m
   where (m.conversation_id, m.seq) > ($1::text::uuid, $2::bigint)
   order by m.conversation_id, m.seq
   limit $4::integer),
wanted as (
  select m.conversation_id, m.seq, m.role, m.kind, m.content, m.metadata, m.xmin as version, c.owner, c.continuation_id, c.cut_from,
         pg_catalog.sum(pg_catalog.octet_length(m.content)) over (order by m.conversation_id, m.seq)
         operator(pg_catalog.-) pg_catalog.octet_length(m.content) as preceding
    from page p
    join public.messages m on m.conversation_id = p.conversation_id and m.seq = p.seq
    join public.conversations c on c.id = m.conversation_id
   where case when $3::text is null then pg_catalog.starts_with(m.content, '$exai1$')
              else not pg_catalog.starts_with(m.content, $3::text) end)
select w.conversation_id::text as conversation_id, w.seq::bigint as seq, w.role::text as role, w.kind::text as kind,
       w.content::text as content, w.metadata::text as metadata, w.version::text as version, w.owner::text as owner,
       w.continuation_id::text as continuation_id, w.cut_from::text[] as cut_from
  from wanted w
 where w.preceding < $5::bigint
union all
(select l.conversation_id::text, l.seq::bigint, null::text, null::text, null::text, null::text, null::text, null::text,
        null::text, null::text[]
   from (select p.conversation_id, p.seq from page p
          where (p.conversation_id, p.seq) < (
                  select w.conversation_id, w.seq from wanted w where w.preceding >= $5::bigint
                   order by w.conversation_id, w.seq limit 1)
             or not exists (select from wanted w where w.preceding >= $5::bigint)
          order by p.conversation_id desc, p.seq desc
          limit 1) l);

-- name: rekey_messages
-- repeat: keyed
-- described: at first use
-- Replaces the stored form of messages that are as they were read.
select exai.rekey_messages_v1($1::text[]::uuid[], $2::bigint[], $3::text[], $4::text[], $5::text[])::bigint as replaced;

-- name: rekey_scan_conversations
-- repeat: read
-- described: at first use
-- Some conversations in the order of their ids, with what of them may be encrypted; by conversations_pkey.
select c.id::text as id, c.owner::text as owner, c.continuation_id::text as continuation_id,
       (c.parent_id is null and c.former_name is null)::boolean as is_own, c.title::text as title,
       c.metadata::text as metadata, c.xmin::text as version
  from public.conversations c
 where c.id > $1::text::uuid
 order by c.id
 limit $2::integer;

-- name: rekey_conversations
-- repeat: keyed
-- described: at first use
-- Replaces the stored form of titles and metadata of conversations that are as they were read.
select exai.rekey_conversations_v1($1::text[]::uuid[], $2::text[], $3::text[], $4::text[])::bigint as replaced;

-- name: rekey_scan_turns
-- repeat: read
-- described: at first use
-- Some turns in the order of their ids, with what of them may be encrypted; by turns_pkey.
select t.id::text as id, t.owner::text as owner, t.metadata::text as metadata, t.error::text as error, t.xmin::text as version
  from public.turns t
 where t.id > $1::text::uuid
 order by t.id
 limit $2::integer;

-- name: rekey_turns
-- repeat: keyed
-- described: at first use
-- Replaces the stored form of what belongs to turns that are as they were read; by turns_pkey.
with changed as (
  update public.turns t
     set metadata = u.metadata::jsonb, error = u.error::jsonb
    from (select r.id, g.metadata, g.error
            from rows from (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[]), pg_catalog.unnest($3::text[]),
                            pg_catalog.unnest($4::text[])) g(id, version, metadata, error)
            join public.turns r on r.id = g.id::uuid and r.xmin::text = g.version
           order by r.id
             for no key update of r skip locked) u
   where t.id = u.id
  returning 1)
select pg_catalog.count(*)::bigint as replaced from changed;

-- name: queue_all_words
-- repeat: keyed
-- described: at first use
-- Queues the words of some conversations for indexing, in the order of their ids; by conversations_pkey.
with page as materialized (
  select c.id, c.next_seq from public.conversations c where c.id > $1::text::uuid order by c.id limit $2::integer),
queued as (
  insert into exai.unindexed_messages (conversation_id, first_seq, last_seq)
  select s.id, 0, s.next_seq - 1 from page s)
select (select s.id from page s order by s.id desc limit 1)::text as last_id;

-- name: rekey_scan_contents
-- repeat: read
-- described: at first use
-- Some contents in the order of owner and digest, each with its oldest file; by files_content_idx, then contents_pkey. A file
-- without a content is from before there were contents, in the directory of its daemon.
select distinct on (f.owner, f.sha256)
       f.owner::text as owner, f.id::text as id, f.sha256::text as sha256, f.size_bytes::bigint as size_bytes,
       f.media_type::text as media_type, f.name::text as name, f.created_at::timestamptz as created_at,
       k.store::text as store, k.encoding::text as encoding, k.storage_path::text as storage_path
  from public.files f
  left join exai.contents k on k.owner = f.owner and k.sha256 = f.sha256
 where (f.owner, f.sha256) > ($1::text, $2::text) and (k.store is not null or f.storage_path is not null)
 order by f.owner, f.sha256, f.created_at, f.id
 limit $3::integer;

-- name: rekey_content
-- repeat: keyed
-- described: at first use
-- Gives files the same content in another stored form; see rekey_content_v1. By contents_pkey and files_content_idx.
select exai.rekey_content_v1($1::text, $2::text, $3::text, $4::bigint, $5::text, $6::text, $7::text::uuid, $8::text)::bigint
       as replaced;

-- name: rekey_scan_seals
-- repeat: read
-- described: at first use
-- What is needed to read some encrypted contents, in the order of owner and digest; by contents_pkey.
select c.owner::text as owner, c.sha256::text as sha256, c.encoding::text as encoding
  from exai.contents c
 where (c.owner, c.sha256) > ($1::text, $2::text) and pg_catalog.starts_with(c.encoding, '$exai1$')
 order by c.owner, c.sha256
 limit $3::integer;

-- name: rekey_seals
-- repeat: keyed
-- described: at first use
-- Replaces what is needed to read contents where it is as it was read; by contents_pkey.
with changed as (
  update exai.contents c
     set encoding = u.encoding
    from (select r.owner, r.sha256, g.encoding
            from rows from (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[]), pg_catalog.unnest($3::text[]),
                            pg_catalog.unnest($4::text[])) g(owner, sha256, version, encoding)
            join exai.contents r on r.owner = g.owner and r.sha256 = g.sha256 and r.encoding = g.version
           order by r.owner, r.sha256
             for no key update of r skip locked) u
   where c.owner = u.owner and c.sha256 = u.sha256
  returning 1)
select pg_catalog.count(*)::bigint as replaced from changed;

-- name: rekey_scan_texts
-- repeat: read
-- described: at first use
-- Some texts of documents in the order of owner and digest, as many as have about $4 bytes together; by content_texts_pkey.
select w.owner::text as owner, w.sha256::text as sha256, w.text::text as text, w.note::text as note, w.version::text as version
  from (select x.owner, x.sha256, x.text, x.note, x.version,
               pg_catalog.sum(coalesce(pg_catalog.octet_length(x.text), 0)) over (order by x.owner, x.sha256)
               operator(pg_catalog.-) coalesce(pg_catalog.octet_length(x.text), 0) as preceding
          from (select y.owner, y.sha256, y.text, y.note, y.xmin as version
                  from exai.content_texts y
                 where (y.owner, y.sha256) > ($1::text, $2::text)
                 order by y.owner, y.sha256
                 limit $3::integer) x) w
 where w.preceding < $4::bigint
 order by w.owner, w.sha256;

-- name: rekey_texts
-- repeat: keyed
-- described: at first use
-- Replaces the stored form of texts of documents that are as they were read; by content_texts_pkey.
with changed as (
  update exai.content_texts x
     set text = u.text, note = u.note
    from (select r.owner, r.sha256, g.text, g.note
            from rows from (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[]), pg_catalog.unnest($3::text[]),
                            pg_catalog.unnest($4::text[]), pg_catalog.unnest($5::text[])) g(owner, sha256, version, text, note)
            join exai.content_texts r on r.owner = g.owner and r.sha256 = g.sha256 and r.xmin::text = g.version
           order by r.owner, r.sha256
             for no key update of r skip locked) u
   where x.owner = u.owner and x.sha256 = u.sha256
  returning 1)
select pg_catalog.count(*)::bigint as replaced from changed;

-- name: rekey_scan_names
-- repeat: read
-- described: at first use
-- The names of some files in the order of their ids, with what is needed to read their contents; by files_pkey, then
-- contents_pkey.
select f.id::text as id, f.owner::text as owner, f.sha256::text as sha256, f.name::text as name, k.encoding::text as encoding
  from public.files f
  left join exai.contents k on k.owner = f.owner and k.sha256 = f.sha256
 where f.id > $1::text::uuid
 order by f.id
 limit $2::integer;

-- name: rekey_names
-- repeat: keyed
-- described: at first use
-- Replaces the stored form of names that are as they were read; by files_pkey.
with changed as (
  update public.files f
     set name = u.name
    from (select r.id, g.name
            from rows from (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[]), pg_catalog.unnest($3::text[]))
                 g(id, version, name)
            join public.files r on r.id = g.id::uuid and r.name = g.version
           order by r.id
             for no key update of r skip locked) u
   where f.id = u.id
  returning 1)
select pg_catalog.count(*)::bigint as replaced from changed;

-- name: rekey_scan_sources
-- repeat: read
-- described: at first use
-- From where the files of some links were read, in the order of the links; by conversation_files_pkey, then
-- conversations_pkey.
select l.conversation_id::text as conversation_id, l.file_id::text as file_id, l.source::text as source,
       l.xmin::text as version, c.owner::text as owner
  from public.conversation_files l
  join public.conversations c on c.id = l.conversation_id
 where (l.conversation_id, l.file_id) > ($1::text::uuid, $2::text::uuid)
 order by l.conversation_id, l.file_id
 limit $3::integer;

-- name: rekey_sources
-- repeat: keyed
-- described: at first use
-- Replaces the stored form of sources that are as they were read; by conversation_files_pkey.
with changed as (
  update public.conversation_files l
     set source = u.source::jsonb
    from (select r.conversation_id, r.file_id, g.source
            from rows from (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[]), pg_catalog.unnest($3::text[]),
                            pg_catalog.unnest($4::text[])) g(conversation_id, file_id, version, source)
            join public.conversation_files r
              on r.conversation_id = g.conversation_id::uuid and r.file_id = g.file_id::uuid and r.xmin::text = g.version
           order by r.conversation_id, r.file_id
             for no key update of r skip locked) u
   where l.conversation_id = u.conversation_id and l.file_id = u.file_id
  returning 1)
select pg_catalog.count(*)::bigint as replaced from changed;
