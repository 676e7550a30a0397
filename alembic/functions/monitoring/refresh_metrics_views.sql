-- For callers from the time when the sums were views that had to be computed anew. Now each insert adds to them, so they
-- are never out of date; what such a caller comes by for regularly is that partitions are made in time.
create or replace function monitoring.refresh_metrics_views() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  perform monitoring.create_partitions();
end
$$
