-- After a thread's row was deleted: records the removal for caches, since no row remains that could hold a revision.
create or replace function exai.note_thread_v1() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into exai.removed_threads (owner, thread_id) values (old.owner, old.thread_id) on conflict do nothing;
  return null;
end
$$
