-- Deletes contents without a file that were not stored within p_grace, then bytes without a content; at most p_limit
-- of each. Locks, then checks again: a file stored meanwhile is seen, and none can be stored afterwards.
create or replace function exai.sweep_contents_v1(p_grace interval, p_limit integer)
returns table (contents bigint, blobs bigint)
language plpgsql rows 1
set search_path = pg_catalog, pg_temp
set lock_timeout = '2s'
as $$
declare
  v_before constant timestamptz := clock_timestamp() - p_grace;
  v_owners text[];
  v_digests text[];
  v_contents bigint;
  v_blobs bigint;
begin
  select array_agg(x.owner), array_agg(x.sha256) into v_owners, v_digests
    from (select c.owner, c.sha256
            from exai.contents c
           where c.used_at < v_before
             and not exists (select from public.files f where f.owner = c.owner and f.sha256 = c.sha256)
           limit p_limit
             for update skip locked) x;
  delete from exai.contents c
   using unnest(v_owners, v_digests) w(owner, sha256)
   where c.owner = w.owner and c.sha256 = w.sha256
     and not exists (select from public.files f where f.owner = c.owner and f.sha256 = c.sha256);
  get diagnostics v_contents = row_count;
  delete from exai.blobs b
   where b.id = any(array(
     select x.id from exai.blobs x
      where x.begun_at < v_before and not exists (select from exai.contents c where c.blob_id = x.id)
      limit p_limit
        for update skip locked));
  get diagnostics v_blobs = row_count;
  return query select v_contents, v_blobs;
end
$$
