-- Keeps the time of a conversation's last change while it is numbered or renamed: a trigger of the older system's may set
-- it to the present on every update. Where there was none, it is that of the last message.
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
