-- Returns the newest metrics of the last p_minutes, newest first, at most p_limit and never more than 1000; of one
-- type, or of all (null). Uses metrics_raw_recent_idx of the partitions of those minutes.
create or replace function monitoring.get_recent_metrics(
  p_type text default null, p_minutes integer default 60, p_limit integer default 100)
returns table (id bigint, type text, data jsonb, "timestamp" timestamptz, created_at timestamptz)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  c_most constant integer := 1000;
  v_since constant timestamptz := now() - make_interval(mins => greatest(coalesce(p_minutes, 60), 0));
  v_limit constant integer := least(greatest(coalesce(p_limit, 100), 0), c_most);
begin
  if p_type is null then
    return query
      select m.id, m.type, m.data, m."timestamp", m.created_at
        from monitoring.metrics_raw m
       where m."timestamp" > v_since
       order by m."timestamp" desc, m.id desc
       limit v_limit;
  else
    return query
      select m.id, m.type, m.data, m."timestamp", m.created_at
        from monitoring.metrics_raw m
       where m.type = p_type and m."timestamp" > v_since
       order by m."timestamp" desc, m.id desc
       limit v_limit;
  end if;
end
$$
