-- The conversation of the message m (or title: seq 0) if it passes the filters of a search by this owner. Tags and
-- metadata are those of the conversation. With p_ids the message is shared by a fork, whose parent may have been deleted.
  select c.continuation_id, c.title
    from public.conversations c
   where c.id = m.conversation_id and c.owner = p_owner and (p_ids is not null or c.deleted_at is null)
     and (p_tags is null or c.tags operator(pg_catalog.@>) p_tags)
     and (p_metadata is null or c.metadata operator(pg_catalog.@>) p_metadata)
     and ((p_role is null and p_tool is null and p_model is null) or exists (
       select from (
         -- An ordered range uses the primary key even if the planner estimates the conversation to be short.
         select x.seq, x.role, x.turn_id from public.messages x
          where x.conversation_id = m.conversation_id and x.seq >= m.seq
          order by x.seq
          limit 1) y
         left join public.turns t on t.id = y.turn_id
        where y.seq = m.seq and (p_role is null or y.role = p_role)
          and (p_tool is null or t.tool = p_tool) and (p_model is null or t.model = p_model)))
