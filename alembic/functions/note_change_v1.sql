-- Before another program changes visible columns of a conversation: increases its revision, as EXAI's own changes do.
-- A conversation whose key changes is recorded as removed under the old key.
create or replace function exai.note_change_v1() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  -- rekey_conversations_v1 has not changed what clients see.
  if current_setting('exai.rekeying', true) = 'on' then
    return new;
  end if;
  new.revision := old.revision + 1;
  new.edited_revision := new.revision;
  new.changed_xid := pg_current_xact_id();
  new.updated_at := clock_timestamp();
  if (new.owner, new.continuation_id) is distinct from (old.owner, old.continuation_id) then
    insert into exai.removed_conversations as r (owner, continuation_id, revision)
    values (old.owner, old.continuation_id, new.revision)
    on conflict (changed_xid, owner, continuation_id) do update set revision = greatest(r.revision, excluded.revision);
  end if;
  return new;
end
$$
