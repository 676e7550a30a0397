-- Adds the rows of one insert to the sums of their minute and hour, for every writer. No stored row is read again.
-- Rows are locked in the order of their key, so writers of the same minute wait for each other without deadlocks.
-- Runs with the rights of its owner, so that writers of metrics need no rights on the sums.
create or replace function monitoring.roll_up_v1() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  c_epoch constant timestamptz := '1970-01-01 00:00:00+00';
  c_type_chars constant integer := 200;
  c_labels_bytes constant integer := 1000;
begin
  with counted as materialized (
    select f."timestamp" as at, left(f.type, c_type_chars) as type,
           case when jsonb_typeof(f.data -> 'labels') <> 'object' then '{}'::jsonb
                when octet_length((f.data -> 'labels')::text) > c_labels_bytes then '{"labels": "too long"}'::jsonb
                else f.data -> 'labels' end as labels,
           case when monitoring.read_number_v1(f.data -> 'count') between 0 and 1e15
                then monitoring.read_number_v1(f.data -> 'count')::bigint else 1 end as number,
           coalesce(monitoring.read_number_v1(f.data -> 'sum'), monitoring.read_number_v1(f.data -> 'value')) as total,
           coalesce(monitoring.read_number_v1(f.data -> 'min'), monitoring.read_number_v1(f.data -> 'value')) as low,
           coalesce(monitoring.read_number_v1(f.data -> 'max'), monitoring.read_number_v1(f.data -> 'value')) as high,
           case when jsonb_typeof(f.data -> 'buckets') = 'array' then f.data -> 'buckets' end as buckets
      from fresh f
     where isfinite(f."timestamp")),
  minutes as (
    insert into monitoring.metrics_1min as k (bucket, type, labels, count, sum, min, max, buckets)
    select date_bin('1 minute', c.at, c_epoch), c.type, coalesce(c.labels, '{}'), sum(c.number), sum(c.total), min(c.low),
           max(c.high), monitoring.sum_buckets_v1(jsonb_agg(c.buckets) filter (where c.buckets is not null))
      from counted c
     group by 1, 2, 3
     order by 1, 2, 3
    on conflict (bucket, type, labels) do update
      set count = k.count + excluded.count,
          sum = case when k.sum is null then excluded.sum else k.sum + coalesce(excluded.sum, 0) end,
          min = least(k.min, excluded.min),
          max = greatest(k.max, excluded.max),
          buckets = case when k.buckets is null or excluded.buckets is null then coalesce(k.buckets, excluded.buckets)
                         else monitoring.sum_buckets_v1(jsonb_build_array(k.buckets, excluded.buckets)) end)
  insert into monitoring.metrics_1hour as k (bucket, type, labels, count, sum, min, max, buckets)
  select date_bin('1 hour', c.at, c_epoch), c.type, coalesce(c.labels, '{}'), sum(c.number), sum(c.total), min(c.low),
         max(c.high), monitoring.sum_buckets_v1(jsonb_agg(c.buckets) filter (where c.buckets is not null))
    from counted c
   group by 1, 2, 3
   order by 1, 2, 3
  on conflict (bucket, type, labels) do update
    set count = k.count + excluded.count,
        sum = case when k.sum is null then excluded.sum else k.sum + coalesce(excluded.sum, 0) end,
        min = least(k.min, excluded.min),
        max = greatest(k.max, excluded.max),
        buckets = case when k.buckets is null or excluded.buckets is null then coalesce(k.buckets, excluded.buckets)
                       else monitoring.sum_buckets_v1(jsonb_build_array(k.buckets, excluded.buckets)) end;
  return null;
end
$$
