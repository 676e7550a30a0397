-- After a conversation's row is gone there is nothing left to see its revision in, so caches learn of it from here.
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
