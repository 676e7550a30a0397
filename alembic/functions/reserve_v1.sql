-- Reserves the highest likely cost of a turn that has just begun, or raises EXB01 if a budget does not cover it, which
-- undoes the whole statement. p_claim: prompt_usd, answer_usd, byte_usd, and the budgets of exai.budgets_v1; p_bytes is
-- the size of the history that the model receives, p_most the largest that it can receive.
--
-- The lock is held until the transaction ends, and each turn of the owner takes it last, so that turns which begin at
-- once, on any daemon, see each other's reservations. finish_turn_v1 replaces a reservation by the cost.
create or replace function exai.reserve_v1(
  p_owner text, p_turn_id uuid, p_conversation_id uuid, p_claim jsonb, p_bytes bigint, p_most bigint)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  c_lock_class constant bigint := 5272091;
  v_files bigint;
  v_prompt numeric;
  v_needed numeric;
  b record;
begin
  perform pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(p_owner, c_lock_class));
  select coalesce(pg_catalog.sum(f.size_bytes), 0)::bigint into v_files
    from public.conversation_files l join public.files f on f.id = l.file_id
   where l.conversation_id = p_conversation_id;
  v_prompt := (p_claim ->> 'prompt_usd'::text)::numeric
              + (p_claim ->> 'byte_usd'::text)::numeric * least(p_bytes + v_files, p_most)::numeric;
  v_needed := v_prompt + (p_claim ->> 'answer_usd'::text)::numeric;
  for b in
    select x.o_name, x.o_limit, x.o_spent, x.o_reserved, x.o_resets_at
      from exai.budgets_v1(p_owner, p_conversation_id, p_claim, pg_catalog.clock_timestamp()) x
     where x.o_spent + x.o_reserved + v_needed > x.o_limit
     order by x.o_resets_at desc nulls first
     limit 1
  loop
    raise exception using errcode = 'EXB01', message = 'budget', detail = pg_catalog.json_build_object(
      'budget', b.o_name, 'limit_usd', b.o_limit, 'spent_usd', b.o_spent, 'reserved_usd', b.o_reserved,
      'needed_usd', v_needed, 'resets_at', b.o_resets_at)::text;
  end loop;
  update public.turns x set reserved = v_needed, reserved_prompt = v_prompt where x.id = p_turn_id;
end
$$
