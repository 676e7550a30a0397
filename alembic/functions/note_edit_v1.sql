-- After messages were changed or deleted: increases the revisions of their conversations and of the forks that read
-- them, so that caches do not serve the old text. Locks conversations in the order of their ids.
create or replace function exai.note_edit_v1() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  -- rekey_messages_v1 has not changed what the messages say.
  if current_setting('exai.rekeying', true) = 'on' then
    return null;
  end if;
  with recursive touched(id) as (
    select distinct x.conversation_id from changed x
    union
    select c.id from public.conversations c join touched on c.parent_id = touched.id),
  locked as (
    select c.id from public.conversations c where c.id in (select t.id from touched t) order by c.id for no key update)
  update public.conversations c
     set revision = c.revision + 1, edited_revision = c.revision + 1, changed_xid = pg_current_xact_id(),
         updated_at = clock_timestamp()
    from locked
   where c.id = locked.id;
  return null;
end
$$
