-- Returns the sum, place by place, of the JSON arrays of counts that p_arrays holds; null if it holds none. Values that
-- are not counts are 0, and so are the missing last places of a shorter array.
create or replace function monitoring.sum_buckets_v1(p_arrays jsonb) returns jsonb
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
select jsonb_agg(s.total order by s.place)
  from (select n.place,
               sum(trunc(least(greatest(coalesce(monitoring.read_number_v1(n.value), 0), 0), 1e15))::bigint) as total
          from jsonb_array_elements(case when jsonb_typeof(p_arrays) = 'array' then p_arrays end) a(counts)
         cross join lateral jsonb_array_elements(case when jsonb_typeof(a.counts) = 'array' then a.counts end)
               with ordinality n(value, place)
         where n.place <= 100
         group by n.place) s
$$
