-- Before the state or the mark of reading of a request changes: notes the time, and wakes daemons if it was cancelled.
create or replace function exai.note_request_v1() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  new.updated_at := clock_timestamp();
  if new.read_at is distinct from old.read_at then
    new.read_at := clock_timestamp();
  end if;
  if new.state = 'cancelled' and old.state <> 'cancelled' then
    perform pg_notify('exai_requests', new.id::text);
  end if;
  return new;
end
$$
