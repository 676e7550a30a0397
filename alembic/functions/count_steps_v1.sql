-- Returns the number of a tool's turn among those of the same tool in its conversation, inherited ones included; null if
-- there is no turn with this key. Volatile, so that in the statement that stores the turn it sees the turn. By
-- turns_owner_key and turns_conversation_idx.
create or replace function exai.count_steps_v1(p_owner text, p_key text)
returns bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  c_max_depth constant integer := 64;
  t public.turns;
begin
  select x.* into t from public.turns x where x.owner = p_owner and x.request_key = p_key;
  if t.id is null then
    return null;
  end if;
  return (
    with recursive line(id, parent_id, parent_seq, last_seq, depth) as (
      select c.id, c.parent_id, c.parent_seq, t.first_seq, 1
        from public.conversations c
       where c.id = t.conversation_id
      union all
      select c.id, c.parent_id, c.parent_seq, least(l.parent_seq, l.last_seq), l.depth + 1
        from line l
        join public.conversations c on c.id = l.parent_id
       where l.depth < c_max_depth)
    select count(*)
      from line l
      join public.turns x on x.conversation_id = l.id
     where x.tool = t.tool and x.first_seq <= l.last_seq);
end
$$
