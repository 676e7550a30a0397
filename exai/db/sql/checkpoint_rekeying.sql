-- name: rekey_scan_checkpoints
-- repeat: read
-- described: at first use
-- Some rows in the order of their keys, by the primary key; those that are not stored with the wanted key ($4, null:
-- none) with what they hold, as far as they fit into a number of bytes.
with page as materialized (
  select x.thread, x.namespace, x.checkpoint_id, x.key_name is distinct from $4::text as is_wanted,
         pg_catalog.octet_length(x.body) + pg_catalog.octet_length(x.metadata) as size_bytes
    from exai.checkpoints x
   where (x.thread, x.namespace, x.checkpoint_id) > ($1::text::uuid, $2::text, $3::text)
   order by x.thread, x.namespace, x.checkpoint_id
   limit $5::integer),
sized as (
  select p.thread, p.namespace, p.checkpoint_id, p.is_wanted,
         coalesce(pg_catalog.sum(p.size_bytes) filter (where p.is_wanted) over (
           order by p.thread, p.namespace, p.checkpoint_id rows between unbounded preceding and 1 preceding),
                0) as preceding
    from page p)
select p.thread::text as thread, p.namespace::text as namespace, p.checkpoint_id::text as checkpoint_id,
       p.is_wanted::boolean as is_wanted, (x.thread is not null)::boolean as fits,
       x.body::bytea as body, x.metadata::bytea as metadata, x.facts::text as facts,
       x.key_name::text as key_name, x.bound_to::text as bound_to, x.xmin::text as row_version, t.owner::text as owner,
       t.thread_id::text as thread_id, t.copied_from::text[] as copied_from
  from sized p
  left join exai.checkpoints x
    on p.is_wanted and p.preceding < $6::bigint and x.thread = p.thread and x.namespace = p.namespace
         and x.checkpoint_id = p.checkpoint_id
  left join exai.checkpoint_threads t on t.id = x.thread
 order by p.thread, p.namespace, p.checkpoint_id;

-- name: rekey_checkpoints
-- repeat: keyed
-- described: at first use
-- Replaces the stored form of rows that are as they were read; by the primary key.
with changed as (
  update exai.checkpoints x
     set body = u.new_body, metadata = u.new_metadata, facts = u.new_facts::jsonb, key_name = u.new_key_name, bound_to = null
    from (select r.thread, r.namespace, r.checkpoint_id, g.new_body, g.new_metadata, g.new_facts, g.new_key_name
            from rows from (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[]),
                            pg_catalog.unnest($3::text[]), pg_catalog.unnest($4::text[]),
                            pg_catalog.unnest($5::bytea[]), pg_catalog.unnest($6::bytea[]),
                            pg_catalog.unnest($7::text[]),
                            pg_catalog.unnest($8::text[]))
                 g(thread, namespace, checkpoint_id, row_version, new_body, new_metadata, new_facts, new_key_name)
            join exai.checkpoints r on r.thread = g.thread::uuid and r.namespace = g.namespace
                 and r.checkpoint_id = g.checkpoint_id and r.xmin::text = g.row_version
           order by r.thread, r.namespace, r.checkpoint_id
             for no key update of r skip locked) u
   where x.thread = u.thread and x.namespace = u.namespace and x.checkpoint_id = u.checkpoint_id
  returning 1)
select pg_catalog.count(*)::bigint as replaced from changed;

-- name: rekey_scan_checkpoint_values
-- repeat: read
-- described: at first use
-- Some rows in the order of their keys, by the primary key; those that are not stored with the wanted key ($5, null:
-- none) with what they hold, as far as they fit into a number of bytes.
with page as materialized (
  select x.thread, x.namespace, x.channel, x.version, x.key_name is distinct from $5::text as is_wanted,
         pg_catalog.octet_length(x.value) as size_bytes
    from exai.checkpoint_blobs x
   where (x.thread, x.namespace, x.channel, x.version) > ($1::text::uuid, $2::text, $3::text, $4::text)
   order by x.thread, x.namespace, x.channel, x.version
   limit $6::integer),
sized as (
  select p.thread, p.namespace, p.channel, p.version, p.is_wanted,
         coalesce(pg_catalog.sum(p.size_bytes) filter (where p.is_wanted) over (
           order by p.thread, p.namespace, p.channel, p.version rows between unbounded preceding
                and 1 preceding), 0) as preceding
    from page p)
select p.thread::text as thread, p.namespace::text as namespace, p.channel::text as channel, p.version::text as version,
       p.is_wanted::boolean as is_wanted, (x.thread is not null)::boolean as fits,
       x.value::bytea as value,
       x.key_name::text as key_name, x.bound_to::text as bound_to, x.xmin::text as row_version, t.owner::text as owner,
       t.thread_id::text as thread_id, t.copied_from::text[] as copied_from
  from sized p
  left join exai.checkpoint_blobs x
    on p.is_wanted and p.preceding < $7::bigint and x.thread = p.thread and x.namespace = p.namespace
         and x.channel = p.channel and x.version = p.version
  left join exai.checkpoint_threads t on t.id = x.thread
 order by p.thread, p.namespace, p.channel, p.version;

-- name: rekey_checkpoint_values
-- repeat: keyed
-- described: at first use
-- Replaces the stored form of rows that are as they were read; by the primary key.
with changed as (
  update exai.checkpoint_blobs x
     set value = u.new_value, key_name = u.new_key_name, bound_to = null
    from (select r.thread, r.namespace, r.channel, r.version, g.new_value, g.new_key_name
            from rows from (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[]),
                            pg_catalog.unnest($3::text[]), pg_catalog.unnest($4::text[]),
                            pg_catalog.unnest($5::text[]), pg_catalog.unnest($6::bytea[]),
                            pg_catalog.unnest($7::text[]))
                 g(thread, namespace, channel, version, row_version, new_value, new_key_name)
            join exai.checkpoint_blobs r on r.thread = g.thread::uuid and r.namespace = g.namespace
                 and r.channel = g.channel and r.version = g.version and r.xmin::text = g.row_version
           order by r.thread, r.namespace, r.channel, r.version
             for no key update of r skip locked) u
   where x.thread = u.thread and x.namespace = u.namespace and x.channel = u.channel and x.version = u.version
  returning 1)
select pg_catalog.count(*)::bigint as replaced from changed;

-- name: rekey_scan_checkpoint_writes
-- repeat: read
-- described: at first use
-- Some rows in the order of their keys, by the primary key; those that are not stored with the wanted key ($6, null:
-- none) with what they hold, as far as they fit into a number of bytes.
with page as materialized (
  select x.thread, x.namespace, x.checkpoint_id, x.task_id, x.place, x.key_name is distinct from $6::text as is_wanted,
         pg_catalog.octet_length(x.value) as size_bytes
    from exai.checkpoint_writes x
   where (x.thread, x.namespace, x.checkpoint_id, x.task_id, x.place) > ($1::text::uuid, $2::text, $3::text,
        $4::text, $5::integer)
   order by x.thread, x.namespace, x.checkpoint_id, x.task_id, x.place
   limit $7::integer),
sized as (
  select p.thread, p.namespace, p.checkpoint_id, p.task_id, p.place, p.is_wanted,
         coalesce(pg_catalog.sum(p.size_bytes) filter (where p.is_wanted) over (
           order by p.thread, p.namespace, p.checkpoint_id, p.task_id, p.place rows between unbounded preceding
                and 1 preceding), 0) as preceding
    from page p)
select p.thread::text as thread, p.namespace::text as namespace, p.checkpoint_id::text as checkpoint_id,
     p.task_id::text as task_id, p.place::integer as place,
       p.is_wanted::boolean as is_wanted, (x.thread is not null)::boolean as fits,
       x.value::bytea as value,
       x.key_name::text as key_name, x.bound_to::text as bound_to, x.xmin::text as row_version, t.owner::text as owner,
       t.thread_id::text as thread_id, t.copied_from::text[] as copied_from
  from sized p
  left join exai.checkpoint_writes x
    on p.is_wanted and p.preceding < $8::bigint and x.thread = p.thread and x.namespace = p.namespace
         and x.checkpoint_id = p.checkpoint_id and x.task_id = p.task_id and x.place = p.place
  left join exai.checkpoint_threads t on t.id = x.thread
 order by p.thread, p.namespace, p.checkpoint_id, p.task_id, p.place;

-- name: rekey_checkpoint_writes
-- repeat: keyed
-- described: at first use
-- Replaces the stored form of rows that are as they were read; by the primary key.
with changed as (
  update exai.checkpoint_writes x
     set value = u.new_value, key_name = u.new_key_name, bound_to = null
    from (select r.thread, r.namespace, r.checkpoint_id, r.task_id, r.place, g.new_value, g.new_key_name
            from rows from (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[]),
                            pg_catalog.unnest($3::text[]), pg_catalog.unnest($4::text[]),
                            pg_catalog.unnest($5::integer[]), pg_catalog.unnest($6::text[]),
                            pg_catalog.unnest($7::bytea[]),
                            pg_catalog.unnest($8::text[]))
                 g(thread, namespace, checkpoint_id, task_id, place, row_version, new_value, new_key_name)
            join exai.checkpoint_writes r on r.thread = g.thread::uuid and r.namespace = g.namespace
                 and r.checkpoint_id = g.checkpoint_id and r.task_id = g.task_id and r.place = g.place
                 and r.xmin::text = g.row_version
           order by r.thread, r.namespace, r.checkpoint_id, r.task_id, r.place
             for no key update of r skip locked) u
   where x.thread = u.thread and x.namespace = u.namespace and x.checkpoint_id = u.checkpoint_id
        and x.task_id = u.task_id and x.place = u.place
  returning 1)
select pg_catalog.count(*)::bigint as replaced from changed;
