-- Returns messages by their keys: of one conversation, those that it shares with the conversations it was forked from
-- included; or, if p_name is null, of all conversations of the owner that are not deleted, latest change first, at most
-- p_limit. By messages_key_idx. One row for each: the place of its key, from 1, its conversation, and the message as
-- message_line_v1 writes it, null beyond p_budget bytes. A conversation that is named has a row of its own, with place 0.
create or replace function exai.find_messages_v1(
  p_owner text, p_name text, p_keys text[], p_limit integer, p_budget bigint)
returns table (place integer, head text, line bytea)
language plpgsql stable rows 50
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
  c_max_depth constant integer := 64;
  v public.conversations;
begin
  if p_name is null then
    return query
    select f.place, exai.header_v1(f.c)::text, case when f.bytes <= p_budget then convert_to(f.line, 'UTF8') end
      from (select k.ord::integer as place, x.c, x.line, sum(octet_length(x.line)) over (order by k.ord, x.number) as bytes
              from unnest(p_keys) with ordinality k(key, ord)
             cross join lateral (
               select c, exai.message_line_v1(m) as line, row_number() over (order by c.updated_at desc, c.id) as number
                 from public.messages m
                 join public.conversations c on c.id = m.conversation_id
                where m.message_key = k.key and c.owner = p_owner and c.deleted_at is null) x
             order by k.ord, x.number
             limit p_limit) f
     order by f.place, f.bytes;
    return;
  end if;
  select c.* into v from public.conversations c
   where c.owner = p_owner and c.continuation_id = p_name and c.deleted_at is null;
  if not found then
    return;
  end if;
  return query select 0, exai.header_v1(v)::text, null::bytea;
  return query
  with recursive chain(id, parent_id, parent_seq, last_seq, depth) as (
    select v.id, v.parent_id, v.parent_seq, v.next_seq - 1, 0
    union all
    select c.id, c.parent_id, c.parent_seq, least(l.parent_seq, l.last_seq), l.depth + 1
      from chain l
      join public.conversations c on c.id = l.parent_id
     where l.depth < c_max_depth)
  select f.place, null::text, case when f.bytes <= p_budget then convert_to(f.line, 'UTF8') end
    from (select k.ord::integer as place, x.line, sum(octet_length(x.line)) over (order by k.ord) as bytes
            from unnest(p_keys) with ordinality k(key, ord)
           cross join lateral (
             select exai.message_line_v1(m) as line
               from chain l
               join public.messages m on m.conversation_id = l.id and m.message_key = k.key
              where m.seq <= l.last_seq
              order by l.depth
              limit 1) x) f
   order by f.place;
end
$$
