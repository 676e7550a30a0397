-- Drops the partitions of raw metrics whose last row is older than p_raw, and deletes at most p_limit expired rows of
-- each other kind; call it again while it deletes that many. "remaining" counts what has expired and is still there,
-- rows up to ten times p_limit. A partition that others keep locked stays for the next run. The table that an older
-- system left is dropped by its owner only. One run at a time; a concurrent one returns no rows.
create or replace function monitoring.apply_retention(
  p_raw interval default '7 days', p_1min interval default '30 days', p_1hour interval default '400 days',
  p_limit integer default 10000)
returns table (what text, removed bigint, remaining bigint)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '2s'
as $$
declare
  c_lock constant bigint := 7311701100470826098;
  c_counted constant bigint := 10;
  v_name text;
begin
  if not pg_try_advisory_xact_lock(c_lock) then
    return;
  end if;
  delete from monitoring.erased_owners e where e.erased_at < now() - p_raw;

  what := 'partitions';
  removed := 0;
  remaining := 0;
  for v_name in
    select c.relname
      from pg_inherits i join pg_class c on c.oid = i.inhrelid
     where i.inhparent = 'monitoring.metrics_raw'::regclass and c.relname ~ '^metrics_raw_[0-9]{8}$'
       and to_date(right(c.relname, 8), 'YYYYMMDD') + 1 <= now() - p_raw
     order by c.relname
  loop
    begin
      execute format('drop table monitoring.%I', v_name);
      removed := removed + 1;
    exception when lock_not_available then
      remaining := remaining + 1;
    end;
  end loop;
  return next;

  what := 'metrics_raw_default';
  delete from monitoring.metrics_raw_default d
   where d.ctid = any(array(select o.ctid from monitoring.metrics_raw_default o
                             where o."timestamp" < now() - p_raw limit p_limit));
  get diagnostics removed = row_count;
  select count(*) into remaining
    from (select from monitoring.metrics_raw_default o where o."timestamp" < now() - p_raw limit c_counted * p_limit) r;
  return next;

  what := 'metrics_processing_log';
  delete from monitoring.metrics_processing_log l
   where l.id = any(array(select o.id from monitoring.metrics_processing_log o
                           where o.processed_at < now() - p_raw order by o.processed_at limit p_limit));
  get diagnostics removed = row_count;
  select count(*) into remaining
    from (select from monitoring.metrics_processing_log o where o.processed_at < now() - p_raw limit c_counted * p_limit) r;
  return next;

  what := 'metrics_1min';
  delete from monitoring.metrics_1min k
   where k.ctid = any(array(select o.ctid from monitoring.metrics_1min o
                             where o.bucket < now() - p_1min limit p_limit));
  get diagnostics removed = row_count;
  select count(*) into remaining
    from (select from monitoring.metrics_1min o where o.bucket < now() - p_1min limit c_counted * p_limit) r;
  return next;

  what := 'metrics_1hour';
  delete from monitoring.metrics_1hour k
   where k.ctid = any(array(select o.ctid from monitoring.metrics_1hour o
                             where o.bucket < now() - p_1hour limit p_limit));
  get diagnostics removed = row_count;
  select count(*) into remaining
    from (select from monitoring.metrics_1hour o where o.bucket < now() - p_1hour limit c_counted * p_limit) r;
  return next;
end
$$
