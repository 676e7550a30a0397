-- Returns a message as one line of JSON in the format of exai/pages.py; times are in the session's time zone, which
-- must be UTC. A time written by another program that Python cannot represent becomes the first or last one that it
-- can; metadata that is not an object becomes the value of one.
create or replace function exai.message_line_v1(m public.messages) returns text
language sql stable
as $$
select pg_catalog.json_build_array(
  m.seq, m.role, m.content,
  greatest(least(m.created_at, '9999-12-31 23:59:59.999999+00'::timestamptz), '0001-01-01 00:00:00+00'::timestamptz),
  m.kind, m.turn_id,
  case when pg_catalog.jsonb_typeof(m.metadata) = 'object' then m.metadata
       else pg_catalog.jsonb_build_object('value', m.metadata) end)::text
$$
