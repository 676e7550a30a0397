-- Returns a metric's time: a text that Postgres parses, in UTC unless it names a zone, or seconds since 1970; null if
-- it is neither.
create or replace function monitoring.read_time_v1(p_value jsonb) returns timestamptz
language plpgsql stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_time timestamptz;
begin
  if jsonb_typeof(p_value) = 'number' then
    v_time := to_timestamp((p_value #>> '{}')::double precision);
  elsif jsonb_typeof(p_value) = 'string' then
    v_time := (p_value #>> '{}')::timestamptz;
  end if;
  return case when isfinite(v_time) then v_time end;
exception when data_exception then
  return null;
end
$$
