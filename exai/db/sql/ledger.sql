-- name: usage
-- repeat: read
-- Tokens and cost of an owner's turns, by model, tool, day or conversation; by turns_asked_idx or turns_conversation_idx.
select u.o_part::text as part, u.o_key::text as key, u.o_title::text as title, u.o_turns::bigint as turns,
       u.o_failed::bigint as failed, u.o_pending::bigint as pending, u.o_input::bigint as input_tokens,
       u.o_cached::bigint as cached_tokens, u.o_output::bigint as output_tokens, u.o_reasoning::bigint as reasoning_tokens,
       u.o_cost::text as cost, u.o_estimated::bigint as estimated, u.o_unpriced::bigint as unpriced,
       u.o_groups::bigint as groups, u.o_named::boolean as named
  from exai.usage_v1($1::text, $2::text, $3::timestamptz, $4::timestamptz, $5::text, $6::integer) u;
