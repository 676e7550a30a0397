-- Before a conversation's row is deleted, by any client: keeps what its turns have cost, without their texts, so that
-- neither the owner's reports nor the budgets of the day and the month lose it.
create or replace function exai.keep_usage_v1() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into exai.purged_turns (owner, started_at, turn_id, conversation_id, continuation_id, tool, state, provider,
                                 model, input_tokens, output_tokens, cached_tokens, reasoning_tokens, cost, is_estimated)
  select t.owner, t.started_at, t.id, t.conversation_id, old.continuation_id, t.tool,
         case when t.state = 'pending' then 'failed' else t.state end, t.provider, t.model, t.input_tokens,
         t.output_tokens, t.cached_tokens, t.reasoning_tokens,
         case when coalesce(t.cost, t.reserved_prompt, t.earlier_cost) is not null
              then coalesce(t.cost, t.reserved_prompt, 0) + coalesce(t.earlier_cost, 0) end,
         t.is_estimated or (t.cost is null and t.reserved is not null)
    from public.turns t
   where t.conversation_id = old.id and t.model is not null
  on conflict do nothing;
  return old;
end
$$
