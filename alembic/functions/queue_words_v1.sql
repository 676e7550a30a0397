-- After messages were stored or deleted by any program: queues their words for indexing or removal. One row for each
-- conversation, with the range from its first to its last message. Deleting a conversation deletes its words. A
-- message without a number, possible while an older system's tables are adopted, is queued when it is numbered.
create or replace function exai.queue_words_v1() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if tg_op = 'INSERT' then
    insert into exai.unindexed_messages (conversation_id, first_seq, last_seq)
    select x.conversation_id, min(x.seq), max(x.seq) from changed x group by x.conversation_id
    having min(x.seq) is not null;
  elsif tg_op = 'TRUNCATE' then
    insert into exai.unindexed_messages (conversation_id, first_seq, last_seq)
    select w.conversation_id, min(w.seq), max(w.seq) from exai.message_words w group by w.conversation_id;
  else
    insert into exai.unindexed_messages (conversation_id, first_seq, last_seq)
    select x.conversation_id, min(x.seq), max(x.seq)
      from changed x join public.conversations c on c.id = x.conversation_id
     group by x.conversation_id
    having min(x.seq) is not null;
  end if;
  return null;
end
$$
