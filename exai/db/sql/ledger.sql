-- name: usage
-- repeat: read
-- Tokens and cost of an owner's turns, by model, tool, day, conversation or turn, and the state of the budgets; by
-- turns_asked_idx or turns_conversation_idx.
select u.o_part::text as part, u.o_key::text as key, u.o_title::text as title, u.o_turns::bigint as turns,
       u.o_failed::bigint as failed, u.o_pending::bigint as pending, u.o_input::bigint as input_tokens,
       u.o_cached::bigint as cached_tokens, u.o_output::bigint as output_tokens, u.o_reasoning::bigint as reasoning_tokens,
       u.o_cost::text as cost, u.o_estimated::bigint as estimated, u.o_unpriced::bigint as unpriced,
       u.o_groups::bigint as groups, u.o_named::boolean as named,
       u.o_kept::bigint as from_cache, u.o_continuation_id::text as continuation_id, null::text as spent, null::text as reserved, null::timestamptz as resets_at
  from exai.usage_v1($1::text, $2::text, $3::timestamptz, $4::timestamptz, $5::text, $6::integer, $8::text) u
union all
select 'budget'::text, b.o_name::text, null::text, null::bigint, null::bigint, null::bigint, null::bigint, null::bigint,
       null::bigint, null::bigint, b.o_limit::text, null::bigint, null::bigint, null::bigint, null::boolean, null::bigint, null::text,
       b.o_spent::text, b.o_reserved::text, b.o_resets_at::timestamptz
  from exai.budgets_v1($1::text, (select c.id from public.conversations c
                                   where c.owner = $1::text and c.continuation_id = $5::text),
                       $7::text::jsonb, pg_catalog.clock_timestamp()) b;

-- name: budgets
-- repeat: read
-- The spent and reserved amounts of an owner's budgets of a day and a month; by turns_asked_idx.
select b.o_name::text as key, b.o_limit::text as cost, b.o_spent::text as spent, b.o_reserved::text as reserved,
       b.o_resets_at::timestamptz as resets_at
  from exai.budgets_v1($1::text, null::uuid, $2::text::jsonb, pg_catalog.clock_timestamp()) b;
