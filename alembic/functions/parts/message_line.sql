pg_catalog.json_build_array(
  m.seq, m.role, m.content,
  greatest(least(m.created_at, '9999-12-31 23:59:59.999999+00'::timestamptz), '0001-01-01 00:00:00+00'::timestamptz),
  m.kind, m.turn_id,
  case when pg_catalog.jsonb_typeof(m.metadata) = 'object' then m.metadata
       else pg_catalog.jsonb_build_object('value', m.metadata) end,
  m.message_key)::text
