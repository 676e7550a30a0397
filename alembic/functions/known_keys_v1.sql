-- Returns for each key the number of the message that has it in a conversation, messages shared with the conversations it
-- was forked from included; null where there is none. By messages_key_idx.
create or replace function exai.known_keys_v1(p_conversation_id uuid, p_keys text[]) returns bigint[]
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
with recursive line(id, parent_id, parent_seq, last_seq, depth) as (
  select c.id, c.parent_id, c.parent_seq, 9223372036854775807, 1
    from public.conversations c
   where c.id = p_conversation_id
  union all
  select c.id, c.parent_id, c.parent_seq, least(l.parent_seq, l.last_seq), l.depth + 1
    from line l
    join public.conversations c on c.id = l.parent_id
   where l.depth <= 64)
select array_agg(
         (select m.seq
            from line l
            join public.messages m on m.conversation_id = l.id and m.message_key = k.key
           where m.seq <= l.last_seq
           order by l.depth
           limit 1) order by k.ord)
  from unnest(p_keys) with ordinality k(key, ord)
$$
