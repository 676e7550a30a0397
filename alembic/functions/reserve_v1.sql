-- Reserves the highest likely cost of a turn that has just begun, or raises EXB01 if a budget does not cover it, which
-- undoes the whole statement. p_claim: fixed_usd, byte_usd, and the budgets conversation_usd, day_usd and month_usd, each
-- may be null; p_bytes is the size of the history that the model receives, p_most the largest that it can receive.
--
-- The lock is held until the transaction ends, and each turn of the owner takes it last, so that turns which begin at
-- once, on any daemon, see each other's reservations. finish_turn_v1 replaces a reservation by the cost; the turn of a
-- daemon that was lost keeps it. Days and months are those of UTC.
create or replace function exai.reserve_v1(
  p_owner text, p_turn_id uuid, p_conversation_id uuid, p_claim jsonb, p_bytes bigint, p_most bigint)
returns void
language plpgsql
as $$
declare
  c_lock_class constant bigint := 5272091;
  v_now timestamptz;
  v_day timestamptz;
  v_files bigint;
  v_needed numeric;
  v_name text;
  v_limit numeric;
  v_spent numeric;
  v_reserved numeric;
begin
  perform pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(p_owner, c_lock_class));
  v_now := pg_catalog.clock_timestamp();
  v_day := pg_catalog.date_trunc('day', v_now, 'UTC');
  select coalesce(pg_catalog.sum(f.size_bytes), 0)::bigint into v_files
    from public.conversation_files l join public.files f on f.id = l.file_id
   where l.conversation_id = p_conversation_id;
  v_needed := (p_claim ->> 'fixed_usd'::text)::numeric
              + (p_claim ->> 'byte_usd'::text)::numeric * least(p_bytes + v_files, p_most)::numeric;
  select x.name, x.most, x.spent, x.reserved into v_name, v_limit, v_spent, v_reserved
    from (select 'conversation'::text as name, (p_claim ->> 'conversation_usd'::text)::numeric as most,
                 coalesce(pg_catalog.sum(b.spent), 0::numeric) as spent,
                 coalesce(pg_catalog.sum(b.reserved), 0::numeric) as reserved
            from (select coalesce(t.earlier_cost, 0::numeric)
                         + case when t.id <> p_turn_id then coalesce(t.cost, 0::numeric) else 0::numeric end as spent,
                         case when t.id <> p_turn_id and t.cost is null then t.reserved end as reserved
                    from public.turns t
                   where p_claim ->> 'conversation_usd'::text is not null and t.conversation_id = p_conversation_id) b
          union all
          select p.name, p.most, coalesce(pg_catalog.sum(b.spent) filter (where b.started_at >= p.since), 0::numeric),
                 coalesce(pg_catalog.sum(b.reserved) filter (where b.started_at >= p.since), 0::numeric)
            from (values ('day'::text, (p_claim ->> 'day_usd'::text)::numeric, v_day),
                         ('month'::text, (p_claim ->> 'month_usd'::text)::numeric,
                          pg_catalog.date_trunc('month', v_now, 'UTC'))) p(name, most, since)
            left join lateral (
                  select t.started_at, coalesce(t.earlier_cost, 0::numeric)
                         + case when t.id <> p_turn_id then coalesce(t.cost, 0::numeric) else 0::numeric end as spent,
                         case when t.id <> p_turn_id and t.cost is null then t.reserved end as reserved
                    from public.turns t
                   where t.owner = p_owner and t.model is not null and t.started_at >= p.since) b on true
           where p.most is not null
           group by p.name, p.most) x
   where x.spent + x.reserved + v_needed > x.most
   limit 1;
  if v_name is not null then
    raise exception using errcode = 'EXB01', message = 'budget', detail = pg_catalog.json_build_object(
      'budget', v_name, 'limit_usd', v_limit, 'spent_usd', v_spent, 'reserved_usd', v_reserved, 'needed_usd', v_needed)::text;
  end if;
  update public.turns x set reserved = v_needed where x.id = p_turn_id;
end
$$
