-- Before somebody else's change of a conversation's visible columns: it gets a new revision like any other change.
-- A conversation that is renamed out of its key is noted as removed under the old one.
create or replace function exai.note_change_v1() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  new.revision := old.revision + 1;
  new.edited_revision := new.revision;
  new.changed_xid := pg_current_xact_id();
  new.updated_at := clock_timestamp();
  if (new.owner, new.continuation_id) is distinct from (old.owner, old.continuation_id) then
    insert into exai.removed_conversations (owner, continuation_id)
    values (old.owner, old.continuation_id)
    on conflict do nothing;
  end if;
  return new;
end
$$
