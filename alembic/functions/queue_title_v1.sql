-- After a conversation received a title, a different one, or another owner: queues its words for indexing.
create or replace function exai.queue_title_v1() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  -- rekey_conversations_v1 queues what it has to.
  if current_setting('exai.rekeying', true) = 'on' then
    return null;
  end if;
  insert into exai.unindexed_messages (conversation_id, first_seq, last_seq)
  values (new.id, 0, case when tg_op = 'UPDATE' and new.owner <> old.owner then new.next_seq - 1 else 0 end);
  return null;
end
$$
