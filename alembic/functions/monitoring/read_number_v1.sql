-- Returns a JSON number as double precision, null for anything else. A number out of range is null too, because one
-- such value must not fail a batch.
create or replace function monitoring.read_number_v1(p_value jsonb) returns double precision
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
select case when jsonb_typeof(p_value) <> 'number' then null
            when abs(p_value::numeric) > 1e300 then null
            when abs(p_value::numeric) < 1e-300 then 0
            else p_value::double precision end
$$
