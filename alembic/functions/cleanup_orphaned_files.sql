-- Deletes at most p_limit files that are linked to no conversation and have not been used for p_grace, and returns
-- them, so that the caller can remove their bytes. Locks, then checks again: a link made meanwhile is seen, and none
-- can be made afterwards. `not exists`, because one null in a `not in` list would make it delete nothing.
create or replace function public.cleanup_orphaned_files(p_grace interval default interval '1 hour', p_limit integer default 1000)
returns table (id uuid, owner text, sha256 text, storage_path text)
language plpgsql
set search_path = "$user", public, extensions, pg_temp
set lock_timeout = '2s'
as $$
#variable_conflict use_column
declare
  v_ids uuid[];
begin
  v_ids := array(
    select f.id
      from public.files f
     where f.used_at < pg_catalog.clock_timestamp() - p_grace
       and not exists (select from public.conversation_files l where l.file_id = f.id)
     limit p_limit
       for update skip locked);
  return query
    delete from public.files f
     where f.id = any(v_ids)
       and not exists (select from public.conversation_files l where l.file_id = f.id)
    returning f.id, f.owner, f.sha256, f.storage_path;
end
$$
