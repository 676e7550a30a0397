-- Stores files: each content once per owner, and a row for each name and media type of a content. p_files: objects
-- with place, file_id, sha256, size_bytes, media_type, name, name_hash (if the name is encrypted: equal names of a content
-- have it, as the last field of the text), encoding, storage_path (if the bytes are in another store than this database),
-- blob_id, and, if the bytes are part of the call, at (their first byte in p_data) and characters, how many begin in each
-- part of 1 MiB. A file with is_keyed has an id that follows from its content, and is found by it alone.
--
-- A content that is neither stored nor part of the call must be in the blob blob_id, complete, or in another store under
-- storage_path; otherwise its files are not stored, and their rows are returned without an id. The same holds for a
-- content whose bytes were lost, and for one that is moved from another store (is_move).
--
-- Locks the rows of contents before anything is looked up, in the order of the digests: two callers with the same
-- files create one row for each content and cannot deadlock.
create or replace function exai.put_files_v1(p_owner text, p_store text, p_files jsonb, p_data bytea)
returns table (place integer, id uuid, sha256 text, size_bytes bigint, media_type text, name text,
               created_at timestamptz, store text, encoding text, storage_path text, created boolean)
language plpgsql rows 10
set search_path = "$user", public, extensions, pg_temp
set lock_timeout = '2s'
as $$
#variable_conflict use_column
declare
  v_now timestamptz := pg_catalog.clock_timestamp();
  v_digests constant text[] := array(
    select distinct f ->> 'sha256'::text from pg_catalog.jsonb_array_elements(p_files) f);
  v_known text[];
  v_here text[];
begin
  -- A new content has no row to lock: of concurrent callers with the same one, the later ones wait and find it.
  perform pg_catalog.pg_advisory_xact_lock(k.key)
     from (select distinct pg_catalog.hashtextextended(p_owner || pg_catalog.left(d.sha256, 1), 1702388073) as key
             from pg_catalog.unnest(v_digests) d(sha256)
            where not exists (select from exai.contents c where c.owner = p_owner and c.sha256 = d.sha256)
            order by 1) k;
  perform from exai.contents c where c.owner = p_owner and c.sha256 = any(v_digests) order by c.sha256 for no key update;
  v_known := array(
    select c.sha256 from exai.contents c
     where c.owner = p_owner and c.sha256 = any(v_digests) and c.lost_at is null
       and case c.store when 'postgres' then coalesce(exai.blob_size_v1(c.blob_id) = c.size_bytes, false)
                        else c.store = p_store end
       and (c.store = p_store or not exists (
         select from pg_catalog.jsonb_to_recordset(p_files) g(sha256 text, is_move boolean)
          where g.sha256 = c.sha256 and g.is_move)));
  with given as (
    select distinct on (g.sha256) g.blob_id, g.size_bytes, g.characters, g.at
      from pg_catalog.jsonb_to_recordset(p_files) g(sha256 text, blob_id uuid, size_bytes bigint, characters jsonb, at integer)
     where g.at is not null and g.sha256 <> all(v_known)
     order by g.sha256),
  begun as (
    insert into exai.blobs (id, size_bytes, begun_at) select g.blob_id, g.size_bytes, v_now from given g)
  insert into exai.blob_parts (blob_id, number, characters, data)
  select g.blob_id, n.number, (g.characters -> n.number)::integer,
         substring(p_data from g.at + n.number * 1048576 for least(g.size_bytes - n.number * 1048576, 1048576)::integer)
    from given g
   cross join lateral pg_catalog.generate_series(0, (g.size_bytes - 1)::integer / 1048576) n(number)
   where g.size_bytes > 0;

  insert into exai.contents (owner, sha256, size_bytes, store, storage_path, blob_id, encoding, used_at)
  select distinct on (g.sha256) p_owner, g.sha256, g.size_bytes, p_store, g.storage_path,
         case when p_store = 'postgres' then g.blob_id end, g.encoding, v_now
    from pg_catalog.jsonb_to_recordset(p_files)
         g(sha256 text, size_bytes bigint, storage_path text, blob_id uuid, encoding text)
   where g.sha256 <> all(v_known)
     and case p_store when 'postgres' then coalesce(exai.blob_size_v1(g.blob_id) = g.size_bytes, false)
                      else g.storage_path is not null end
   order by g.sha256
  on conflict (owner, sha256) do update
     set size_bytes = excluded.size_bytes, store = excluded.store, storage_path = excluded.storage_path,
         blob_id = excluded.blob_id, encoding = excluded.encoding, used_at = excluded.used_at, lost_at = null;
  update exai.contents c set used_at = v_now where c.owner = p_owner and c.sha256 = any(v_known);
  v_here := array(
    select c.sha256 from exai.contents c
     where c.owner = p_owner and c.sha256 = any(v_digests)
       and c.used_at = v_now);

  -- Files stored before their content was where it is now.
  update public.files f set storage_path = c.storage_path
    from exai.contents c
   where f.owner = p_owner and f.sha256 = any(v_here) and f.storage_path is distinct from c.storage_path
     and c.owner = p_owner and c.sha256 = f.sha256;
  update public.files f set used_at = v_now
    from pg_catalog.jsonb_to_recordset(p_files) g(sha256 text, media_type text, name text, name_hash text)
   where f.owner = p_owner and f.sha256 = g.sha256 and f.media_type = g.media_type
     and (f.name = g.name or pg_catalog.split_part(f.name, '$', 5) = g.name_hash)
     and f.sha256 = any(v_here);
  insert into public.files (id, owner, sha256, size_bytes, media_type, name, storage_path, created_at, used_at)
  select distinct on (g.sha256, g.name, g.media_type)
         g.file_id, p_owner, g.sha256, g.size_bytes, g.media_type, g.name, c.storage_path, v_now, v_now
    from pg_catalog.jsonb_to_recordset(p_files)
         g(place integer, file_id uuid, sha256 text, size_bytes bigint, media_type text, name text, name_hash text,
           is_keyed boolean)
    join exai.contents c on c.owner = p_owner and c.sha256 = g.sha256
   where g.sha256 = any(v_here) and not exists (
     select from public.files f
      where f.owner = p_owner and f.sha256 = g.sha256
        and (f.id = g.file_id
             or (g.is_keyed is not true and f.media_type = g.media_type
                 and (f.name = g.name or pg_catalog.split_part(f.name, '$', 5) = g.name_hash))))
   order by g.sha256, g.name, g.media_type, g.place;

  return query
    select g.place, f.id, g.sha256, f.size_bytes, f.media_type, f.name, f.created_at, c.store, c.encoding,
           c.storage_path, coalesce(f.id = g.file_id, false)
      from pg_catalog.jsonb_to_recordset(p_files)
           g(place integer, file_id uuid, sha256 text, media_type text, name text, name_hash text, is_keyed boolean)
      left join exai.contents c on c.owner = p_owner and c.sha256 = g.sha256
      left join lateral (
        select x.id, x.size_bytes, x.media_type, x.name, x.created_at
          from public.files x
         where x.owner = p_owner and x.sha256 = g.sha256 and g.sha256 = any(v_here)
           and (x.id = g.file_id
                or (g.is_keyed is not true and x.media_type = g.media_type
                    and (x.name = g.name or pg_catalog.split_part(x.name, '$', 5) = g.name_hash)))
         order by x.created_at, x.id
         limit 1) f on true
     order by g.place;
end
$$
