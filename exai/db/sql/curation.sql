-- name: fork
-- repeat: keyed
-- Makes a conversation that shares another one's beginning; once per request key, by turns_owner_key.
select p.part::text, p.data::text
  from exai.fork_v1($1::text, $2::text, $3::text::uuid, $4::text::uuid, $5::text, $6::text, $7::bigint, $8::text,
                    $9::text) p;

-- name: rewind
-- repeat: keyed
-- Moves the newest messages of a conversation to a deleted one and returns them; once per request key. Locks it.
select p.part::text, p.seq::bigint, p.role::text, p.content::text, p.created_at::timestamptz, p.kind::text,
       p.turn_id::text, p.data::text, p.key::text
  from exai.rewind_v1($1::text, $2::text, $3::text::uuid, $4::text::uuid, $5::text, $6::text, $7::bigint, $8::bigint,
                      $9::bigint, $10::integer, $11::bigint) p;

-- name: change_conversation
-- repeat: keyed
-- Changes title, metadata and tags of a conversation, or marks it as deleted; once per request key. Locks it.
select p.part::text, p.data::text
  from exai.change_conversation_v1($1::text, $2::text, $3::text::uuid, $4::text, $5::text, $6::text, $7::text::jsonb,
                                   $8::bigint) p;

-- name: purge_conversations
-- repeat: keyed
-- Removes conversations marked as deleted long ago, or only those of them that have expired, with all they hold; by
-- conversations_deleted_idx. One that a fork still reads from stays until the fork is gone.
with gone as (
  select c.id
    from public.conversations c
   where c.deleted_at < pg_catalog.now() - pg_catalog.make_interval(secs => $1::double precision)
     and (not $3::boolean or c.expires_at <= pg_catalog.now())
     and not exists (select from public.conversations x where x.parent_id = c.id)
   order by c.deleted_at
   limit $2::integer
     for update skip locked),
purged as (
  delete from public.conversations c using gone g where c.id = g.id returning c.id)
select pg_catalog.count(*)::bigint as removed from purged;

-- name: expire_idle
-- repeat: keyed
-- Marks idle conversations without a time of their own as deleted, of one owner or of all but some; by
-- conversations_recent_idx, owner by owner.
with recursive owners(owner) as (
  (select c.owner from public.conversations c where $1::text is null or c.owner = $1::text order by c.owner limit 1)
  union all
  select (select c.owner from public.conversations c where c.owner > o.owner order by c.owner limit 1)
    from owners o
   where $1::text is null and o.owner is not null),
idle as (
  select i.id
    from owners o
   cross join lateral (
     select c.id
       from public.conversations c
      where c.owner = o.owner and c.owner <> all($4::text[]) and c.deleted_at is null and c.expires_at is null
        and c.updated_at < pg_catalog.now() - pg_catalog.make_interval(secs => $2::double precision)
      order by c.updated_at
      limit $3::integer) i
   limit $3::integer),
locked as (
  select c.id from public.conversations c join idle i on i.id = c.id order by c.id for no key update of c skip locked),
marked as (
  update public.conversations c
     set deleted_at = pg_catalog.now(), revision = c.revision + 1, edited_revision = c.revision + 1,
         changed_xid = pg_catalog.pg_current_xact_id()
    from locked l
   where c.id = l.id and c.deleted_at is null
     and c.updated_at < pg_catalog.now() - pg_catalog.make_interval(secs => $2::double precision)
  returning c.id)
select pg_catalog.count(*)::bigint as marked from marked;

-- name: expire_due
-- repeat: keyed
-- described: at first use
-- Marks conversations as deleted whose time has come; by conversations_expires_idx.
with due as (
  select c.id
    from public.conversations c
   where c.expires_at <= pg_catalog.now() and c.deleted_at is null
   order by c.id
   limit $1::integer
     for no key update of c skip locked),
marked as (
  update public.conversations c
     set deleted_at = pg_catalog.now(), revision = c.revision + 1, edited_revision = c.revision + 1,
         changed_xid = pg_catalog.pg_current_xact_id()
    from due d
   where c.id = d.id
  returning c.id)
select pg_catalog.count(*)::bigint as marked from marked;

-- name: count_purgeable
-- repeat: read
-- described: at first use
-- How many conversations purge_conversations would remove if it were repeated; by conversations_deleted_idx and
-- conversations_parent_idx. One from which a conversation reads that stays is kept.
with recursive old(id, parent_id) as (
  select c.id, c.parent_id
    from public.conversations c
   where c.deleted_at < pg_catalog.now() - pg_catalog.make_interval(secs => $1::double precision)),
kept(id) as (
  select o.id
    from old o
   where exists (select from public.conversations x
                  where x.parent_id = o.id
                    and (x.deleted_at is null
                         or x.deleted_at >= pg_catalog.now() - pg_catalog.make_interval(secs => $1::double precision)))
  union
  select o.parent_id from old o join kept k on k.id = o.id where o.parent_id in (select x.id from old x))
select (select pg_catalog.count(*) from old)::bigint - (select pg_catalog.count(*) from kept)::bigint as removed;

-- name: count_idle
-- repeat: read
-- described: at first use
-- How many conversations expire_idle would mark without a limit; reads the conversations of these owners.
select pg_catalog.count(*)::bigint as marked
  from public.conversations c
 where ($1::text is null or c.owner = $1::text) and c.owner <> all($3::text[]) and c.deleted_at is null
   and c.expires_at is null
   and c.updated_at < pg_catalog.now() - pg_catalog.make_interval(secs => $2::double precision);

-- name: count_due
-- repeat: read
-- described: at first use
-- How many conversations expire_due would mark without a limit; by conversations_expires_idx.
select pg_catalog.count(*)::bigint as marked
  from public.conversations c
 where c.expires_at <= pg_catalog.now() and c.deleted_at is null;

-- name: prune_removed
-- repeat: keyed
-- Deletes the records of removed conversations and threads once no cache can contain them any more.
with gone as (
  delete from exai.removed_conversations r
   where r.removed_at < pg_catalog.now() - pg_catalog.make_interval(secs => $1::double precision)
  returning 1),
threads as (
  delete from exai.removed_threads r
   where r.removed_at < pg_catalog.now() - pg_catalog.make_interval(secs => $1::double precision)
  returning 1)
select ((select pg_catalog.count(*) from gone) operator(pg_catalog.+) (select pg_catalog.count(*) from threads))::bigint
       as removed;

-- name: read_forward
-- repeat: read
-- Messages from the oldest on, for exports, and at the beginning whether there are files; by the primary key of messages
-- and conversation_files_pkey, in one snapshot.
select p.part::text, p.seq::bigint, p.role::text, p.content::text, p.created_at::timestamptz, p.kind::text,
       p.turn_id::text, p.data::text, p.key::text
  from exai.read_forward_v1($1::text, $2::text, $3::bigint, $4::bigint, $5::integer, $6::bigint, $7::boolean) p
union all
select 'files', null::bigint, null::text, null::text, null::timestamptz, null::text, null::text, null::text, null::text
 where $3::bigint = 0 and exists (
   select from public.conversations c
     join public.conversation_files l on l.conversation_id = c.id
    where c.owner = $1::text and c.continuation_id = $2::text and c.deleted_at is null);

-- name: import_batch
-- repeat: keyed
-- Stores one batch of an import with its own times, and links the files that were taken out of its messages; locks the
-- conversation.
select p.part::text, p.data::text
  from exai.import_v1($1::text, $2::text, $3::text::uuid, $4::text::uuid, $5::text, $6::text, $7::text::jsonb,
                      $8::bigint, $9::text[], $10::text[], $11::text[], $12::text[], $13::text[], $14::text[],
                      $16::text[], $17::boolean) p
union all
select 'linked'::text, exai.link_files_v1($1::text, $5::text, $15::text::jsonb)::text
 where $15::text is not null;
