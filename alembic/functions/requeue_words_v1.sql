-- After another program changed a message's content or time: queues its words for indexing.
create or replace function exai.requeue_words_v1() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  -- rekey_messages_v1 queues what it has to.
  if current_setting('exai.rekeying', true) = 'on' then
    return null;
  end if;
  insert into exai.unindexed_messages (conversation_id, first_seq, last_seq)
  values (new.conversation_id, new.seq, new.seq);
  return null;
end
$$
