-- After a conversation's row was deleted: records the removal for caches, with its last revision, since no row remains
-- that could hold it. A conversation that takes the name begins above it (claim_name_v1).
create or replace function exai.note_removal_v1() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into exai.removed_conversations as r (owner, continuation_id, revision)
  values (old.owner, old.continuation_id, old.revision)
  on conflict (changed_xid, owner, continuation_id) do update set revision = greatest(r.revision, excluded.revision);
  return null;
end
$$
