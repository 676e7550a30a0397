-- Returns the tokens and the cost of an owner's turns that asked a model, by 'model', 'tool', 'day' (of p_zone), 'conversation'
-- or 'turn': rows 'group', the latest day or turn or the highest cost first, and one row 'total', last, that also covers
-- the groups beyond p_limit. o_named is false if there is no conversation p_continuation_id. o_kept counts answers of
-- the answer cache. o_continuation_id is the conversation of a single turn, unless it is deleted.
--
-- The turns are read by turns_asked_idx, or those of one conversation by turns_conversation_idx; those of conversations
-- that were purged by the key of exai.purged_turns.
create or replace function exai.usage_v1(
  p_owner text, p_by text, p_since timestamptz, p_until timestamptz, p_continuation_id text, p_limit integer,
  p_zone text)
returns table (o_part text, o_key text, o_title text, o_turns bigint, o_failed bigint, o_pending bigint,
               o_input bigint, o_cached bigint, o_output bigint, o_reasoning bigint, o_cost numeric,
               o_estimated bigint, o_unpriced bigint, o_groups bigint, o_named boolean, o_kept bigint, o_continuation_id text)
language sql stable rows 20
set search_path = pg_catalog, pg_temp
as $$
  with asked as (
    select t.id, t.conversation_id, null as name, t.tool, t.model, t.started_at, t.input_tokens, t.cached_tokens,
           t.output_tokens, t.reasoning_tokens, t.cost, t.earlier_cost, t.reserved_prompt, t.is_estimated, t.state,
           t.lease_until, case when t.output_tokens = 0 then t.metadata -> 'from_cache' is not null end as is_kept
      from public.turns t
     where p_continuation_id is null and t.owner = p_owner and t.model is not null
       and t.started_at >= coalesce(p_since, '-infinity') and t.started_at < coalesce(p_until, 'infinity')
    union all
    select t.id, t.conversation_id, null, t.tool, t.model, t.started_at, t.input_tokens, t.cached_tokens,
           t.output_tokens, t.reasoning_tokens, t.cost, t.earlier_cost, t.reserved_prompt, t.is_estimated, t.state,
           t.lease_until, case when t.output_tokens = 0 then t.metadata -> 'from_cache' is not null end as is_kept
      from public.conversations c join public.turns t on t.conversation_id = c.id
     where p_continuation_id is not null and c.owner = p_owner and c.continuation_id = p_continuation_id
       and t.model is not null
       and t.started_at >= coalesce(p_since, '-infinity') and t.started_at < coalesce(p_until, 'infinity')
    union all
    select p.turn_id, p.conversation_id, p.continuation_id, p.tool, p.model, p.started_at, p.input_tokens, p.cached_tokens,
           p.output_tokens, p.reasoning_tokens, p.cost, null, null, p.is_estimated, p.state, '-infinity', null
      from exai.purged_turns p
     where p_continuation_id is null and p.owner = p_owner
       and p.started_at >= coalesce(p_since, '-infinity') and p.started_at < coalesce(p_until, 'infinity')),
  settled as (
    -- The turn of a lost daemon, whose lease has ended, has failed, and cost its prompt.
    select a.*, a.state = 'pending' and a.lease_until <= now() as is_lost,
           case when a.lease_until <= now() then a.reserved_prompt end as lost_usd
      from asked a),
  keyed as (
    select case p_by when 'model' then a.model
                     when 'tool' then a.tool
                     when 'day' then to_char(a.started_at at time zone p_zone, 'YYYY-MM-DD')
                     when 'turn' then a.id::text
                     else a.conversation_id::text end as key, a.*
      from settled a),
  sums as (
    select k.key, grouping(k.key) as is_total, max(k.started_at) as latest, max(k.name) as name,
           min(case when p_by in ('conversation', 'turn') then k.conversation_id::text end) as conversation, count(*) as turns,
           count(*) filter (where k.state = 'failed' or k.is_lost) as failed,
           count(*) filter (where k.state = 'pending' and not k.is_lost) as pending, sum(k.input_tokens)::bigint as input,
           sum(k.cached_tokens)::bigint as cached, sum(k.output_tokens)::bigint as output,
           sum(k.reasoning_tokens)::bigint as reasoning,
           sum(coalesce(k.cost, k.lost_usd, 0) + coalesce(k.earlier_cost, 0)) as cost,
           count(*) filter (where k.is_estimated or (k.cost is null and k.lost_usd is not null)) as estimated,
           count(*) filter (where k.cost is null and k.input_tokens > 0) as unpriced, count(*) filter (where k.is_kept) as kept
      from keyed k
     group by grouping sets ((k.key), ())),
  shown as (
    select s.*, row_number() over (order by s.is_total, case when p_by in ('day', 'turn') then s.latest end desc,
                                            s.cost desc, s.input desc nulls last, s.key) as place
      from sums s)
  select case s.is_total when 1 then 'total' else 'group' end,
         case when p_by = 'conversation' and s.is_total = 0 then coalesce(c.continuation_id, s.name, s.key) else s.key end,
         case when c.deleted_at is null then c.title end, s.turns, s.failed, s.pending,
         coalesce(s.input, 0), coalesce(s.cached, 0), coalesce(s.output, 0), coalesce(s.reasoning, 0),
         coalesce(s.cost, 0), s.estimated, s.unpriced, (select count(*) from sums x where x.is_total = 0),
         p_continuation_id is null or exists (
           select from public.conversations n where n.owner = p_owner and n.continuation_id = p_continuation_id),
         s.kept, case when p_by = 'turn' and s.is_total = 0 and c.deleted_at is null then c.continuation_id end
    from shown s
    left join public.conversations c
      on c.id = case when s.is_total = 0 then s.conversation::uuid end
   where s.place <= p_limit or s.is_total = 1
   order by s.place
$$
