-- After a conversation's row was deleted: records the removal for caches, since no row remains that could hold a
-- revision.
create or replace function exai.note_removal_v1() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into exai.removed_conversations (owner, continuation_id)
  values (old.owner, old.continuation_id)
  on conflict do nothing;
  return null;
end
$$
