-- Gives the files of the content p_old of an owner the content p_new, the same one in another stored form, whose bytes are
-- in the blob p_blob_id, or in the store p_store under p_storage_path. A content p_new that is stored already keeps its
-- place. Returns the number of changed files; null, and changes nothing, if the bytes of the blob are not those of p_new.
--
-- The content p_old stays, as one that was used now: it is read by whoever has read the row of its file before, and is
-- swept after the grace period. Locks as put_files_v1 does.
create or replace function exai.rekey_content_v1(
  p_owner text, p_old text, p_new text, p_size_bytes bigint, p_store text, p_storage_path text, p_blob_id uuid, p_encoding text)
returns bigint
language plpgsql
set search_path = "$user", public, extensions, pg_temp
set lock_timeout = '2s'
as $$
declare
  v_count bigint;
begin
  perform pg_catalog.pg_advisory_xact_lock(k.key)
     from (select distinct pg_catalog.hashtextextended(p_owner || pg_catalog.left(d.sha256, 1), 1702388073) as key
             from unnest(array[p_old, p_new]) d(sha256)
            where not exists (select from exai.contents c where c.owner = p_owner and c.sha256 = d.sha256)
            order by 1) k;
  perform from exai.contents c where c.owner = p_owner and c.sha256 in (p_old, p_new) order by c.sha256 for no key update;
  if not exists (
    select from exai.contents c
     where c.owner = p_owner and c.sha256 = p_new and c.lost_at is null
       and (c.store <> 'postgres' or coalesce(exai.blob_size_v1(c.blob_id) = c.size_bytes, false)))
  then
    if p_blob_id is not null then
      -- An empty content has no part, so that nothing has made its blob.
      insert into exai.blobs (id, size_bytes) select p_blob_id, 0 where p_size_bytes = 0 on conflict do nothing;
      if p_new is distinct from pg_catalog.encode(pg_catalog.sha256(coalesce(
           (select pg_catalog.string_agg(p.data, '' order by p.number) from exai.blob_parts p where p.blob_id = p_blob_id),
           '')), 'hex')
      then
        return null;
      end if;
    end if;
    insert into exai.contents (owner, sha256, size_bytes, store, storage_path, blob_id, encoding)
    values (p_owner, p_new, p_size_bytes, p_store, p_storage_path, p_blob_id, p_encoding)
    on conflict (owner, sha256) do update
       set size_bytes = excluded.size_bytes, store = excluded.store, storage_path = excluded.storage_path,
           blob_id = excluded.blob_id, encoding = excluded.encoding, lost_at = null;
  end if;
  update public.files f
     set sha256 = p_new, size_bytes = p_size_bytes, storage_path = c.storage_path
    from exai.contents c
   where f.owner = p_owner and f.sha256 = p_old and c.owner = p_owner and c.sha256 = p_new;
  get diagnostics v_count = row_count;
  -- An encrypted text is bound to the former digest; it is made again from the document.
  insert into exai.content_texts (owner, sha256, source, text, note, made_at)
  select x.owner, p_new, x.source, x.text, x.note, x.made_at
    from exai.content_texts x
   where x.owner = p_owner and x.sha256 = p_old and not pg_catalog.starts_with(x.note, '$exai1$')
  on conflict do nothing;
  update exai.contents c set used_at = pg_catalog.clock_timestamp()
   where c.owner = p_owner and c.sha256 in (p_old, p_new);
  return v_count;
end
$$
