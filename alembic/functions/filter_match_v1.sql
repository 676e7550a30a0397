-- Returns the conversation of a message (or title: seq 0) if it passes the filters of a search by this owner. Tags
-- and metadata are those of the conversation. p_shared: the message is shared by a fork, whose parent may have been
-- deleted.
--
-- Inlined into the calling statement, so it cannot have settings of its own.
create or replace function exai.filter_match_v1(
  p_conversation_id uuid, p_seq bigint, p_owner text, p_shared boolean, p_role text, p_tool text, p_model text,
  p_tags text[], p_metadata jsonb)
returns table (continuation_id text, title text)
language sql stable rows 1
as $$
  select c.continuation_id, c.title
    from public.conversations c
   where c.id = p_conversation_id and c.owner = p_owner and (p_shared or c.deleted_at is null)
     and (p_tags is null or c.tags operator(pg_catalog.@>) p_tags)
     and (p_metadata is null or c.metadata operator(pg_catalog.@>) p_metadata)
     and ((p_role is null and p_tool is null and p_model is null) or exists (
       select from (
         -- An ordered range uses the primary key even if the planner estimates the conversation to be short.
         select x.seq, x.role, x.turn_id from public.messages x
          where x.conversation_id = p_conversation_id and x.seq >= p_seq
          order by x.seq
          limit 1) m
         left join public.turns t on t.id = m.turn_id
        where m.seq = p_seq and (p_role is null or m.role = p_role)
          and (p_tool is null or t.tool = p_tool) and (p_model is null or t.model = p_model)))
$$
