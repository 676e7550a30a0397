-- Fills columns that older clients leave empty in a metric; exists only where their table was adopted.
create or replace function monitoring.fill_metric_v1() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  new.data := coalesce(new.data, '{}');
  new.type := coalesce(new.type, new.data ->> 'type', new.data ->> 'name', 'unknown');
  new.created_at := coalesce(new.created_at, clock_timestamp());
  new."timestamp" := coalesce(new."timestamp", new.created_at);
  return new;
end
$$
