-- name: backup_tables
-- repeat: read
-- described: at first use
-- The tables of a backup with their columns, from the catalogs; tables of public only by name, since others may be
-- there. Transaction ids mean nothing in another database, and generated columns cannot be copied into.
select n.nspname::text as schema, c.relname::text as name, pg_catalog.pg_table_size(c.oid)::bigint as size_bytes,
       array(select a.attname::text from pg_catalog.pg_attribute a
              where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''
                and a.atttypid <> 'pg_catalog.xid8'::pg_catalog.regtype
              order by a.attnum)::text[] as columns,
       array(select distinct q.nspname::text || '.' || r.relname::text
               from pg_catalog.pg_constraint k
               join pg_catalog.pg_class r on r.oid = k.confrelid
               join pg_catalog.pg_namespace q on q.oid = r.relnamespace
              where k.conrelid = c.oid and k.contype = 'f' and k.confrelid <> c.oid)::text[] as referenced
  from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where c.relkind in ('r', 'p') and not c.relispartition
   and case n.nspname when 'public' then c.relname = any($1::text[])
                      else n.nspname in ('exai', 'monitoring') and c.relname <> 'alembic_version' end
 order by n.nspname, c.relname;

-- name: backup_query
-- repeat: read
-- described: at first use
-- The query that reads these columns of a table.
select (pg_catalog.format('select %s from %I.%I', pg_catalog.string_agg(pg_catalog.quote_ident(k.name), ', ' order by k.place),
                          $1::text, $2::text))::text as query
  from pg_catalog.unnest($3::text[]) with ordinality k(name, place);

-- name: backup_sequences
-- repeat: read
-- described: at first use
-- The sequences of EXAI's schemas.
select s.schemaname::text as schema, s.sequencename::text as name, s.last_value::bigint as last_value
  from pg_catalog.pg_sequences s
 where s.schemaname in ('exai', 'monitoring') and s.last_value is not null
 order by s.schemaname, s.sequencename;

-- name: backup_contents
-- repeat: read
-- described: at first use
-- A page of all contents, by contents_pkey; and of files that are older than contents, by files_content_idx.
select x.owner::text as owner, x.sha256::text as sha256, x.size_bytes::bigint as size_bytes, x.store::text as store,
       x.storage_path::text as storage_path, x.has_row::boolean as has_row
  from ((select c.owner, c.sha256, c.size_bytes, c.store, c.storage_path, true as has_row
           from exai.contents c
          where (c.owner, c.sha256) > ($1::text, $2::text)
          order by c.owner, c.sha256
          limit $3::integer)
        union all
        (select f.owner, f.sha256, pg_catalog.max(f.size_bytes), 'directory', pg_catalog.max(f.storage_path), false
           from public.files f
          where (f.owner, f.sha256) > ($1::text, $2::text) and f.storage_path is not null
            and f.sha256 is not null and f.size_bytes is not null
            and not exists (select from exai.contents c where c.owner = f.owner and c.sha256 = f.sha256)
          group by f.owner, f.sha256
          order by f.owner, f.sha256
          limit $3::integer)) x
 order by x.owner, x.sha256
 limit $3::integer;

-- name: restore_obstacles
-- repeat: read
-- described: at first use
-- What has to be put aside while rows are copied into tables, and the statements for that and for putting it back:
-- triggers, which would number, date and count the rows again, and indexes that are built much faster than maintained.
select x.take::text as take, x.put_back::text as put_back
  from (select 1 as place, t.tgrelid, t.tgname as name,
               pg_catalog.format('alter table %s disable trigger %I', t.tgrelid::pg_catalog.regclass, t.tgname) as take,
               pg_catalog.format('alter table %s enable %s trigger %I', t.tgrelid::pg_catalog.regclass,
                                 case t.tgenabled when 'A' then 'always' when 'R' then 'replica' else '' end,
                                 t.tgname) as put_back
          from pg_catalog.pg_trigger t
         where t.tgrelid = any($1::text[]::pg_catalog.regclass[]) and not t.tgisinternal and t.tgenabled <> 'D'
           and t.tgparentid = 0
        union all
        select 2, i.indrelid, c.relname,
               pg_catalog.format('drop index %s', i.indexrelid::pg_catalog.regclass),
               pg_catalog.pg_get_indexdef(i.indexrelid)
          from pg_catalog.pg_index i
          join pg_catalog.pg_class c on c.oid = i.indexrelid and c.relkind = 'i'
          join pg_catalog.pg_am m on m.oid = c.relam and m.amname = 'gin'
         where i.indrelid = any($1::text[]::pg_catalog.regclass[])) x
 order by x.place, x.tgrelid, x.name;

-- name: restore_statements
-- repeat: read
-- described: at first use
-- The statements that lock a table against writers, ask whether it has a row, empty it, and renew its statistics.
select pg_catalog.format('lock table %I.%I in share row exclusive mode', $1::text, $2::text)::text as lock,
       pg_catalog.format('select exists (select from %I.%I)', $1::text, $2::text)::text as has_rows,
       pg_catalog.format('delete from %I.%I', $1::text, $2::text)::text as empty,
       pg_catalog.format('analyze %I.%I', $1::text, $2::text)::text as analyze;

-- name: restore_sequence
-- repeat: keyed
-- described: at first use
-- Continues a sequence after its last value, if there is one of this name.
select (case when pg_catalog.to_regclass(pg_catalog.format('%I.%I', $1::text, $2::text)) is not null
             then pg_catalog.setval(pg_catalog.format('%I.%I', $1::text, $2::text)::pg_catalog.regclass, $3::bigint) end)::bigint
       as last_value;

-- name: restore_paths
-- repeat: keyed
-- described: at first use
-- Gives files the paths of their contents, for releases that read them there.
update public.files f set storage_path = c.storage_path
  from exai.contents c
 where c.owner = f.owner and c.sha256 = f.sha256 and f.storage_path is distinct from c.storage_path;

-- name: restore_raw_owner
-- repeat: keyed
-- described: at first use
-- Renames an owner in the events of the history.
update monitoring.metrics_raw m
   set data = pg_catalog.jsonb_set(m.data, '{labels,owner}', pg_catalog.to_jsonb($2::text))
 where m.data #>> '{labels,owner}'::text[] = $1::text;

-- name: restore_minute_owner
-- repeat: keyed
-- described: at first use
-- Renames an owner in the sums of minutes.
update monitoring.metrics_1min m
   set labels = pg_catalog.jsonb_set(m.labels, '{owner}', pg_catalog.to_jsonb($2::text))
 where m.labels ->> 'owner'::text = $1::text;

-- name: restore_hour_owner
-- repeat: keyed
-- described: at first use
-- Renames an owner in the sums of hours.
update monitoring.metrics_1hour m
   set labels = pg_catalog.jsonb_set(m.labels, '{owner}', pg_catalog.to_jsonb($2::text))
 where m.labels ->> 'owner'::text = $1::text;

-- name: restore_turn_owner
-- repeat: keyed
-- described: at first use
-- Renames an owner in the headers that turns hold for repetitions of their requests.
update public.turns t
   set metadata = pg_catalog.jsonb_set(t.metadata, '{conversation,owner}', pg_catalog.to_jsonb($2::text))
 where t.metadata #>> '{conversation,owner}'::text[] = $1::text;

-- name: restore_quarantine_owner
-- repeat: keyed
-- described: at first use
-- Renames an owner in rows that violate a key.
update exai.quarantine q
   set "row" = pg_catalog.jsonb_set(q."row", '{owner}', pg_catalog.to_jsonb($2::text))
 where q."row" ->> 'owner'::text = $1::text;
