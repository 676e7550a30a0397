-- Forgets files that no conversation has and nobody has used for p_grace, and tells which, so that the caller can remove
-- their bytes. `not exists`, because one null in a `not in` list would make it delete nothing.
create function public.cleanup_orphaned_files(p_grace interval default interval '1 hour')
returns table (id uuid, owner text, sha256 text, storage_path text)
language sql
as $$
  delete from public.files f
   where f.used_at < clock_timestamp() - p_grace
     and not exists (select from public.conversation_files l where l.file_id = f.id)
  returning f.id, f.owner, f.sha256, f.storage_path
$$
