-- Creates the missing conversation of a message while an older system's tables are adopted, because its clients could
-- write such messages until then; earlier ones are treated the same way.
create or replace function exai.recover_parent_v1() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  new.conversation_id := coalesce(new.conversation_id, 'e8a10000-0000-4000-8000-000000000000');
  if not exists (select from public.conversations c where c.id = new.conversation_id) then
    perform exai.recover_conversation_v1(new.conversation_id, new.created_at, new.created_at);
  end if;
  return new;
end
$$
