-- name: put_checkpoint
-- repeat: keyed
-- Stores a checkpoint with the values of its channels' new versions; finds an earlier attempt by checkpoints_pkey and
-- checkpoint_blobs_pkey. Locks the thread.
select p.head::text as head, p.is_new::boolean as is_new, p.stored::bigint as stored
  from exai.put_checkpoint_v1($1::text, $2::text, $3::double precision, $4::text::jsonb, $5::bytea, $6::bytea,
                              $7::text[], $8::text[], $9::text[], $10::bytea[]) p;

-- name: put_writes
-- repeat: keyed
-- Stores what a task has written; finds an earlier attempt by checkpoint_writes_pkey. Locks the thread.
select p.head::text as head, p.is_new::boolean as is_new, p.stored::bigint as stored
  from exai.put_writes_v1($1::text, $2::text, $3::double precision, $4::text, $5::text, $6::text, $7::text, $8::boolean,
                          $9::text, $10::integer[], $11::text[], $12::text[], $13::bytea[]) p;

-- name: read_checkpoint
-- repeat: read
-- A thread, one checkpoint of a namespace (null: the newest), the values of its channels, and its writes; of the newest
-- also those of checkpoints that are not stored yet. By checkpoint_threads_owner_thread_key and the primary keys.
with thread as materialized (
  select t.id, t.thread_id, exai.thread_head_v1(t) as head,
         t.deleted_at is null and (t.expires_at is null or t.expires_at > pg_catalog.now()) as is_live
    from exai.checkpoint_threads t
   where t.owner = $1::text and t.thread_id = $2::text),
found as materialized (
  select c.thread, c.checkpoint_id, c.parent_id, c.run_id, c.body_type, c.body, c.metadata_type, c.metadata, c.facts,
         c.versions, c.delta_channels, c.key_name, c.bound_to
    from exai.checkpoints c
    join thread t on t.id = c.thread and t.is_live
   where c.namespace = $3::text and ($4::text is null or c.checkpoint_id = $4::text)
   order by c.checkpoint_id desc
   limit 1)
select 'thread'::text as part, t.head::text as facts, null::bytea as data, null::bytea as metadata, null::text as key_name,
       null::text as bound_to
  from thread t
union all
select 'checkpoint', pg_catalog.jsonb_build_object(
         'namespace', $3::text, 'checkpoint_id', f.checkpoint_id, 'parent_id', f.parent_id, 'run_id', f.run_id,
         'body_type', f.body_type, 'metadata_type', f.metadata_type, 'facts', f.facts, 'versions', f.versions,
         'delta_channels', f.delta_channels)::text,
       f.body, f.metadata, f.key_name, f.bound_to
  from found f
union all
select 'value', pg_catalog.jsonb_build_object(
         'namespace', $3::text, 'channel', b.channel, 'version', b.version, 'type', b.value_type)::text,
       b.value, null, b.key_name, b.bound_to
  from found f
 cross join lateral pg_catalog.jsonb_each_text(f.versions) v(channel, version)
  join exai.checkpoint_blobs b
    on b.thread = f.thread and b.namespace = $3::text and b.channel = v.channel and b.version = v.version
union all
select 'write', pg_catalog.jsonb_build_object(
         'namespace', $3::text, 'checkpoint_id', w.checkpoint_id, 'task_id', w.task_id, 'task_path', w.task_path,
         'place', w.place, 'channel', w.channel, 'type', w.value_type)::text,
       w.value, null, w.key_name, w.bound_to
  from thread t
  join exai.checkpoint_writes w on w.thread = t.id and w.namespace = $3::text
 where t.is_live
   and case when $4::text is null
            then w.checkpoint_id >= coalesce((select f.checkpoint_id from found f), '')
            else w.checkpoint_id = $4::text and exists (select from found f) end;

-- name: list_checkpoints
-- repeat: read
-- A page of checkpoints, newest first, of one thread or of all of an owner, with the values of their channels and their
-- writes: as many as fit into a number of bytes, and one at least. By checkpoints_pkey, checkpoints_thread_idx or
-- checkpoints_recent_idx. The last row says where the next page begins, if there may be one.
with page as materialized (
  select c.thread, t.thread_id, c.namespace, c.checkpoint_id, t.copied_from, c.parent_id, c.run_id, c.body_type, c.body,
         c.metadata_type, c.metadata, c.facts, c.versions, c.delta_channels, c.key_name, c.bound_to
    from exai.checkpoints c
    join exai.checkpoint_threads t on t.id = c.thread
   where c.owner = $1::text and t.owner = $1::text and t.deleted_at is null
     and (t.expires_at is null or t.expires_at > pg_catalog.now())
     and ($2::text is null or t.thread_id = $2::text)
     and ($3::text is null or c.namespace = $3::text)
     and ($4::text is null or c.checkpoint_id = $4::text)
     and ($5::text is null or c.facts @> $5::text::jsonb)
     and ($6::text is null or c.checkpoint_id < $6::text)
     and ($7::text is null or (c.checkpoint_id, c.thread, c.namespace) < ($7::text, $8::text::uuid, $9::text))
   order by c.checkpoint_id desc, c.thread desc, c.namespace desc
   limit $10::integer),
sized as (
  select p.thread, p.namespace, p.checkpoint_id,
         pg_catalog.sum(pg_catalog.octet_length(p.body) + s.size_bytes)
           over (order by p.checkpoint_id desc, p.thread desc, p.namespace desc)
         operator(pg_catalog.-) (pg_catalog.octet_length(p.body) + s.size_bytes) as preceding
    from page p
   cross join lateral (
     select coalesce(pg_catalog.sum(pg_catalog.octet_length(b.value)), 0) as size_bytes
       from pg_catalog.jsonb_each_text(p.versions) v(channel, version)
       join exai.checkpoint_blobs b
         on b.thread = p.thread and b.namespace = p.namespace and b.channel = v.channel and b.version = v.version) s),
fitting as materialized (
  select s.thread, s.namespace, s.checkpoint_id from sized s where s.preceding < $11::bigint)
select 'checkpoint'::text as part, p.thread::text as thread, pg_catalog.jsonb_build_object(
         'thread_id', p.thread_id, 'copied_from', p.copied_from, 'namespace', p.namespace,
         'checkpoint_id', p.checkpoint_id, 'parent_id', p.parent_id, 'run_id', p.run_id, 'body_type', p.body_type,
         'metadata_type', p.metadata_type, 'facts', p.facts, 'versions', p.versions,
         'delta_channels', p.delta_channels)::text as facts,
       p.body::bytea as data, p.metadata::bytea as metadata, p.key_name::text as key_name, p.bound_to::text as bound_to
  from page p
  join fitting f on f.thread = p.thread and f.namespace = p.namespace and f.checkpoint_id = p.checkpoint_id
union all
select 'value', b.thread::text, pg_catalog.jsonb_build_object(
         'namespace', b.namespace, 'channel', b.channel, 'version', b.version, 'type', b.value_type)::text,
       b.value, null, b.key_name, b.bound_to
  from (select distinct p.thread, p.namespace, v.channel, v.version
          from page p
          join fitting f on f.thread = p.thread and f.namespace = p.namespace and f.checkpoint_id = p.checkpoint_id
         cross join lateral pg_catalog.jsonb_each_text(p.versions) v(channel, version)) d
  join exai.checkpoint_blobs b
    on b.thread = d.thread and b.namespace = d.namespace and b.channel = d.channel and b.version = d.version
union all
select 'write', w.thread::text, pg_catalog.jsonb_build_object(
         'namespace', w.namespace, 'checkpoint_id', w.checkpoint_id, 'task_id', w.task_id, 'task_path', w.task_path,
         'place', w.place, 'channel', w.channel, 'type', w.value_type)::text,
       w.value, null, w.key_name, w.bound_to
  from fitting f
  join exai.checkpoint_writes w
    on w.thread = f.thread and w.namespace = f.namespace and w.checkpoint_id = f.checkpoint_id
union all
select 'next', l.thread::text, pg_catalog.jsonb_build_object(
         'namespace', l.namespace, 'checkpoint_id', l.checkpoint_id)::text, null, null, null, null
  from (select f.thread, f.namespace, f.checkpoint_id from fitting f
         order by f.checkpoint_id, f.thread, f.namespace limit 1) l
 where (select pg_catalog.count(*) from page) = $10::integer
    or (select pg_catalog.count(*) from fitting) < (select pg_catalog.count(*) from page);

-- name: read_ancestry
-- repeat: read
-- For some channels of a checkpoint, what its ancestors have written to them, up to the nearest one that has a value of
-- the channel, and that value; step 1 is the parent. By checkpoints_pkey and the primary keys.
with recursive thread as materialized (
  select t.id
    from exai.checkpoint_threads t
   where t.owner = $1::text and t.thread_id = $2::text and t.deleted_at is null
     and (t.expires_at is null or t.expires_at > pg_catalog.now())),
ancestors(step, checkpoint_id, parent_id, versions, wanted, missing) as (
  select 0, c.checkpoint_id, c.parent_id, c.versions, '{}'::text[], $5::text[]
    from exai.checkpoints c
    join thread t on t.id = c.thread
   where c.namespace = $3::text and c.checkpoint_id = $4::text
  union all
  select l.step operator(pg_catalog.+) 1, p.checkpoint_id, p.parent_id, p.versions, l.missing,
         array(select m.channel from pg_catalog.unnest(l.missing) m(channel)
                where not exists (
                  select from exai.checkpoint_blobs b
                   where b.thread = p.thread and b.namespace = p.namespace and b.channel = m.channel
                     and b.version = p.versions ->> m.channel and b.value_type <> 'empty'))
    from ancestors l
    join thread t on true
    join exai.checkpoints p on p.thread = t.id and p.namespace = $3::text and p.checkpoint_id = l.parent_id
   where pg_catalog.array_length(l.missing, 1) > 0)
select 'thread'::text as part, t.head::text as facts, null::bytea as data, null::text as key_name, null::text as bound_to,
       0::integer as step
  from (select exai.thread_head_v1(x) as head from exai.checkpoint_threads x join thread y on y.id = x.id) t
union all
select 'value', pg_catalog.jsonb_build_object(
         'namespace', $3::text, 'channel', b.channel, 'version', b.version, 'type', b.value_type)::text,
       b.value, b.key_name, b.bound_to, l.step
  from ancestors l
  join thread t on true
 cross join lateral pg_catalog.unnest(l.wanted) m(channel)
  join exai.checkpoint_blobs b
    on b.thread = t.id and b.namespace = $3::text and b.channel = m.channel and b.version = l.versions ->> m.channel
       and b.value_type <> 'empty'
union all
select 'write', pg_catalog.jsonb_build_object(
         'namespace', $3::text, 'checkpoint_id', w.checkpoint_id, 'task_id', w.task_id, 'task_path', w.task_path,
         'place', w.place, 'channel', w.channel, 'type', w.value_type)::text,
       w.value, w.key_name, w.bound_to, l.step
  from ancestors l
  join thread t on true
  join exai.checkpoint_writes w
    on w.thread = t.id and w.namespace = $3::text and w.checkpoint_id = l.checkpoint_id and w.channel = any(l.wanted)
 where l.step > 0;

-- name: prune_threads
-- repeat: keyed
-- Removes checkpoints of threads, and returns the threads that have changed. Locks them.
select p.head::text as head
  from exai.prune_threads_v1($1::text, $2::text[], $3::boolean, $4::text[]) p;

-- name: copy_thread
-- repeat: keyed
-- Copies a thread into another one, and returns that one. Locks both.
select c.head::text as head, c.is_taken::boolean as is_taken
  from exai.copy_thread_v1($1::text, $2::text, $3::text) c;

-- name: extend_thread
-- repeat: keyed
-- Sets the time to live of a thread anew, from now on, and returns the thread; by checkpoint_threads_owner_thread_key.
update exai.checkpoint_threads as t
   set ttl_s = coalesce($3::double precision, t.ttl_s), revision = t.revision operator(pg_catalog.+) 1,
       changed_xid = pg_catalog.pg_current_xact_id(),
       expires_at = pg_catalog.clock_timestamp()
                    + pg_catalog.make_interval(secs => coalesce($3::double precision, t.ttl_s))
 where t.owner = $1::text and t.thread_id = $2::text and t.deleted_at is null
   and (t.expires_at is null or t.expires_at > pg_catalog.now())
returning exai.thread_head_v1(t)::text as head;

-- name: expire_threads
-- repeat: keyed
-- described: at first use
-- Deletes the contents of threads whose time has come, or that are idle; by checkpoint_threads_expires_idx or
-- checkpoint_threads_idle_idx.
select exai.expire_threads_v1($1::text, $2::double precision, $3::text[], $4::integer)::bigint as expired;

-- name: count_expiring_threads
-- repeat: read
-- described: at first use
-- How many threads expire_threads would empty without a limit.
select pg_catalog.count(*)::bigint as expired
  from exai.checkpoint_threads t
 where t.deleted_at is null and ($1::text is null or t.owner = $1::text) and t.owner <> all($3::text[])
   and case when $2::double precision is null then t.expires_at <= pg_catalog.now()
            else t.expires_at is null
                 and t.updated_at < pg_catalog.now() - pg_catalog.make_interval(secs => $2::double precision) end;

-- name: purge_threads
-- repeat: keyed
-- described: at first use
-- Deletes the rows of threads that were deleted some time ago; by checkpoint_threads_deleted_idx.
with old as (
  select t.id
    from exai.checkpoint_threads t
   where t.deleted_at < pg_catalog.now() - pg_catalog.make_interval(secs => $1::double precision)
   order by t.id
   limit $2::integer
     for update skip locked),
gone as (
  delete from exai.checkpoint_threads t using old o where t.id = o.id
  returning 1)
select pg_catalog.count(*)::bigint as removed from gone;
