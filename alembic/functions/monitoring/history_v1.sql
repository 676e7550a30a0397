-- Returns the sums of one type of metric by step, from p_since (inclusive) to p_until (exclusive), for each combination
-- of the labels p_by; only of rows with all labels of p_where. Rows with an owner are those of p_owner, or of all
-- owners (null). Steps of whole hours are read from the sums by hour, others from the sums by minute.
create or replace function monitoring.history_v1(
  p_type text, p_since timestamptz, p_until timestamptz, p_step interval, p_by text[], p_where jsonb, p_owner text,
  p_limit integer)
returns table (at timestamptz, labels jsonb, count bigint, sum double precision, min double precision,
               max double precision, buckets jsonb)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
#variable_conflict use_column
declare
  c_hour constant numeric := 3600;
  v_hourly constant boolean := mod(extract(epoch from p_step), c_hour) = 0 and date_trunc('hour', p_since) = p_since;
begin
  return query
    with chosen as (
      select h.bucket, h.labels, h.count, h.sum, h.min, h.max, h.buckets
        from monitoring.metrics_1hour h
       where v_hourly and h.type = p_type and h.bucket >= p_since and h.bucket < p_until
      union all
      select m.bucket, m.labels, m.count, m.sum, m.min, m.max, m.buckets
        from monitoring.metrics_1min m
       where not v_hourly and m.type = p_type and m.bucket >= p_since and m.bucket < p_until),
    labelled as (
      select date_bin(p_step, c.bucket, p_since) as at, c.count, c.sum, c.min, c.max, c.buckets,
             coalesce((select jsonb_object_agg(l.key, l.value) from jsonb_each(c.labels) l where l.key = any(p_by)),
                      '{}') as labels
        from chosen c
       where c.labels @> p_where
         and (p_owner is null or not c.labels ? 'owner' or c.labels ->> 'owner' = p_owner))
    select l.at, l.labels, sum(l.count)::bigint, sum(l.sum), min(l.min), max(l.max),
           monitoring.sum_buckets_v1(jsonb_agg(l.buckets) filter (where l.buckets is not null))
      from labelled l
     group by l.at, l.labels
     order by l.at, l.labels
     limit p_limit;
end
$$
