-- Creates the missing partitions of metrics_raw for today and the next p_days days; returns how many. Days begin in
-- UTC. A partition is created as a table and then attached, which does not block writers. Rows that arrived before
-- their partition are moved to it from the default one. One run at a time; a concurrent one returns 0.
create or replace function monitoring.create_partitions(p_days integer default 7) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '2s'
as $$
declare
  c_lock constant bigint := 7311701100470826098;
  c_most_days constant integer := 100;
  v_today constant date := current_date;
  v_day date;
  v_name text;
  v_role text;
  v_made integer := 0;
begin
  if not pg_try_advisory_xact_lock(c_lock) then
    return 0;
  end if;
  for v_offset in 0 .. least(p_days, c_most_days) loop
    v_day := v_today + v_offset;
    v_name := 'metrics_raw_' || to_char(v_day, 'YYYYMMDD');
    continue when to_regclass('monitoring.' || v_name) is not null;
    begin
      execute format('create table monitoring.%I (like monitoring.metrics_raw including defaults including constraints)',
                     v_name);
      execute format('alter table monitoring.%I enable row level security', v_name);
      -- Default privileges may have granted it to the roles of Supabase's API.
      for v_role in select r.rolname from pg_roles r where r.rolname in ('anon', 'authenticated', 'service_role') loop
        execute format('revoke all on monitoring.%I from %I', v_name, v_role);
      end loop;
      if exists (select from monitoring.metrics_raw_default d
                  where d."timestamp" >= v_day and d."timestamp" < v_day + 1) then
        lock table monitoring.metrics_raw_default in access exclusive mode;
        execute format('with moved as (delete from monitoring.metrics_raw_default d'
                       ' where d."timestamp" >= %L and d."timestamp" < %L returning d.*)'
                       ' insert into monitoring.%I select m.* from moved m', v_day, v_day + 1, v_name);
      end if;
      execute format('alter table monitoring.metrics_raw attach partition monitoring.%I for values from (%L) to (%L)',
                     v_name, v_day, v_day + 1);
      v_made := v_made + 1;
    exception when invalid_object_definition then
      -- The partition of an older system's table already covers the day.
      null;
    end;
  end loop;
  return v_made;
end
$$
