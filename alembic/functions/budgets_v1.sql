-- Returns what is spent and reserved of each budget in p_limits (conversation_usd, day_usd, month_usd, each may be
-- null): rows 'conversation', 'day' and 'month' (UTC), with the time at which a period ends. Without a conversation
-- there is no row 'conversation'.
--
-- A reservation ends with its turn's lease. If the turn's daemon was lost, the part for the prompt then counts as spent,
-- because the provider has most likely read it. Conversations that were purged count in days and months; what a rewind
-- has cut from a conversation counts for it.
create or replace function exai.budgets_v1(p_owner text, p_conversation_id uuid, p_limits jsonb, p_now timestamptz)
returns table (o_name text, o_limit numeric, o_spent numeric, o_reserved numeric, o_resets_at timestamptz)
language sql stable rows 3
set search_path = pg_catalog, pg_temp
as $$
  select w.name, w.most, coalesce(s.spent, 0), coalesce(s.reserved, 0), w.resets_at
    from (values ('conversation', (p_limits ->> 'conversation_usd')::numeric, null::timestamptz, null::timestamptz),
                 ('day', (p_limits ->> 'day_usd')::numeric, date_trunc('day', p_now, 'UTC'),
                  (date_trunc('day', p_now at time zone 'UTC') + interval '1 day') at time zone 'UTC'),
                 ('month', (p_limits ->> 'month_usd')::numeric, date_trunc('month', p_now, 'UTC'),
                  (date_trunc('month', p_now at time zone 'UTC') + interval '1 month') at time zone 'UTC'))
         w(name, most, since, resets_at)
    left join lateral (
      select sum(coalesce(b.earlier_cost, 0)
                 + coalesce(b.cost, case when b.lease_until <= p_now then b.reserved_prompt end, 0)) as spent,
             sum(b.reserved) filter (where b.cost is null and b.lease_until > p_now) as reserved
        from (select t.earlier_cost, t.cost, t.reserved, t.reserved_prompt, t.lease_until
                from public.turns t
               where w.since is null and t.conversation_id = p_conversation_id
              union all
              select t.earlier_cost, t.cost, t.reserved, t.reserved_prompt, t.lease_until
                from public.conversations c
                join public.turns t on t.conversation_id = c.id
               where w.since is null and c.owner = p_owner and p_conversation_id = any(c.cut_from)
                 and c.former_name = (select x.continuation_id from public.conversations x where x.id = p_conversation_id)
              union all
              select t.earlier_cost, t.cost, t.reserved, t.reserved_prompt, t.lease_until
                from public.turns t
               where t.owner = p_owner and t.model is not null and t.started_at >= w.since
              union all
              select null, p.cost, null, null, null
                from exai.purged_turns p
               where p.owner = p_owner and p.started_at >= w.since) b) s on true
   where w.most is not null and (w.since is not null or p_conversation_id is not null)
$$
