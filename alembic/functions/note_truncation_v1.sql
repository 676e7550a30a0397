-- After messages was truncated: increases the revision of every conversation that had messages, as if they had been
-- deleted one by one.
create or replace function exai.note_truncation_v1() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  update public.conversations c
     set revision = c.revision + 1, edited_revision = c.revision + 1, changed_xid = pg_current_xact_id(),
         updated_at = clock_timestamp()
   where c.next_seq > 1;
  return null;
end
$$
