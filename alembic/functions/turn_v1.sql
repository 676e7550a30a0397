-- Returns the fields of a turn that statements return.
create or replace function exai.turn_v1(t public.turns) returns json
language sql stable
set search_path = pg_catalog, pg_temp
as $$
select pg_catalog.json_build_object(
  'id', t.id, 'state', t.state, 'attempt', t.attempt, 'tool', t.tool, 'provider', t.provider, 'model', t.model,
  'input_tokens', t.input_tokens, 'output_tokens', t.output_tokens, 'cached_tokens', t.cached_tokens,
  'reasoning_tokens', t.reasoning_tokens, 'cost', t.cost, 'error', t.error, 'metadata', t.metadata,
  'first_seq', t.first_seq, 'last_seq', t.last_seq, 'reply_last_seq', t.reply_last_seq, 'revision', t.revision,
  'started_at', t.started_at, 'finished_at', t.finished_at,
  'lease_left_s', extract(epoch from t.lease_until - pg_catalog.clock_timestamp()))
$$
