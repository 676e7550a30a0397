-- Stores one metric and returns its id. A time beyond the limits (older than raw rows are kept, or more than five
-- minutes ahead) is moved to the limit, and recorded in the processing log.
create or replace function monitoring.insert_metric(
  p_type text, p_data jsonb default '{}', p_at timestamptz default clock_timestamp())
returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  c_kept constant interval := '7 days';
  c_ahead constant interval := '5 minutes';
  v_now constant timestamptz := clock_timestamp();
  v_at constant timestamptz := coalesce(p_at, v_now);
  v_id bigint;
begin
  if coalesce(p_type, '') = '' then
    raise exception 'a metric needs a type' using errcode = '22004';
  end if;
  insert into monitoring.metrics_raw (type, data, "timestamp", created_at)
  values (p_type, coalesce(p_data, '{}'), least(greatest(v_at, v_now - c_kept), v_now + c_ahead), v_now)
  returning id into v_id;
  if v_at < v_now - c_kept or v_at > v_now + c_ahead then
    insert into monitoring.metrics_processing_log (batch_id, status, source, received, stored, late, future)
    values (gen_random_uuid(), 'moved', p_type, 1, 1, (v_at < v_now - c_kept)::integer,
            (v_at > v_now + c_ahead)::integer);
  end if;
  return v_id;
end
$$
