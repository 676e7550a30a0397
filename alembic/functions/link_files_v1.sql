-- Links files to the conversation of the turn with a request key, each with the place from which it was read, if there is
-- one. p_files: an object with the sources by file id, null for a file that was not read from a disk. A link that exists
-- keeps its source unless there is a new one. Changes nothing, and returns 0, if no turn has the key.
create or replace function exai.link_files_v1(p_owner text, p_key text, p_files jsonb) returns bigint
language plpgsql
set search_path = "$user", public, extensions, pg_temp
set lock_timeout = '2s'
as $$
declare
  v_linked bigint;
begin
  insert into public.conversation_files as l (conversation_id, file_id, source)
  select t.conversation_id, f.id, nullif(w.source, 'null')
    from public.turns t
   cross join pg_catalog.jsonb_each(p_files) w(file_id, source)
    join public.files f on f.id = w.file_id::uuid and f.owner = p_owner
   where t.owner = p_owner and t.request_key = p_key
   order by f.id
  on conflict (conversation_id, file_id) do update set source = excluded.source where excluded.source is not null;
  get diagnostics v_linked = row_count;
  return v_linked;
end
$$
