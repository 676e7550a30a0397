-- Keeps a conversation's updated_at while it is numbered or renamed, because a trigger of the older system may set it
-- on every update. If it was null, it becomes the time of the last message.
create or replace function exai.preserve_updated_at_v1() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  new.updated_at := coalesce(
    old.updated_at,
    (select max(m.created_at) from public.messages m where m.conversation_id = new.id),
    new.created_at, now());
  return new;
end
$$
