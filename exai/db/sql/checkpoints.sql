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
-- also those of checkpoints that are not stored yet. By checkpoint_threads_owner_thread_key and the primary keys: values
-- are looked up one by one (limit 1), because the planner takes the average thread for a long one, and would read it all.
with thread as materialized (
  select t.id, exai.thread_head_v1(t) as head,
         case when t.deleted_at is null and (t.expires_at is null or t.expires_at > pg_catalog.now())
              then t.id end as live_id
    from exai.checkpoint_threads t
   where t.owner = $1::text and t.thread_id = $2::text),
found as materialized (
  select c.thread, c.checkpoint_id, c.parent_id, c.run_id, c.body_type, c.body, c.metadata_type, c.metadata, c.facts,
         c.versions, c.delta_channels, c.key_name, c.bound_to
    from exai.checkpoints c
   where c.thread = (select t.live_id from thread t) and c.namespace = $3::text
     and ($4::text is null or c.checkpoint_id = $4::text)
   order by c.checkpoint_id desc
   limit 1)
select 'thread'::text as part, t.head::text as facts, null::bytea as data, null::bytea as metadata,
       null::text as key_name, null::text as bound_to
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
         'namespace', $3::text, 'channel', v.channel, 'version', v.version, 'type', b.value_type)::text,
       b.value, null, b.key_name, b.bound_to
  from found f
 cross join lateral pg_catalog.jsonb_each_text(f.versions) v(channel, version)
 cross join lateral (
   select x.value_type, x.value, x.key_name, x.bound_to
     from exai.checkpoint_blobs x
    where x.thread = f.thread and x.namespace = $3::text and x.channel = v.channel and x.version = v.version
    limit 1) b
union all
select 'write', pg_catalog.jsonb_build_object(
         'namespace', $3::text, 'checkpoint_id', w.checkpoint_id, 'task_id', w.task_id, 'task_path', w.task_path,
         'place', w.place, 'channel', w.channel, 'type', w.value_type)::text,
       w.value, null, w.key_name, w.bound_to
  from exai.checkpoint_writes w
 where $4::text is null and w.thread = (select t.live_id from thread t) and w.namespace = $3::text
   and w.checkpoint_id >= coalesce((select f.checkpoint_id from found f), '')
union all
select 'write', pg_catalog.jsonb_build_object(
         'namespace', $3::text, 'checkpoint_id', w.checkpoint_id, 'task_id', w.task_id, 'task_path', w.task_path,
         'place', w.place, 'channel', w.channel, 'type', w.value_type)::text,
       w.value, null, w.key_name, w.bound_to
  from exai.checkpoint_writes w
 where $4::text is not null and w.thread = (select f.thread from found f) and w.namespace = $3::text
   and w.checkpoint_id = $4::text;

-- name: list_checkpoints
-- repeat: read
-- A page of checkpoints, newest first, of one thread or of all of an owner, with the values of their channels and their
-- writes: as many as fit into a number of bytes, and one at least. By checkpoints_thread_idx or checkpoints_recent_idx, and
-- the primary keys as read_checkpoint. The last row says where the next page begins, if there may be one.
with page as materialized (
  select c.thread, t.thread_id, c.namespace, c.checkpoint_id, t.copied_from, c.parent_id, c.run_id, c.body_type, c.body,
         c.metadata_type, c.metadata, c.facts, c.versions, c.delta_channels, c.key_name, c.bound_to
    from exai.checkpoints c
   cross join lateral (
     select x.thread_id, x.copied_from
       from exai.checkpoint_threads x
      where x.id = c.thread and x.deleted_at is null and (x.expires_at is null or x.expires_at > pg_catalog.now())
      limit 1) t
   where c.owner = $1::text
     and ($2::text is null or c.thread = (
            select x.id from exai.checkpoint_threads x where x.owner = $1::text and x.thread_id = $2::text))
     and ($3::text is null or c.namespace = $3::text)
     and ($4::text is null or c.checkpoint_id = $4::text)
     and ($5::text is null or c.facts @> $5::text::jsonb)
     and ($6::text is null or c.checkpoint_id < $6::text)
     and ($7::text is null or c.checkpoint_id <= $7::text)
     and ($7::text is null or (c.checkpoint_id, c.thread, c.namespace) < ($7::text, $8::text::uuid, $9::text))
   order by c.checkpoint_id desc, c.thread desc, c.namespace desc
   limit $10::integer),
held as materialized (
  select p.thread, p.namespace, p.checkpoint_id, v.channel, v.version, b.value_type, b.value, b.key_name, b.bound_to
    from page p
   cross join lateral pg_catalog.jsonb_each_text(p.versions) v(channel, version)
   cross join lateral (
     select x.value_type, x.value, x.key_name, x.bound_to
       from exai.checkpoint_blobs x
      where x.thread = p.thread and x.namespace = p.namespace and x.channel = v.channel and x.version = v.version
      limit 1) b),
sized as (
  select p.thread, p.namespace, p.checkpoint_id,
         pg_catalog.octet_length(p.body) operator(pg_catalog.+) coalesce((
           select pg_catalog.sum(pg_catalog.octet_length(h.value))
             from held h
            where h.thread = p.thread and h.namespace = p.namespace and h.checkpoint_id = p.checkpoint_id), 0) as size_bytes
    from page p),
fitting as materialized (
  select s.thread, s.namespace, s.checkpoint_id
    from (select z.thread, z.namespace, z.checkpoint_id,
                 coalesce(pg_catalog.sum(z.size_bytes) over (
                   order by z.checkpoint_id desc, z.thread desc, z.namespace desc
                   rows between unbounded preceding and 1 preceding), 0) as preceding
            from sized z) s
   where s.preceding < $11::bigint)
select 'checkpoint'::text as part, p.thread::text as thread, pg_catalog.jsonb_build_object(
         'thread_id', p.thread_id, 'copied_from', p.copied_from, 'namespace', p.namespace,
         'checkpoint_id', p.checkpoint_id, 'parent_id', p.parent_id, 'run_id', p.run_id, 'body_type', p.body_type,
         'metadata_type', p.metadata_type, 'facts', p.facts, 'versions', p.versions,
         'delta_channels', p.delta_channels)::text as facts,
       p.body::bytea as data, p.metadata::bytea as metadata, p.key_name::text as key_name, p.bound_to::text as bound_to
  from page p
  join fitting f on f.thread = p.thread and f.namespace = p.namespace and f.checkpoint_id = p.checkpoint_id
union all
select 'value', h.thread::text, pg_catalog.jsonb_build_object(
         'namespace', h.namespace, 'channel', h.channel, 'version', h.version, 'type', h.value_type)::text,
       h.value, null, h.key_name, h.bound_to
  from (select distinct on (x.thread, x.namespace, x.channel, x.version)
               x.thread, x.namespace, x.channel, x.version, x.value_type, x.value, x.key_name, x.bound_to
          from held x
          join fitting f on f.thread = x.thread and f.namespace = x.namespace and f.checkpoint_id = x.checkpoint_id
         order by x.thread, x.namespace, x.channel, x.version) h
union all
select 'write', f.thread::text, pg_catalog.jsonb_build_object(
         'namespace', f.namespace, 'checkpoint_id', f.checkpoint_id, 'task_id', w.task_id, 'task_path', w.task_path,
         'place', w.place, 'channel', w.channel, 'type', w.value_type)::text,
       w.value, null, w.key_name, w.bound_to
  from fitting f
 cross join lateral (
   select x.task_id, x.task_path, x.place, x.channel, x.value_type, x.value, x.key_name, x.bound_to
     from exai.checkpoint_writes x
    where x.thread = f.thread and x.namespace = f.namespace and x.checkpoint_id = f.checkpoint_id
   offset 0) w
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
-- the channel, and that value; step 1 is the parent. By the primary keys, as read_checkpoint.
with recursive thread as materialized (
  select t.id, exai.thread_head_v1(t) as head
    from exai.checkpoint_threads t
   where t.owner = $1::text and t.thread_id = $2::text and t.deleted_at is null
     and (t.expires_at is null or t.expires_at > pg_catalog.now())),
ancestors(step, thread, checkpoint_id, parent_id, versions, wanted, missing) as (
  select 0, c.thread, c.checkpoint_id, c.parent_id, c.versions, '{}'::text[], $5::text[]
    from exai.checkpoints c
   where c.thread = (select t.id from thread t) and c.namespace = $3::text and c.checkpoint_id = $4::text
  union all
  select a.step operator(pg_catalog.+) 1, p.thread, p.checkpoint_id, p.parent_id, p.versions, a.missing,
         array(select m.channel from pg_catalog.unnest(a.missing) m(channel)
                where (select true from exai.checkpoint_blobs b
                        where b.thread = p.thread and b.namespace = $3::text and b.channel = m.channel
                          and b.version = p.versions ->> m.channel and b.value_type <> 'empty'
                        limit 1) is null)
    from ancestors a
   cross join lateral (
     select x.thread, x.checkpoint_id, x.parent_id, x.versions
       from exai.checkpoints x
      where x.thread = a.thread and x.namespace = $3::text and x.checkpoint_id = a.parent_id
      limit 1) p
   where pg_catalog.array_length(a.missing, 1) > 0)
select 'thread'::text as part, t.head::text as facts, null::bytea as data, null::text as key_name,
       null::text as bound_to, 0::integer as step
  from thread t
union all
select 'value', pg_catalog.jsonb_build_object(
         'namespace', $3::text, 'channel', m.channel, 'version', a.versions ->> m.channel, 'type', b.value_type)::text,
       b.value, b.key_name, b.bound_to, a.step
  from ancestors a
 cross join lateral pg_catalog.unnest(a.wanted) m(channel)
 cross join lateral (
   select x.value_type, x.value, x.key_name, x.bound_to
     from exai.checkpoint_blobs x
    where x.thread = a.thread and x.namespace = $3::text and x.channel = m.channel
      and x.version = a.versions ->> m.channel and x.value_type <> 'empty'
    limit 1) b
union all
select 'write', pg_catalog.jsonb_build_object(
         'namespace', $3::text, 'checkpoint_id', a.checkpoint_id, 'task_id', w.task_id, 'task_path', w.task_path,
         'place', w.place, 'channel', w.channel, 'type', w.value_type)::text,
       w.value, w.key_name, w.bound_to, a.step
  from ancestors a
 cross join lateral (
   select x.task_id, x.task_path, x.place, x.channel, x.value_type, x.value, x.key_name, x.bound_to
     from exai.checkpoint_writes x
    where x.thread = a.thread and x.namespace = $3::text and x.checkpoint_id = a.checkpoint_id
      and x.channel = any(a.wanted)
   offset 0) w
 where a.step > 0;

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
