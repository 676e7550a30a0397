-- Returns the number of bytes stored for a blob, null for an unknown blob. Reads the size of each part, not its
-- bytes.
create or replace function exai.blob_size_v1(p_id uuid)
returns bigint
language sql stable
set search_path = pg_catalog, pg_temp
as $$
select coalesce((select sum(octet_length(p.data)) from exai.blob_parts p where p.blob_id = b.id), 0)::bigint
  from exai.blobs b where b.id = p_id
$$
