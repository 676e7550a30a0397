-- For older clients, whose sums were materialized views that had to be refreshed. Inserts now keep the sums current,
-- so this only creates the partitions of the coming days, which needs to be done regularly.
create or replace function monitoring.refresh_metrics_views() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  perform monitoring.create_partitions();
end
$$
