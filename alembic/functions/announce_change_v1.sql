-- After a conversation was created or changed: sends its revision to the Realtime topic of its owner. Created in every
-- database, used where Supabase's realtime.send exists. A failure is lost and the change is not: the event is a hint,
-- and a client reads the conversation again in any case. Waits for no lock for longer than lock_timeout.
create or replace function exai.announce_change_v1() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '50ms'
as $$
begin
  perform realtime.send(
    jsonb_build_object('continuation_id', new.continuation_id, 'revision', new.revision), 'changed',
    'exai:' || new.owner, true);
  return null;
exception when others then
  return null;
end
$$
